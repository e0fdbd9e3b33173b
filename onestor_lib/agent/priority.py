"""Bulk work gives way to the guests: nice(1) and ionice(1) for a process that copies images."""

from __future__ import annotations

import contextlib
import os

from onestor_lib.agent import process
from onestor_lib.agent.errors import OnestorError

_CLASSES = {"idle": "3", "best-effort": "2"}


def lower(nice: int, ionice: str) -> None:
    """Lower the priority of this process, and of the threads and programs it starts from now on.

    ``nice`` is the value to reach, ``ionice`` "idle", "best-effort:LEVEL" or "none". A machine
    without ionice(1) copies all the same.
    """
    current = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > current:
        os.nice(nice - current)
    name, _, level = ionice.partition(":")
    if name in _CLASSES:
        options = ["-c", _CLASSES[name], *(["-n", level] if level else [])]
        with contextlib.suppress(OnestorError):
            argv = ["ionice", *options, "-p", str(os.getpid())]
            process.run(argv, timeout=10.0, step="lower the I/O priority")
