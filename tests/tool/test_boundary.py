"""Actions as oned starts them: entry scripts of an installed tree, as real processes."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from onestor_lib.agent import crashpoints, errors
from tests.tool.conftest import (
    MB,
    ROOT,
    Oned,
    draw,
    listing,
    qemu_img,
    temporaries,
)
from tests.waiting import wait_until

HERE = socket.gethostname()
TM_DELETE = "frontend/actions/tm_delete.py"
LOG_LINE = re.compile(r"(INFO|WARN|ERROR): [a-z_]+: ")


@dataclass
class FrontEnd:
    """The remotes directory, a datastore of each kind, and a place where files come from."""

    root: Path
    library: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.remotes = self.root / "remotes"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "remotes", self.remotes, ignore=ignore)
        shutil.copytree(self.library, self.remotes / "onestor_lib", copy_function=os.link)
        self.version("7.4.1")
        self.log = self.root / "onestor.log"
        for kind in ("tm", "datastore"):
            self.configure(kind, f'LOG_FILE="{self.log}"')
        self.incoming, self.images = self.root / "incoming", self.root / "datastores" / "1"
        self.system = self.root / "datastores" / "100"
        for directory in (self.incoming, self.images, self.system):
            directory.mkdir(parents=True)

    def version(self, version: str) -> None:
        (self.remotes / "VERSION").write_text(version + "\n")

    def rewrite(self, module: str, text: str) -> None:
        """Another text for a module of onestor_lib, which is one file with that of `library`."""
        file = self.remotes / "onestor_lib" / module
        file.unlink()
        file.write_text(text)

    def configure(self, kind: str, line: str) -> None:
        file = {"tm": "tm/onestor/onestorrc", "datastore": "datastore/onestor/onestor.conf"}[kind]
        with (self.remotes / "etc" / file).open("a") as config:
            config.write(line + "\n")

    def start(self, kind: str, action: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe, **options}
        script = self.remotes / kind / "onestor" / action
        return subprocess.Popen(
            [sys.executable, script, *argv], text=True, cwd=self.root,
            env={**os.environ, **self.environment}, start_new_session=True, **streams,
        )  # fmt: skip

    def run(
        self, kind: str, action: str, *argv: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(kind, action, *argv)
        stdout, stderr = process.communicate(stdin)
        return subprocess.CompletedProcess([action, *argv], process.returncode, stdout, stderr)

    def message(self, template: str = "", **image: str) -> str:
        """The message of a datastore action, in base64."""
        elements = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in image.items())
        base = str(self.images).replace("/datastores", "//datastores")
        text = (
            f"<DS_DRIVER_ACTION_DATA><IMAGE>{elements}</IMAGE><DATASTORE><ID>1</ID><TYPE>0</TYPE>"
            f"<BASE_PATH>{base}</BASE_PATH><TEMPLATE><SAFE_DIRS>{self.incoming}</SAFE_DIRS>"
            f"{template}</TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>"
        )
        return base64.b64encode(text.encode()).decode()


@pytest.fixture
def fe(tmp_path: Path, oned: Oned, library: Path) -> FrontEnd:
    oned.answers["image", 4] = "<IMAGE/>"
    oned.answers["datastorepool", -1] = "<DATASTORE_POOL/>"
    for datastore in (1, 100):
        oned.answers["datastore", datastore] = "<DATASTORE><TEMPLATE/></DATASTORE>"
    return FrontEnd(tmp_path / "fe", library)


def vm(lcm_state: int = 1, disk: str = "", sequence: int = 0) -> str:
    return (
        f"<VM><STATE>3</STATE><LCM_STATE>{lcm_state}</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID>"
        f"<IMAGE_ID>4</IMAGE_ID><FORMAT>raw</FORMAT>{disk}</DISK></TEMPLATE><HISTORY_RECORDS>"
        f"<HISTORY><SEQ>{sequence}</SEQ></HISTORY></HISTORY_RECORDS></VM>"
    )


def one_line(done: subprocess.CompletedProcess[str], cls: type[errors.OnestorError]) -> str:
    """The one line of a failed action."""
    assert done.stdout == ""
    assert done.returncode == cls.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1 and done.stderr.endswith(lines[0] + "\n")
    return lines[0]


class TestAnswers:
    @pytest.mark.parametrize("version", ["6.4.0", "6.6.0", "6.8.0", "7.4.1"])
    def test_cp_answers_source_and_format(self, fe: FrontEnd, version: str) -> None:
        fe.version(version)
        file = draw(fe.incoming / "a 'b'; $(touch c)", "A-")
        message = fe.message(ID="4", PATH=str(file))
        in_argv = version < "6.8"
        words = [message, "4"] if in_argv else ["4"]
        done = fe.run("datastore", "cp", *words, stdin="" if in_argv else message)
        assert done.returncode == 0, done.stderr
        match = re.fullmatch(r"(/.*//datastores/1/[0-9a-f]{32}) raw\n", done.stdout)
        assert match
        assert Path(match[1]).read_bytes() == file.read_bytes()
        name = Path(match[1]).name
        assert listing(fe.images) == [f".{name}.manifest", name]
        expected = (
            r"INFO: cp: image 4 from /.*: raw, 2 MB, [\d.]+ s\n" if version == "7.4.1" else ""
        )
        assert re.fullmatch(expected, done.stderr)
        assert not list(fe.root.rglob("c"))

    @pytest.mark.parametrize(("size", "answer"), [(1, "1"), (MB, "1"), (MB + 1, "2")])
    def test_H11_stat_answers_megabytes(self, fe: FrontEnd, size: int, answer: str) -> None:
        (fe.incoming / "file").write_bytes(b"x" * size)
        message = fe.message(PATH=str(fe.incoming / "file"))
        done = fe.run("datastore", "stat", "12", stdin=message)
        assert (done.returncode, done.stdout, done.stderr) == (0, answer + "\n", "")

    def test_rm_answers_nothing_and_also_twice(self, fe: FrontEnd) -> None:
        image = draw(fe.images / "0a", "A")
        message = fe.message(SOURCE=str(image).replace("/datastores", "//datastores"))
        for said in ("INFO: rm: .* removed\n", "WARN: rm: .* was not there\n"):
            done = fe.run("datastore", "rm", "4", stdin=message)
            assert (done.returncode, done.stdout) == (0, "")
            assert re.fullmatch(said, done.stderr)
        assert listing(fe.images) == []

    @pytest.mark.parametrize("kind", ["datastore", "tm"])
    def test_I11_monitor_answers_key_and_value(self, fe: FrontEnd, kind: str) -> None:
        draw(fe.images / "7" / "disk.0", "A")
        done = fe.run(kind, "monitor", "1", stdin=fe.message())
        lines = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        for name, line in zip(("USED_MB", "TOTAL_MB", "FREE_MB"), lines):
            assert re.fullmatch(rf"{name}=\d+", line)
        assert len(lines) == (4 if kind == "tm" else 3)

    def test_I8_what_thin_disks_may_grow_to(self, fe: FrontEnd) -> None:
        """Two disks of 10 GiB, of which nothing is there yet, and files that are none."""
        option = "<MONITOR_ALLOCATED>YES</MONITOR_ALLOCATED>"
        for name in ("7/disk.0", "8/disk.1", "0a", "0b"):
            (fe.images / name).parent.mkdir(parents=True, exist_ok=True)
            qemu_img("create", "-q", "-f", "qcow2", fe.images / name, "10G")
        draw(fe.images / "7" / "disk.0.snap" / "0", "A")
        draw(fe.images / ".0a.part", "A")
        for kind in ("tm", "datastore"):
            said = fe.run(kind, "monitor", "1", stdin=fe.message(option)).stdout
            assert said.splitlines()[3] == "ALLOCATED_MB=20480"
            assert "ALLOCATED_MB" not in fe.run(kind, "monitor", "1", stdin=fe.message()).stdout

    @pytest.mark.parametrize("action", ["clone", "ln"])
    def test_clone_and_ln_put_the_disk_in_place(
        self, fe: FrontEnd, oned: Oned, action: str
    ) -> None:
        image = draw(fe.images / "0a", "A-")
        draw(fe.images / "0a.snap" / "10", "S")
        oned.answers["vm", 7] = vm(disk="<SIZE>5</SIZE><ORIGINAL_SIZE>2</ORIGINAL_SIZE>")
        target = f"{HERE}:{fe.root}//datastores/100/7/disk.0"
        done = fe.run("tm", action, f"{HERE}:{image}", target, "7", "1")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert LOG_LINE.match(done.stderr)
        disk = fe.system / "7" / "disk.0"
        assert disk.read_bytes() == image.read_bytes().ljust(5 * MB, b"\0")
        assert (disk.with_name("disk.0.snap") / "10").exists() is (action == "ln")
        for _ in range(2):
            done = fe.run("tm", "delete", f"{HERE}:{fe.root}//datastores/100/7", "7", "100")
            assert done.returncode == 0
        assert listing(fe.system) == [".monitor"]


class TestFailures:
    @pytest.mark.parametrize(
        ("words", "cls"),
        [
            (["tm", "clone"], errors.InvalidInput),
            (["tm", "clone", "a", "b", "7", "1"], errors.InvalidInput),
            (["tm", "delete", f"{HERE}:/x/../100/7", "7", "1"], errors.InvalidInput),
            (["tm", "delete", f"{HERE}:/datastores/100/8", "7", "1"], errors.InvalidInput),
            (["tm", "ln", f"{HERE}:/x", f"{HERE}:/d/100/7/disk.0", "7", "1"], errors.Missing),
            (["datastore", "cp"], errors.InvalidInput),
            (["datastore", "stat", "1"], errors.InvalidInput),
            (["datastore", "rm", "!!", "1"], errors.InvalidInput),
            (["datastore", "monitor", "PFZNLz4=", "1"], errors.InvalidInput),
        ],
    )  # fmt: skip
    def test_one_line_and_the_status_of_its_class(
        self, fe: FrontEnd, words: list[str], cls: type[errors.OnestorError]
    ) -> None:
        one_line(fe.run(*words), cls)

    @pytest.mark.parametrize(
        ("image", "cls", "cause"),
        [
            ({"PATH": "/etc/hostname"}, errors.NotAllowed, "RESTRICTED_DIRS"),
            ({"PATH": "INCOMING/missing"}, errors.Missing, "no such file"),
            ({"PATH": "INCOMING/zip"}, errors.InvalidInput, "zip"),
            ({"PATH": "s3://bucket/x"}, errors.InvalidInput, "sources of type s3: are not"),
            ({"PATH": "json:{}"}, errors.InvalidInput, "sources of type json: are not"),
            ({"PATH": "INCOMING/../x"}, errors.InvalidInput, "parent reference"),
            ({}, errors.InvalidInput, "IMAGE/PATH is missing"),
        ],
    )
    def test_J8_J10_stat_and_cp_refuse_alike(
        self, fe: FrontEnd, image: dict[str, str], cls: type[errors.OnestorError], cause: str
    ) -> None:
        (fe.incoming / "zip").write_bytes(b"PK\x03\x04")
        facts = {name: value.replace("INCOMING", str(fe.incoming)) for name, value in image.items()}
        for action in ("stat", "cp"):
            done = fe.run("datastore", action, "4", stdin=fe.message(ID="4", **facts))
            assert cause in one_line(done, cls)
        assert listing(fe.images) == []

    def test_H4_J2_digests_of_the_template(self, fe: FrontEnd) -> None:
        file = draw(fe.incoming / "file", "A")
        for digest, cls in (("0" * 32, errors.OnestorError), ("$(id)", errors.InvalidInput)):
            message = fe.message(ID="4", PATH=str(file))
            text = base64.b64decode(message).decode()
            template = f"<TEMPLATE><MD5>{digest}</MD5></TEMPLATE></IMAGE>"
            encoded = base64.b64encode(text.replace("</IMAGE>", template).encode()).decode()
            assert "MD5" in one_line(fe.run("datastore", "cp", "4", stdin=encoded), cls)
        assert listing(fe.images) == []

    def test_H6_an_image_deleted_meanwhile(self, fe: FrontEnd, oned: Oned) -> None:
        del oned.answers["image", 4]
        file = draw(fe.incoming / "file", "A")
        done = fe.run("datastore", "cp", "4", stdin=fe.message(ID="4", PATH=str(file)))
        assert "image 4 was deleted meanwhile" in one_line(done, errors.Superseded)
        assert listing(fe.images) == []

    def test_H6_an_oned_that_cannot_be_asked_keeps_the_image(self, fe: FrontEnd) -> None:
        fe.environment["ONE_XMLRPC"] = "http://127.0.0.1:1/"
        file = draw(fe.incoming / "file", "A")
        done = fe.run("datastore", "cp", "4", stdin=fe.message(ID="4", PATH=str(file)))
        assert done.returncode == 0
        assert len([name for name in listing(fe.images) if not name.startswith(".")]) == 1
        assert re.search("^WARN: cp: ask oned .*; the image is kept$", done.stderr, re.MULTILINE)

    @pytest.mark.parametrize("after", [vm(23), vm(15), vm(1, sequence=1), None])
    def test_trap8_a_vm_nobody_wants_any_more(
        self, fe: FrontEnd, oned: Oned, after: str | None
    ) -> None:
        image = draw(fe.images / "0a", "A")
        answers = iter([vm(), after])
        oned.answers["vm", 7] = lambda: next(answers)
        done = fe.run("tm", "clone", f"{HERE}:{image}", f"{HERE}:{fe.system}/7/disk.0", "7", "1")
        one_line(done, errors.Superseded)
        assert listing(fe.system) == []

    @pytest.mark.parametrize("version", ["5.12.0", "6.0.0", "6.10.0", "7.4.1"])
    def test_the_dialect_of_the_version(self, fe: FrontEnd, version: str) -> None:
        fe.version(version)
        done = fe.run("tm", "delete", "x", "7", "1")
        line = "read the arguments: no host in 'x'\n"
        marked = f"ERROR MESSAGE --8<------\n{line}ERROR MESSAGE ------>8--\n"
        assert done.stderr == (marked if version in ("5.12.0", "6.0.0") else line)

    def test_bad_settings_are_named(self, fe: FrontEnd) -> None:
        fe.configure("datastore", "CONVERT_TIMEOUT=soon")
        file = draw(fe.incoming / "file", "A")
        message = fe.message(ID="4", PATH=str(file))
        assert "CONVERT_TIMEOUT of /" in one_line(
            fe.run("datastore", "cp", "4", stdin=message), errors.InvalidInput
        )
        message = fe.message("<SPARSE>perhaps</SPARSE>", ID="4", PATH=str(file))
        fe.configure("datastore", "CONVERT_TIMEOUT=9")
        assert "SPARSE of datastore 1 is 'perhaps'" in one_line(
            fe.run("datastore", "cp", "4", stdin=message), errors.InvalidInput
        )
        fe.configure("datastore", "no assignment")
        assert "onestor.conf: line" in one_line(
            fe.run("datastore", "cp", "4", stdin=message), errors.InvalidInput
        )

    @pytest.mark.parametrize(
        "body", ["1 / 0", "print('noise'); raise KeyError('x\\ny')", "request.stdin.none()"]
    )
    def test_K5_our_own_mistakes_are_one_line_and_a_traceback_in_the_log(
        self, fe: FrontEnd, body: str
    ) -> None:
        fe.rewrite(TM_DELETE, f"def run(request: object) -> None:\n    {body}\n")
        done = fe.run("tm", "delete", "x")
        assert done.stdout == "" and "Traceback" not in done.stderr
        assert done.returncode == 254
        assert done.stderr.splitlines()[-1].endswith("(the log has more)")
        assert "Traceback" in fe.log.read_text()

    def test_an_action_that_prints_and_succeeds_answers_only_its_answer(self, fe: FrontEnd) -> None:
        fe.rewrite(
            TM_DELETE,
            "def run(request: object) -> str:\n    print('noise')\n    return 'answer'\n",
        )
        assert fe.run("tm", "delete").stdout == "answer\n"

    def test_nothing_of_a_library_runs_once_the_action_is_over(self, fe: FrontEnd) -> None:
        """OpenSSL's clean-up at exit kills processes in which one of its threads is at work."""
        fe.rewrite(
            TM_DELETE,
            "import atexit, os\ndef run(request: object) -> str:\n"
            "    atexit.register(os.abort)\n    return 'answer'\n",
        )
        done = fe.run("tm", "delete")
        assert (done.returncode, done.stdout) == (0, "answer\n")

    def test_a_wrong_crash_point_is_an_error(self, fe: FrontEnd) -> None:
        fe.environment[crashpoints.VARIABLE] = "clone.somewhere"
        done = fe.run("tm", "delete", "x", "7", "1")
        assert done.returncode == 254
        assert "no crash point is called" in done.stderr

    def test_trap8_a_cancelled_action_succeeds_all_the_same(self, fe: FrontEnd) -> None:
        """Nobody reads stdout and stderr any more."""
        image = draw(fe.images / "0a", "A")
        read, write = os.pipe()
        os.close(read)
        for action, facts in (("stat", {"PATH": str(fe.incoming)}), ("rm", {"SOURCE": str(image)})):
            draw(fe.incoming / "file", "A")
            if action == "stat":
                facts = {"PATH": str(fe.incoming / "file")}
            process = fe.start("datastore", action, "4", stdout=write, stderr=write)
            process.communicate(fe.message(**facts))
            assert process.returncode == 0, action
        os.close(write)
        assert not image.exists()

    def test_trap38_no_bytecode_in_remotes(self, fe: FrontEnd) -> None:
        before = listing(fe.remotes)
        fe.run("datastore", "monitor", "1", stdin=fe.message())
        fe.run("tm", "delete", f"{HERE}:{fe.system}/7", "7", "100")
        assert listing(fe.remotes) == before


@pytest.mark.parametrize(("state", "kept"), [("6", False), ("9", False), ("3", True)])
def test_trap17_the_front_end_s_copy_goes_though_the_host_is_dead(
    fe: FrontEnd, oned: Oned, state: str, kept: bool
) -> None:
    """A stopped VM is deleted: oned names its last host, its files are here."""
    programs = fe.root / "bin"
    programs.mkdir()
    ssh = programs / "ssh"
    ssh.write_text("#!/bin/sh\nprintf 'hostname 127.0.0.1\\nport 1\\nuser nobody\\n'\n")
    ssh.chmod(0o755)
    fe.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    draw(fe.system / "7" / "disk.0", "A")
    oned.answers["vm", 7] = vm().replace("<STATE>3", f"<STATE>{state}")
    for _ in range(2):
        done = fe.run("tm", "delete", f"elsewhere:{fe.system}/7", "7", "100")
        assert "elsewhere: " in one_line(done, errors.HostUnreachable)
        assert (fe.system / "7" / "disk.0").exists() is kept
    done = fe.run("tm", "delete", f"elsewhere:{fe.system}/7/disk.0", "7", "100")
    one_line(done, errors.HostUnreachable)
    assert (fe.system / "7").exists() is kept


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_H3_K15_an_interrupted_action_leaves_nothing(
    fe: FrontEnd, oned: Oned, signum: signal.Signals
) -> None:
    """Interrupted at the end of a copy, while it waits for oned's answer."""
    file = draw(fe.incoming / "file", "A")
    process = fe.start("datastore", "cp", "4")
    unfinished: list[str] = []

    def interrupt() -> str:
        unfinished.extend(temporaries(fe.images))
        os.killpg(process.pid, signum)
        return "<IMAGE/>"

    oned.answers["image", 4] = interrupt
    stdout, stderr = process.communicate(fe.message(ID="4", PATH=str(file)))
    assert len(unfinished) == 1
    assert stdout == ""
    wait_until(lambda: listing(fe.images) == [], timeout=5.0)
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, stderr) == (143, "cp: terminated\n")


def test_an_interrupt_waits_for_no_host_that_was_asked() -> None:
    code = """
import threading
from onestor_lib.agent import signals
from onestor_lib.frontend import parallel
signals.end_by_exception()
def hang(name):
    print("asked", flush=True)
    threading.Event().wait()
parallel.ask(["one"], hang)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout and process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) != 0
