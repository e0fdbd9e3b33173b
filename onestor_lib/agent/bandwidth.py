"""A rate that all transfers over one link share: REPLICA_BWLIMIT_MB_S.

A link is this machine and the one it sends to. Each sender reserves the time its next bytes take
in a small file that belongs to the link, and waits for its turn: so whatever number of processes
send, together they keep the rate, and none starves.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from onestor_lib.agent.errors import NotAllowed

_NS = 1_000_000_000
_LONGEST = 60 * _NS  # a turn farther away than that is a leftover of another boot's clock
_BURST = _NS // 20  # what was not used for so long may be caught up with


class Limit:
    """Keeps the rate of ``bytes_per_second`` on the link to ``receiver``."""

    def __init__(self, receiver: str, bytes_per_second: int, directory: Path | None = None) -> None:
        self._rate = bytes_per_second
        name = hashlib.sha256(receiver.encode("utf-8")).hexdigest()[:32]
        self._path = _own_directory(directory or Path("/var/tmp")) / f"link-{name}"

    def wait(self, count: int, on_pause: Callable[[], None]) -> None:
        """Return when ``count`` bytes may be sent; ``on_pause`` is called once a second."""
        turn = self._reserve(count * _NS // self._rate)
        while (left := turn - time.monotonic_ns()) > 0:
            time.sleep(min(left / _NS, 1.0))
            on_pause()

    def _reserve(self, duration: int) -> int:
        """The start (CLOCK_MONOTONIC, ns) of the next free span of ``duration`` ns, now ours."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for microseconds by whoever has it
            now = time.monotonic_ns()
            free = now
            with contextlib.suppress(struct.error):
                (free,) = struct.unpack(">Q", os.pread(fd, 8, 0))
            if free > now + _LONGEST:
                free = now
            start = max(free, now - _BURST)
            os.pwrite(fd, struct.pack(">Q", start + duration), 0)
        finally:
            os.close(fd)
        return start


def _own_directory(parent: Path) -> Path:
    """A directory that only this user can write to; ``parent`` is open to everybody."""
    path = parent / f"onestor-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise NotAllowed("limit the bandwidth", "not a directory of ours alone", path=str(path))
    return path
