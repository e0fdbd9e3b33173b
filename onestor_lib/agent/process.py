"""Running programs: argv lists, a deadline each, both outputs drained, and the reason in words.

The form follows ganeti's RunResult (one object for status, signal, time-out and outputs) and
vdsm's commands.run (one method that turns it into the error).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from onestor_lib.agent.errors import CommandFailed

LINGER = 2.0  # seconds between SIGTERM and SIGKILL
MAX_STDOUT = 4 << 20  # bytes; more than any answer we read
STDERR_TAIL = 16 << 10  # bytes kept: the last lines hold the cause
# Distributions keep mkfs and friends where an unprivileged PATH may not look (known failure K12).
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class Result:
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
            how = f"killed by {signal.Signals(-self.status).name}"
        else:
            how = f"exit status {self.status}"
        lines = self.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        said = "; ".join(line.strip() for line in lines)
        return f"{self.argv[0]}: {said} ({how})" if said else f"{self.argv[0]}: {how}"

    def check(self, step: str, *, path: str = "") -> Result:
        """Return self, or raise :class:`CommandFailed` naming ``step`` and ``path``."""
        if not self.ok:
            raise CommandFailed(step, self.reason, path=path)
        return self

    def __str__(self) -> str:
        return shlex.join(self.argv)  # can be pasted into a shell


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


@dataclass(frozen=True)
class Limits:
    """What a program that reads hostile data may use (known failure J15)."""

    cpu_seconds: int = 30
    address_space: int = 1 << 30  # bytes


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    step: str = "run a program",
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run ``argv`` to its end or for ``timeout`` seconds, then TERM, linger, KILL.

    The program gets its own process group, an empty stdin and the C locale. When we die by
    SIGKILL it dies too (prctl(2) PR_SET_PDEATHSIG, set by util-linux' setpriv because code between
    fork and exec is not safe in a process with threads). Raises :class:`CommandFailed` when the
    program is not installed; judge the rest with :meth:`Result.check`.
    """
    program = find(argv[0], step)
    prefix = [find("setpriv", step), "--pdeathsig", "KILL", "--"]
    if limits:
        prefix += [
            find("prlimit", step),
            f"--cpu={limits.cpu_seconds}",
            f"--as={limits.address_space}",
            "--",
        ]
    environment = {**os.environ, "LC_ALL": "C", "PATH": search_path(), **(env or {})}
    begin = time.monotonic()
    child = subprocess.Popen(
        [*prefix, program, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )
    stdout = _Drain(child.stdout, keep_first=MAX_STDOUT)
    stderr = _Drain(child.stderr, keep_last=STDERR_TAIL)
    timed_out = False
    try:
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
    finally:
        _end_group(child)
    # Nobody of the group lives, so the pipes are at their end unless a daemon left the group.
    for drain in (stdout, stderr):
        drain.join(LINGER)
    return Result(
        tuple(argv),
        child.returncode,
        bytes(stdout.kept),
        bytes(stderr.kept),
        timed_out,
        time.monotonic() - begin,
    )


class _Drain(threading.Thread):
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


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Whatever still lives in the child's process group ends now."""
    for signum, patience in ((signal.SIGTERM, LINGER), (signal.SIGKILL, LINGER)):
        if child.returncode is not None and signum is signal.SIGTERM:
            continue  # it ended by itself: only stragglers of the group are left
        try:
            os.killpg(child.pid, signum)
        except ProcessLookupError:
            return
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
