"""agent.process: real programs that are loud, deaf, missing or too greedy."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed, Terminated
from onestor_lib.agent.process import Limits, run
from tests.tool.conftest import ROOT, is_alive
from tests.waiting import wait_until


def python(code: str, *argv: str) -> list[str]:
    return [sys.executable, "-c", code, *argv]


def test_a_result_says_how_it_ended() -> None:
    result = run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=5)
    assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert not result.ok and not result.timed_out and result.seconds < 5
    assert run(["true"], timeout=5).ok


def test_J2_arguments_are_passed_as_they_are() -> None:
    words = ["a b", "$(touch x)", "`id`", "'\"", "-n", "*", "\n", "ü"]
    result = run(python("import sys; print(ascii(sys.argv[1:]))", *words), timeout=5)
    assert result.stdout.decode().strip() == ascii(words)
    assert "'$(touch x)'" in str(result), "the command can be pasted into a shell"


def test_K4_one_mebibyte_on_both_outputs() -> None:
    code = "import sys\nfor _ in range(16):\n sys.stderr.write('e' * 65536)\n"
    code += " sys.stdout.write('o' * 65536)"
    result = run(python(code), timeout=20)
    assert result.ok and len(result.stdout) == 1 << 20
    assert len(result.stderr) == process.STDERR_TAIL, "the last part is kept"


def test_K6_the_last_lines_of_stderr_are_the_cause() -> None:
    script = "for n in 1 2 3 4 5; do echo line $n >&2; done; exit 1"
    with pytest.raises(CommandFailed) as failure:
        run(["sh", "-c", script], timeout=5).check("copy", path="/p")
    assert str(failure.value) == "copy /p: sh: line 3; line 4; line 5 (exit status 1)"
    with pytest.raises(CommandFailed, match="copy: sh: killed by SIGKILL"):
        run(["sh", "-c", "kill -KILL $$"], timeout=5).check("copy")


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_K7_the_deadline_ends_the_whole_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(process, "LINGER", 0.3)
    note = tmp_path / "pids"
    script = f"{trap} sleep 60 & echo $! $$ >{note}; while :; do wait; sleep 60; done"
    begin = time.monotonic()
    result = run(["sh", "-c", script], timeout=0.3)
    assert result.timed_out and not result.ok
    assert re.fullmatch("sh: timed out after [0-9] s", result.reason)
    assert time.monotonic() - begin < 4
    for pid in note.read_text().split():
        wait_until(lambda pid=pid: not is_alive(int(pid)))  # type: ignore[misc]


def test_K7_stragglers_of_a_program_that_ended_end_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    begin = time.monotonic()
    assert run(["sh", "-c", f"sleep 60 & echo $! >{note}"], timeout=5).ok
    assert time.monotonic() - begin < 4, "the open pipe of a background process holds nobody up"
    wait_until(lambda: not is_alive(int(note.read_text())))


def test_K7_a_number_is_given_back_only_when_nobody_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group is killed by the number of its leader: that must not be somebody else's by then."""
    states: dict[int, bool] = {}
    killpg = os.killpg

    def look(group: int, signum: int) -> None:
        states[group] = Path(f"/proc/{group}/stat").exists() and states.get(group, True)
        killpg(group, signum)

    monkeypatch.setattr(os, "killpg", look)
    monkeypatch.setattr(process, "LINGER", 0.3)
    assert run(["true"], timeout=5).ok
    assert run(["sh", "-c", "trap '' TERM; sleep 60"], timeout=0.2).timed_out
    assert len(states) == 2 and all(states.values())
    for group in states:
        with pytest.raises(ChildProcessError):
            os.waitpid(group, os.WNOHANG)  # it is reaped in the end


def test_K7_a_caller_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def interrupt(signum: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Terminated):
            run(["sh", "-c", f"echo $$ >{note}; exec sleep 60"], timeout=60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_alive(int(note.read_text()))


class TestConnection:
    def test_what_is_sent_and_received(self) -> None:
        way = process.Connection(["tr", "a-z", "A-Z"])
        way.socket.settimeout(10)
        way.socket.sendall(b"hello")
        way.socket.shutdown(socket.SHUT_WR)
        assert way.socket.recv(100) == b"HELLO"
        assert way.socket.recv(100) == b"", "its end is the end"
        way.end()

    def test_its_last_words(self) -> None:
        way = process.Connection(["sh", "-c", "echo trouble >&2; exit 7"])
        way.socket.settimeout(10)
        assert way.socket.recv(100) == b""
        assert way.end() == "trouble (sh: status 7)"

    @pytest.mark.parametrize("program", ["exec cat", "trap '' TERM; while :; do sleep 1; done"])
    def test_K7_it_ends_with_the_connection(self, tmp_path: Path, program: str) -> None:
        """Also a program that never looks at its connection."""
        note = tmp_path / "pid"
        way = process.Connection(["sh", "-c", f"echo $$ >{note}; {program}"])
        wait_until(lambda: note.exists() and note.read_text().strip())
        assert is_alive(int(note.read_text()))
        way.end()
        assert not is_alive(int(note.read_text()))


def test_K7_a_killed_caller_takes_its_program_along(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import sys\nfrom onestor_lib.agent import process\n"
        "process.run(['sh', '-c', 'echo $$ >' + sys.argv[1] + '; exec sleep 60'], timeout=60)"
    )
    caller = subprocess.Popen(python(code, str(note)), cwd=ROOT)
    wait_until(lambda: note.exists() and note.read_text().strip())
    caller.kill()
    assert caller.wait() == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(note.read_text())))


def test_K12_tools_in_sbin_are_found_and_missing_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.find("mkfs.ext4", "format").endswith("sbin/mkfs.ext4")
    mine = tmp_path / "mkfs.ext4"
    mine.write_text("#!/bin/sh\nexit 7\n")
    mine.chmod(0o755)
    assert run(["mkfs.ext4"], timeout=5).status == 7, "PATH comes first"
    with pytest.raises(CommandFailed, match=r"^format: mkfs.nothing is not installed"):
        run(["mkfs.nothing"], timeout=5, step="format")


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("x = bytearray(1 << 30)", Limits(address_space=300 << 20)),
        ("while True: pass", Limits(cpu_seconds=1)),
    ],
)
def test_J15_limits_are_a_failure(code: str, limits: Limits) -> None:
    assert not run(python(code), timeout=20, limits=limits).ok
    assert run(python("x = 1"), timeout=20, limits=limits).ok


def test_the_program_s_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = "import os, sys; print(os.environ['LC_ALL'], os.environ['X'], sys.stdin.read() == '',"
    code += " os.getsid(0) == os.getpid())"
    result = run(python(code), timeout=5, env={"X": "1"})
    assert result.stdout == b"C 1 True True\n"


def test_descriptors_do_not_leak() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    code = "import os, sys; os.fstat(int(sys.argv[1]))"
    assert not run(python(code, str(write)), timeout=5).ok
    assert run(python(code, str(write)), timeout=5, pass_fds=[write]).ok
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("is_there", [True, False])
def test_K13_an_old_setpriv_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """util-linux of Red Hat 8 knows no --pdeathsig; without it programs still run."""
    monkeypatch.setattr(process, "SEARCH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "true").symlink_to("/bin/true")
    if is_there:
        program = tmp_path / "setpriv"
        program.write_text("#!/bin/sh\necho unrecognized option >&2\nexit 1\n")
        program.chmod(0o755)
    process._dying_with_us.cache_clear()
    try:
        assert process._dying_with_us() == ()
        assert run(["true"], timeout=5).ok
    finally:
        process._dying_with_us.cache_clear()
