"""Locks that end with their process: flock(2) with a deadline and a note of who holds it.

Lock files are never removed while their directory lives, never truncated by somebody who merely
tries, and hold one line about the holder. A lock file may vanish with its directory (a VM was
deleted): whoever gets a lock therefore makes sure that the name still leads to the file locked.

A holder at long work says now and then that it makes progress (:meth:`Held.progress`, the time of
the lock file); others wait as long as it does (known failure A5).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onestor_lib.agent import counters
from onestor_lib.agent.errors import NO_SPACE, LockTimeout

_PAUSE = 0.05  # seconds between two tries
_TICK = 1.0  # seconds between two signs of progress of work that cannot give them itself
_NOTE = 512  # bytes of a lock file that are read


def _nothing() -> None:
    """What nobody waits for."""


class Held:
    """A lock that is held."""

    def __init__(self, fd: int, path: Path, purpose: str, *, is_shared: bool = False) -> None:
        self._fd, self._path, self._purpose = fd, path, purpose
        before = os.fstat(fd)
        self._sign()
        if is_shared:  # one reader more is no progress for those who wait for the last to end
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))

    def progress(self) -> None:
        """Tell those who wait that the work goes on."""
        os.utime(self._fd)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Tell of progress as long as the ``with`` block works on this machine's own files."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(_TICK):
                self.progress()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def share(self, timeout: float) -> None:
        """Let others share the lock from now on.

        The kernel may give it to somebody else in between (flock(2)): what was true under the
        exclusive lock has to be asked again. Raises :class:`LockTimeout`.
        """
        _take(self._fd, self._path, fcntl.LOCK_SH, timeout)

    def _sign(self) -> None:
        who = f"{os.uname().nodename} pid {os.getpid()}"
        note = f"{who}, {self._purpose} since {int(time.time())}\n".encode()
        os.ftruncate(self._fd, 0)
        written = 0
        try:
            written = os.pwrite(self._fd, note, 0)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
        if written < len(note):
            # Whoever makes room on a full disk needs locks, too. Half a note may tell a wrong time.
            os.ftruncate(self._fd, 0)


@contextlib.contextmanager
def exclusive(
    path: Path, *, purpose: str, timeout: float, on_progress: Callable[[], None] = _nothing
) -> Iterator[Held]:
    """Hold the lock ``path`` for the ``with`` block; ``purpose`` is what others are told.

    ``on_progress`` is called when the holder we wait for makes progress. Raises
    :class:`LockTimeout` naming the holder after ``timeout`` seconds without progress of it, and
    ``FileNotFoundError`` when the directory is gone.
    """
    with _locked(path, fcntl.LOCK_EX, timeout, on_progress) as fd:
        yield Held(fd, path, purpose)


@contextlib.contextmanager
def shared(
    path: Path, *, purpose: str, timeout: float, on_progress: Callable[[], None] = _nothing
) -> Iterator[Held]:
    """As :func:`exclusive`, together with others who share the lock."""
    with _locked(path, fcntl.LOCK_SH, timeout, on_progress) as fd:
        yield Held(fd, path, purpose, is_shared=True)


@contextlib.contextmanager
def exclusive_now(path: Path, *, purpose: str) -> Iterator[bool]:
    """Hold the lock for the ``with`` block if nobody else does; whether that is so."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, purpose=purpose, timeout=0))
        except (LockTimeout, OSError):  # one we may not even open is not ours to take
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock exclusively just now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # nobody can tell
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def become_writer(fd: int, path: Path, timeout: float) -> None:
    """Make sure that nobody else writes the open temporary ``path`` as long as ``fd`` is open.

    A writer whose action has ended may need a while to notice; one that comes late finds that
    the file has another name. Raises :class:`LockTimeout` and ``FileNotFoundError``.
    """
    try:
        _take(fd, path, fcntl.LOCK_EX, timeout)
    except LockTimeout as error:
        cause = f"an earlier transfer has not ended after {timeout:.0f} s"
        raise LockTimeout("write", cause, path=str(path)) from error
    if not _same_file(fd, path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def holder(path: Path) -> str:
    """What the lock file says of its holder, present or past."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            note = file.read(_NOTE).decode("utf-8", "replace").strip()
        who, _, since = note.rpartition(" since ")
        if since.isdigit():
            return f"{who} for {max(0, int(time.time()) - int(since))} s"
    return "an unknown process"


@contextlib.contextmanager
def _locked(
    path: Path, mode: int, timeout: float, on_progress: Callable[[], None]
) -> Iterator[int]:
    begin = time.monotonic()
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _take(fd, path, mode, timeout, on_progress)
            if _same_file(fd, path):
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was removed with its directory while we waited
    if (waited := time.monotonic() - begin) > _PAUSE:
        counters.add(counters.LOCK_SECONDS, waited)
    try:
        yield fd
    finally:
        os.close(fd)  # ends the flock


def _take(
    fd: int, path: Path, mode: int, timeout: float, on_progress: Callable[[], None] = _nothing
) -> None:
    seen = os.fstat(fd).st_mtime_ns
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if not _same_file(fd, path):
            return  # nobody will find it under this name any more
        if (now := os.fstat(fd).st_mtime_ns) != seen:
            seen, deadline = now, time.monotonic() + timeout
            on_progress()
        if time.monotonic() >= deadline:
            cause = f"still held by {holder(path)} after {timeout:.0f} s"
            raise LockTimeout("wait for the lock", cause, path=str(path))
        time.sleep(_PAUSE)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
