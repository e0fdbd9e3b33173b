"""One machine of the cluster: run programs in it, reach its files, pull its plugs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

from tests.cluster import report
from tests.cluster.link import Link
from tests.cluster.paths import in_root
from tests.cluster.pidfd import ProcessHandle
from tests.cluster.plan import DATASTORES, DATASTORES_IMAGE, NodePlan
from tests.cluster.process import CommandFailed, NodeProcess
from tests.waiting import wait_until

START_TIMEOUT = 30.0
SSH_PORT = 22
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=0"],
    "xfs+reflink": ["mkfs.xfs", "-q", "-m", "reflink=1"],
}


class Node:
    """A node of a running cluster; made by Cluster."""

    def __init__(
        self, plan: NodePlan, supervisor: ProcessHandle, control: socket.socket, path: str
    ) -> None:
        self.plan = plan
        self._supervisor = supervisor
        self._control = control
        self._path = path
        self._init: ProcessHandle | None = None
        self._processes: list[NodeProcess] = []
        self._link_is_touched = False

    def __repr__(self) -> str:
        return f"Node({self.name!r})"

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def address(self) -> str:
        return self.plan.address.ip

    @property
    def pid(self) -> int:
        """Process 1 of the node, as the real machine numbers it."""
        if self._init is None:
            raise RuntimeError(f"{self.name} is down")
        return self._init.pid

    # Power

    def start(self) -> None:
        """Boot the node from its disk; return when it answers on ssh."""
        with self.request_start() as started:
            self.wait_started(started)

    def request_start(self) -> socket.socket:
        """Begin to boot the node; `wait_started` needs the socket."""
        if self._init is not None:
            raise RuntimeError(f"{self.name} is up already")
        ours, theirs = report.channel()
        with theirs:
            request = self.plan.directory.encode()
            socket.send_fds(self._control, [request], [theirs.fileno()])
        return ours

    def wait_started(self, started: socket.socket) -> None:
        try:
            init = report.receive(started, START_TIMEOUT)
        except report.StartError as error:
            raise report.StartError(f"{self.name}: {error}\n{self.console()}") from None
        self._init = init
        wait_until(lambda: self._answers() or not init.alive(), f"sshd of {self.name}")
        if not init.alive():
            raise report.StartError(f"{self.name}: sshd has ended\n{self.console()}")

    def kill(self) -> None:
        """Cut the power: the network falls silent, then every process ends at once.

        The disk keeps what was written, synced or not: the kernel that caches it lives on.
        """
        if self._init is None:
            raise RuntimeError(f"{self.name} is down already")
        link = self._link
        if self._init.alive():
            link.unplug()
            self._init.kill()
        self._end_processes()
        if not self._init.wait_gone(START_TIMEOUT):
            raise TimeoutError(f"{self.name} does not end")
        self._init.close()
        self._init = None
        wait_until(lambda: not link.plugged(), f"the end of the link of {self.name}")
        wait_until(self._disk_at_rest, f"the file systems of {self.name} being unmounted")

    def release(self) -> None:
        """Let go of the node and of what `popen` still runs in it, before the cluster ends."""
        self._end_processes()
        if self._init is not None:
            self._init.close()
            self._init = None

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill_tree()
        self._processes.clear()

    def console(self) -> str:
        """What the node's init, daemons and sshd have said so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.plan.console.read_text(errors="replace")
        return ""

    def _answers(self) -> bool:
        """Whether sshd listens; asked without a connection, which would count at sshd."""
        listening = f":{SSH_PORT:04X} 00000000:0000 0A "
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return listening in Path(f"/proc/{self.pid}/net/tcp").read_text()
        return False

    def _disk_at_rest(self) -> bool:
        image = self.plan.root / DATASTORES_IMAGE.lstrip("/")
        if not image.exists():
            return True
        loops = ["/usr/sbin/losetup", "--noheadings", "--associated", str(image)]
        return not subprocess.run(loops, check=True, stdout=subprocess.PIPE).stdout

    # Programs

    @overload
    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = ...,
        env: Mapping[str, str] | None = ...,
        input: bytes | None = ...,
        cwd: str = ...,
        timeout: float = ...,
        check: bool = ...,
        text: Literal[True] = ...,
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = ...,
        env: Mapping[str, str] | None = ...,
        input: bytes | None = ...,
        cwd: str = ...,
        timeout: float = ...,
        check: bool = ...,
        text: Literal[False],
    ) -> subprocess.CompletedProcess[bytes]: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "oneadmin",
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,
        cwd: str = "/var/lib/one",
        timeout: float = 60.0,
        check: bool = True,
        text: bool = True,
    ) -> subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes]:
        """Run a program to its end, as `popen` starts it, with `input` on its stdin.

        At the timeout the program and all it started is killed, and TimeoutExpired raised with
        the output so far. With `check` a failure raises CommandFailed. Output is bytes, or with
        `text` str.
        """
        with self.popen(argv, user=user, env=env, cwd=cwd) as process:
            try:
                stdout, stderr = process.communicate(input or b"", timeout)
            except BaseException:
                process.kill_tree()
                raise
        status = process.returncode
        done: subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes]
        if text:
            done = subprocess.CompletedProcess(
                list(argv), status, stdout.decode(errors="replace"), stderr.decode(errors="replace")
            )
        else:
            done = subprocess.CompletedProcess(list(argv), status, stdout, stderr)
        if check and status != 0:
            raise CommandFailed(self.name, done)
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str = "oneadmin",
        env: Mapping[str, str] | None = None,
        cwd: str = "/var/lib/one",
    ) -> NodeProcess:
        """Start a program with pipes on all three streams.

        It sees the node alone and gets a clean environment: PATH, HOME, USER, LANG and what
        `env` adds or replaces. To kill it, see NodeProcess.
        """
        _, _, home = self._user(user)
        clean = {"PATH": self._path, "HOME": home, "USER": user, "LANG": "C.UTF-8"}
        self._processes = [p for p in self._processes if p.poll() is None]
        process = NodeProcess(argv, self.enter_argv(user, cwd), {**clean, **(env or {})})
        self._processes.append(process)
        return process

    def enter_argv(self, user: str, cwd: str) -> list[str]:
        """The command that, with a program appended, runs it in the node.

        The fork into the pid namespace is left to timeout, here without a limit. nsenter itself
        would stop along with a stopped program, and not collect it when the cluster is killed;
        unshare does not pass on that its child was killed.
        """
        uid, gid, _ = self._user(user)
        return [
            "/usr/bin/nsenter",
            f"--target={self.pid}",
            *("--mount", "--uts", "--ipc", "--net", "--pid"),
            f"--setuid={uid}",
            f"--setgid={gid}",
            f"--wdns={cwd}",
            "--no-fork",
            *("/usr/bin/timeout", "--foreground", "0"),
        ]

    def processes(self) -> list[tuple[int, list[str]]]:
        """The node's processes, zombies aside: the pid inside the node, and the argv."""
        found = []
        for entry in Path(f"/proc/{self.pid}/root/proc").iterdir():
            if entry.name.isdigit():
                try:
                    argv = (entry / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # ended meanwhile
                if argv:
                    words = argv.decode(errors="replace").rstrip("\0").split("\0")
                    found.append((int(entry.name), words))
        return sorted(found)

    def _user(self, name: str) -> tuple[int, int, str]:
        for line in self.read("/etc/passwd").decode().splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2]), int(fields[3]), fields[5]
        raise LookupError(f"{self.name} has no user {name}")

    # Files

    def path(self, path: str) -> Path:
        """Where the real machine reaches the node's file, while the node is up.

        Links on the way are followed as in the node; a link as the last part stays a link.
        """
        return in_root(Path(f"/proc/{self.pid}/root"), path, follow_last=False)

    def read(self, path: str) -> bytes:
        return self._followed(path).read_bytes()

    def write(
        self, path: str, data: bytes | str, mode: int = 0o644, owner: str = "oneadmin"
    ) -> None:
        """Write a file, with the directories that are missing above it."""
        uid, gid = self._user(owner)[:2]
        target = self._followed(path)
        missing = [parent for parent in target.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            os.chown(parent, uid, gid)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        os.chown(target, uid, gid)
        target.chmod(mode)

    def exists(self, path: str) -> bool:
        return self._followed(path).exists()

    def _followed(self, path: str) -> Path:
        return in_root(Path(f"/proc/{self.pid}/root"), path, follow_last=True)

    def mount_datastores(self, size_mb: int, fstype: str = "ext4") -> None:
        """Put a new file system of limited size over the datastores.

        It is part of the node's disk: still there after `kill` and `start`. xfs needs 300 MB.
        """
        image = self._followed(DATASTORES_IMAGE)
        if image.exists():
            raise RuntimeError(f"{self.name} has a file system over its datastores already")
        with image.open("wb") as file:
            file.truncate(size_mb << 20)
        self._as_root([*MKFS[fstype], DATASTORES_IMAGE])
        self._as_root(["mount", "-o", "loop", DATASTORES_IMAGE, DATASTORES])
        with contextlib.suppress(FileNotFoundError):
            self.path(f"{DATASTORES}/lost+found").rmdir()
        uid, gid = self._user("oneadmin")[:2]
        os.chown(self.path(DATASTORES), uid, gid)
        self.path(DATASTORES).chmod(0o750)

    def unmount_datastores(self) -> None:
        """Remove that file system; what was in the datastores before is back."""
        self._as_root(["umount", DATASTORES])
        self._followed(DATASTORES_IMAGE).unlink()

    def _as_root(self, argv: Sequence[str]) -> None:
        self.run(argv, user="root", cwd="/")

    # Network

    def cut(self) -> None:
        """Cut the node off: packets vanish, connections hang."""
        self._link_is_touched = True
        self._link.cut()

    def heal(self) -> None:
        """Undo `cut`."""
        self._link.heal()

    def limit_rate(self, mbit_per_s: float) -> None:
        """Bound what the node can send and what it can receive, until its next start."""
        self._link_is_touched = True
        self._link.limit(mbit_per_s)

    def unlimit_rate(self) -> None:
        self._link.unlimit()

    def mend_link(self) -> None:
        """Undo every `cut` and `limit_rate`; costs nothing where there was none."""
        if self._link_is_touched:
            self.heal()
            self.unlimit_rate()
            self._link_is_touched = False

    def bytes_received(self) -> int:
        """Bytes that came in over the node's link since the node started."""
        return self._link.received()

    def bytes_sent(self) -> int:
        return self._link.sent()

    @property
    def _link(self) -> Link:
        return Link(self._supervisor.pid, self.pid, self.name)
