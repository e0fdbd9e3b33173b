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
import struct
import time
from collections.abc import Callable
from pathlib import Path

_NS = 1_000_000_000
_LONGEST = 60 * _NS  # a turn farther away than that is a leftover of another boot's clock
_PATIENCE, _PAUSE = 5.0, 0.001  # seconds
_BURST = _NS // 20  # what was not used for so long may be caught up with
_CATCH_UP = 2.0  # seconds, the same for one transfer: bursts of the network must not slow it


class Limit:
    """Keeps the rate of ``bytes_per_second`` on the link to ``receiver``."""

    def __init__(self, receiver: str, bytes_per_second: int, datastores: Path) -> None:
        """The link's file lies in ``datastores``, where only the drivers' user can write."""
        self._rate = bytes_per_second
        name = hashlib.sha256(receiver.encode("utf-8")).hexdigest()[:32]
        self._path = datastores / f".onestor-link-{name}"

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
            _lock(fd)
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


def datastores_of(file: Path) -> Path:
    """Where the datastores lie of which one has ``file``, be it an image or in a VM's directory.

    Datastores and VMs have numbers for names. Of what lies elsewhere it is the directory.
    """
    for directory in file.parents:
        if directory.name.isdecimal():
            while directory.name.isdecimal():
                directory = directory.parent
            return directory
    return file.parent


class Pace:
    """Keeps one transfer of this process at ``bytes_per_second``, on average."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free = time.monotonic()

    def wait(self, count: int) -> None:
        """Return when ``count`` bytes, which have just passed, have taken their time."""
        duration = count / self._rate
        now = time.monotonic()
        self._free = max(self._free, now - max(_CATCH_UP, duration)) + duration
        if self._free > now:
            time.sleep(self._free - now)


def _lock(fd: int) -> None:
    """Lock the link's file, which is held for microseconds; without it when that is not so."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE)
