"""Running programs: argv lists, a deadline each, both outputs drained, and the reason in words.

The form follows ganeti's RunResult (one object for status, signal, time-out and outputs) and
vdsm's commands.run (one method that turns it into the error).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from onestor_lib.agent.errors import CommandFailed

LINGER = 2.0  # seconds between SIGTERM and SIGKILL
REAP = 10.0  # seconds until a killed program that is still there counts as stuck in the kernel
MAX_STDOUT = 1 << 20  # bytes; more than any answer we read, and one line of JSON at worst
STDERR_TAIL = 16 << 10  # bytes kept: the last lines hold the cause
# Distributions keep mkfs and friends where an unprivileged PATH may not look (known failure K12).
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class Result(NamedTuple):
    """How a program ended."""

    argv: tuple[str, ...]
    status: int  # exit status, or minus the signal number
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out

    @property
    def reason(self) -> str:
        """Why it failed: the last lines of its error output behind how it ended."""
        if self.timed_out:
            how = f"timed out after {self.seconds:.0f} s"
        elif self.status < 0:
            how = f"killed by {signal_name(-self.status)}"
        else:
            how = f"exit status {self.status}"
        said = last_lines(self.stderr)
        return f"{self.argv[0]}: {said} ({how})" if said else f"{self.argv[0]}: {how}"

    def check(self, step: str, *, path: str = "") -> Result:
        """Return self, or raise :class:`CommandFailed` naming ``step`` and ``path``."""
        if not self.ok:
            raise CommandFailed(step, self.reason, path=path)
        return self

    def __str__(self) -> str:
        return shlex.join(self.argv)  # can be pasted into a shell


def last_lines(output: bytes | bytearray) -> str:
    """The last three lines of a program's error output, which hold the cause, as one."""
    lines = output.decode("utf-8", "replace").strip().splitlines()[-3:]
    return "; ".join(line.strip() for line in lines)


def signal_name(number: int) -> str:
    """ "SIGTERM" and the like; real-time signals have only numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def search_path(path: str | None = None) -> str:
    """``path`` (default: $PATH) with the system's directories behind it."""
    given = (os.environ.get("PATH", "") if path is None else path).split(os.pathsep)
    return os.pathsep.join([*filter(None, given), *(d for d in SEARCH if d not in given)])


def find(program: str, step: str) -> str:
    """The path of ``program``; raises :class:`CommandFailed` naming the missing tool."""
    found = shutil.which(program, path=search_path())
    if found is None:
        raise CommandFailed(step, f"{program} is not installed (looked in {search_path()})")
    return found


class Limits(NamedTuple):
    """What a program that reads hostile data may use (known failure J15)."""

    cpu_seconds: int = 30
    address_space: int = 1 << 30  # bytes


def command(argv: Sequence[str], step: str, limits: Limits | None = None) -> list[str]:
    """What is really started for ``argv``: it dies with us, and keeps the limits.

    Raises :class:`CommandFailed` when the program is not installed.
    """
    bounds = []
    if limits:
        bounds = [
            find("prlimit", step),
            f"--cpu={limits.cpu_seconds}",
            f"--as={limits.address_space}",
            "--",
        ]
    return [*_dying_with_us(), *bounds, find(argv[0], step), *argv[1:]]


def environment() -> dict[str, str]:
    """The environment of the programs we start: ours, in the C locale."""
    return {**os.environ, "LC_ALL": "C", "PATH": search_path()}


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    step: str = "run a program",
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: bytes = b"",
) -> Result:
    """Run ``argv`` to its end or for ``timeout`` seconds, then TERM, linger, KILL.

    The program gets its own process group, ``stdin`` and the C locale. When we die by
    SIGKILL it dies too (prctl(2) PR_SET_PDEATHSIG, set by util-linux' setpriv because code between
    fork and exec is not safe in a process with threads). Raises :class:`CommandFailed` when the
    program is not installed; judge the rest with :meth:`Result.check`.
    """
    started = command(argv, step, limits)
    begin = time.monotonic()
    with _readable(stdin) as given:
        child = subprocess.Popen(
            started,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), **(env or {})},
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    stdout = Drain(child.stdout, keep_first=MAX_STDOUT)
    stderr = Drain(child.stderr, keep_last=STDERR_TAIL)
    exited = _Exit(child.pid)
    timed_out = True
    try:
        timed_out = not exited.within(timeout)
    finally:
        _end_group(child, exited)
    # Nobody of the group lives, so the pipes are at their end unless a daemon left the group.
    for drain in (stdout, stderr):
        drain.join(LINGER)
    return Result(
        tuple(argv),
        -signal.SIGKILL if child.returncode is None else child.returncode,
        bytes(stdout.kept),
        bytes(stderr.kept),
        timed_out,
        time.monotonic() - begin,
    )


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """A descriptor to read ``content`` from; a file, so that nobody need write meanwhile."""
    if not content:
        yield subprocess.DEVNULL
        return
    import tempfile

    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


@functools.lru_cache(maxsize=1)
def _dying_with_us() -> tuple[str, ...]:
    """What makes a program die when we do; nothing where setpriv(1) is older than 2.33.

    Nor where its file has not the option's name in it, as a wrapper's. Without it a program
    outlives a SIGKILL of ours and ends by itself; what it writes is a temporary.
    """
    setpriv = shutil.which("setpriv", path=search_path())
    if setpriv is None:
        return ()
    # Running it to find out would cost each agent and each action 3 ms.
    with contextlib.suppress(OSError), open(setpriv, "rb") as program:
        if b"pdeathsig" in program.read():
            return (setpriv, "--pdeathsig", "KILL", "--")
    return ()


class Connection:
    """A program as a connection: what is sent is its stdin, what is received its stdout."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv0 = argv[0]
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                list(argv),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        self._said = Drain(self._child.stderr, keep_last=STDERR_TAIL)

    def end(self) -> str:
        """End the program, also one that still tries to connect; its last words."""
        self.socket.close()
        exited = _Exit(self._child.pid)
        ended_itself = exited.within(0.5)
        _end_group(self._child, exited)
        self._said.join(LINGER)
        said = last_lines(self._said.kept)
        if not ended_itself or self._child.returncode is None:
            return said
        return f"{said} ({self._argv0}: status {self._child.returncode})".strip()


class Drain(threading.Thread):
    """Reads a pipe to its end and keeps a bounded part (known failure K4)."""

    def __init__(self, pipe: IO[bytes] | None, *, keep_first: int = 0, keep_last: int = 0) -> None:
        super().__init__(daemon=True)
        assert pipe is not None
        self._pipe, self._first, self._last = pipe, keep_first, keep_last
        self.kept = bytearray()
        self.start()

    def run(self) -> None:
        with self._pipe:
            while block := os.read(self._pipe.fileno(), 1 << 16):
                if self._last:
                    self.kept += block
                    del self.kept[: -self._last]
                elif len(self.kept) < self._first:
                    self.kept += block


class _Exit(threading.Thread):
    """Notices that a child has exited without reaping it: its number stays taken until we do."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._event = threading.Event()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ChildProcessError):  # another look at it was faster
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        self._event.set()

    def within(self, seconds: float) -> bool:
        return self._event.wait(seconds)


def status_of(child: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The status of a program of :func:`end_group` that ends by itself within ``timeout`` seconds.

    What it has started ends with it. None when it has not ended.
    """
    if child.returncode is None:
        exited = _Exit(child.pid)
        if exited.within(timeout):
            _end_group(child, exited)
    return child.returncode


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a program that was started with a session of its own, and all it has started."""
    if child.returncode is None:
        _end_group(child, _Exit(child.pid))


def _end_group(child: subprocess.Popen[bytes], exited: _Exit) -> None:
    """Whatever still lives in the child's process group ends now; then the child is reaped."""
    if not exited.within(0):
        os.killpg(child.pid, signal.SIGTERM)
        exited.within(LINGER)
    os.killpg(child.pid, signal.SIGKILL)  # stragglers, too: they hold our pipes
    if exited.within(REAP):
        child.wait()  # else no signal reaches it where it is: we go on
