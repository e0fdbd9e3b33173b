"""Locks that end with their process: flock(2) with a deadline and a note of who holds it.

Lock files are never removed while their directory lives, never truncated by somebody who merely
tries, and hold one line about the holder. A lock file may vanish with its directory (a VM was
deleted): whoever gets a lock therefore makes sure that the name still leads to the file locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent.errors import LockTimeout

_PAUSE = 0.05  # seconds between two tries


@contextlib.contextmanager
def exclusive(path: Path, *, purpose: str, timeout: float) -> Iterator[None]:
    """Hold the lock ``path`` for the ``with`` block; ``purpose`` is what others are told.

    Raises :class:`LockTimeout` naming the holder after ``timeout`` seconds, and
    ``FileNotFoundError`` when the directory is gone.
    """
    fd = _acquire(path, time.monotonic() + timeout, timeout)
    try:
        _sign(fd, purpose)
        yield
    finally:
        os.close(fd)  # ends the flock


def holder(path: Path) -> str:
    """What the lock file says of its holder, present or past."""
    with contextlib.suppress(OSError):
        note = path.read_text(encoding="utf-8", errors="replace").strip()
        who, _, since = note.rpartition(" since ")
        if since.isdigit():
            return f"{who} for {max(0, int(time.time()) - int(since))} s"
    return "an unknown process"


def _acquire(path: Path, deadline: float, timeout: float) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(fd, path):
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise LockTimeout(
                    "wait for the lock", f"still held by {holder(path)} after {timeout:.0f} s",
                    path=str(path),
                ) from None  # fmt: skip
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EINTR:
                raise
            continue
        os.close(fd)
        time.sleep(_PAUSE)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sign(fd: int, purpose: str) -> None:
    note = f"{socket.gethostname()} pid {os.getpid()}, {purpose} since {int(time.time())}\n"
    os.ftruncate(fd, 0)
    os.pwrite(fd, note.encode("utf-8"), 0)
