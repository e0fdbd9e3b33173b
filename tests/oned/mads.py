"""What one_datastore, one_tm and one_vmm_exec do: build a driver's command line and run it.

Contract sections 0, 1.1, 1.4, 2.1 and 2.3. The scripts see the environment of section 1.1 and
nothing else; LANG is not in it, because nothing there says that it is set.
"""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tests.oned import reply
from tests.oned.reply import LogLine, Reply, Result
from tests.oned.runner import Call, Cancelled, Runner, argv_of
from tests.oned.version import at_least

REMOTES = "/var/lib/one/remotes"
HOME = "/var/lib/one"
PATH = "/usr/lib/one/sh/override:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SSH_AUTH_SOCK = "/var/run/one/ssh-agent.sock"
DEFAULTRC = {"PRIORITY": "19"}
VMM_EXECRC = {
    "LIVE_DISK_SNAPSHOTS": "kvm-qcow2 kvm-shared kvm-ceph kvm-ssh qemu-qcow2 qemu-shared"
    " qemu-ceph qemu-ssh kvm-onestor qemu-onestor"
}

BASE64_STDIN = ("premigrate", "postmigrate", "failmigrate")
RAW_STDIN = ("prebackup", "prebackup_live", "postbackup", "postbackup_live")


class Mad:
    """What the mads have in common: where scripts are, their environment, and the way to run them.

    `rc` holds the variables of the mad's own rc file; `home` is the scripts' cwd and HOME.
    """

    def __init__(
        self,
        runner: Runner,
        version: str,
        remotes: str = REMOTES,
        home: str = HOME,
        rc: Mapping[str, str] | None = None,
    ) -> None:
        self.runner = runner
        self.version = version
        self.remotes = remotes
        self.home = home
        self.environment = {
            "PATH": PATH,
            "SSH_AUTH_SOCK": SSH_AUTH_SOCK,
            "HOME": home,
            "USER": "oneadmin",
            **DEFAULTRC,
            **(rc or {}),
        }

    def start(self, command: str, stdin: str = "", timeout: float | None = None) -> Call:
        """Start a command line; OSError where the system refuses to."""
        return Call(self._popen(argv_of(command)), command, stdin.encode(), timeout)

    def _popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return self.runner.popen(argv, env=self.environment, cwd=self.home)


class DatastoreMad(Mad):
    """one_datastore: the actions of datastore drivers.

    `types` and `system_types` are its -d and -s (all drivers where not given), `timeout` its -w,
    heeded from 7.0 on.
    """

    def __init__(
        self,
        runner: Runner,
        version: str,
        remotes: str = REMOTES,
        home: str = HOME,
        types: Collection[str] | None = None,
        system_types: Collection[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(runner, version, remotes, home)
        self.types = types
        self.system_types = system_types
        self.timeout = timeout if at_least(version, "7.0") else None

    def call(self, action: str, ds_mad: str, message_xml: str, id: int) -> Reply:
        """Run one action, named as in CP or cp, and wait for its answer.

        MONITOR of a system datastore is its transfer manager's (contract 1.1), whatever `ds_mad`.
        """
        name = action.lower()
        folder, driver = "datastore", ds_mad
        if name == "monitor" and _tag(message_xml, "TYPE") == "1":
            folder, driver = "tm", _tag(message_xml, "TM_MAD")
        allowed = self.types if folder == "datastore" else self.system_types
        if allowed is not None and driver not in allowed:
            kind = "Datastore" if folder == "datastore" else "System datastore"
            return reply.refuse(action.upper(), id, f"{kind} driver '{driver}' not available")

        command, stdin = f"{self.remotes}/{folder}/{driver}/{name} {id}", ""
        message = base64.b64encode(message_xml.encode()).decode()
        if at_least(self.version, "6.8"):
            stdin = message
        else:
            command = f"{self.remotes}/{folder}/{driver}/{name} {message} {id}"
        try:
            result = self.start(command, stdin, self.timeout).wait()
        except OSError as error:
            result = Result(command, 255, "", "", f"Internal error {error.strerror}")
        return reply.read(self.version, action.upper(), id, result, encode=name == "monitor")


class TransferMad(Mad):
    """one_tm: the lines of transfer scripts. `types` is its -d, `tmrc` its own variables."""

    def __init__(
        self,
        runner: Runner,
        version: str,
        remotes: str = REMOTES,
        home: str = HOME,
        types: Collection[str] | None = None,
        tmrc: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(runner, version, remotes, home, tmrc)
        self.types = types

    def run_line(self, line: str) -> Reply:
        """Run one line, such as CLONE onestor fe:SOURCE host:DIR/disk.0 10 101."""
        return self.start_line(line).wait()

    def run_script(self, lines: Sequence[str]) -> Reply:
        """Run line after line up to the first failure; the reply is that of the last one run."""
        return self.start_script(lines).wait()

    def start_line(self, line: str) -> Transfer:
        return Transfer(self, [line])

    def start_script(self, lines: Sequence[str]) -> Transfer:
        """Start a transfer script; lines that are blank or comments are skipped."""
        return Transfer(self, lines)

    def begin(self, line: str, stdin: str = "") -> Call | Reply:
        """Start the script of one line, or tell why there is none."""
        words = line.split()
        name, driver = words[0].lower(), words[1]
        number = vm_of(words)
        if self.types is not None and driver not in self.types:
            return reply.refuse("TRANSFER", number, f"Transfer Driver '{driver}' not available")
        path = f"{self.remotes}/tm/{driver}/{name}"
        if not self.runner.exists(path):
            bare = path.rpartition(".")[0] if "." in name else ""
            if not bare:
                return reply.refuse("TRANSFER", number, f"Driver path '{path}' does not exists")
            if not self.runner.exists(bare):
                missing = f"Driver path '{path}' nor '{bare}' exists"
                return reply.refuse("TRANSFER", number, missing)
            path = bare
        command = " ".join([path, *(escape(word) for word in words[2:])])
        try:
            return self.start(command, stdin)
        except OSError as error:
            return reply.refuse("TRANSFER", number, f"Internal error {error.strerror}")

    def answer(self, line: str, call: Call | Reply) -> Reply:
        """Wait for the script of `line` to end; its stdout is of no interest (contract 2.1)."""
        if isinstance(call, Reply):
            return call
        ended = reply.read(self.version, "TRANSFER", vm_of(line.split()), call.wait())
        return replace(ended, info="-", undefined=()) if ended.success else ended


class VmmTransfer(TransferMad):
    """one_vmm_exec: the transfer manager's steps inside actions on running VMs.

    All drivers are allowed, tmrc is absent, and some scripts get the VM (contract 2.1 and 2.3).
    """

    def __init__(
        self,
        runner: Runner,
        version: str,
        remotes: str = REMOTES,
        home: str = HOME,
        vmm_execrc: Mapping[str, str] | None = None,
    ) -> None:
        rc = VMM_EXECRC if vmm_execrc is None else vmm_execrc
        super().__init__(runner, version, remotes, home, tmrc=rc)

    def run_line(self, line: str, vm_xml: str = "") -> Reply:
        """Run one step, such as PREMIGRATE onestor host02 host03 DIR 10 102."""
        return self.start_line(line, vm_xml).wait()

    def start_line(self, line: str, vm_xml: str = "") -> Transfer:
        name = line.split()[0].lower().partition(".")[0]
        stdin = ""
        if name in BASE64_STDIN:
            stdin = base64.b64encode(vm_xml.encode()).decode()
        elif name in RAW_STDIN:
            stdin = vm_xml
        return Transfer(self, [line], stdin)


class Transfer:
    """A transfer script in flight, its lines run one after the other up to the first failure."""

    def __init__(self, mad: TransferMad, lines: Sequence[str], stdin: str = "") -> None:
        self._mad = mad
        self._lines = [line for line in lines if not re.match(r"\s*(#|$)", line)]
        self._stdin = stdin
        self._lock = threading.Lock()
        self._call: Call | Reply | None = None
        self._cancelled = False
        self._reply: Reply | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> Reply:
        """Wait for the script's end; the reply holds the log of all its lines."""
        self._thread.join()
        if self._cancelled:
            raise Cancelled("; ".join(self._lines))
        if self._reply is None:
            raise RuntimeError("the thread of this transfer has died")
        return self._reply

    def cancel(self) -> None:
        """DRIVER_CANCEL: no further line is run and the result is dropped (contract 2.1).

        The program running now keeps running, without anybody at its pipes.
        """
        with self._lock:
            self._cancelled = True
            if isinstance(self._call, Call):
                self._call.cancel()

    def kill(self, number: int) -> None:
        """Send a signal to the process group of the program running now."""
        with self._lock:
            if isinstance(self._call, Call):
                self._call.kill(number)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the program running last, cancelled or not; tell whether it has ended."""
        self._thread.join(timeout)
        if self._thread.is_alive():  # perhaps it has not even begun
            return False
        call = self._call
        return not isinstance(call, Call) or call.join(timeout)

    def _run(self) -> None:
        result = reply.nothing("TRANSFER")
        log: list[LogLine] = []
        with contextlib.suppress(Cancelled):
            for line in self._lines:
                with self._lock:
                    if self._cancelled:
                        return
                    self._call = self._mad.begin(line, self._stdin)
                result = self._mad.answer(line, self._call)
                log += result.log
                if not result.success:
                    break
            self._reply = replace(result, log=tuple(log))


def escape(word: str) -> str:
    """A word for the shell, escaped as Ruby's Shellwords does."""
    if not word:
        return "''"
    return re.sub(r"[^A-Za-z0-9_\-.,:+/@]", r"\\\g<0>", word)


def vm_of(words: Sequence[str]) -> int:
    """The VM a line is about: the last word but one, as in every line but RESTORE."""
    return int(words[-2]) if words[-2].isdigit() else -1


def _tag(message_xml: str, name: str) -> str:
    return ElementTree.fromstring(message_xml).findtext(f"DATASTORE/{name}", "")
