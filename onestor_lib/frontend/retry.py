"""Trying again for a while, with growing pauses of random length so that many do not meet."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

FOR = 20.0  # seconds
_FIRST, _LONGEST = 0.1, 2.0  # seconds


def pauses() -> Iterator[float]:
    """The pauses between tries; they end when there is no time for another one."""
    deadline = time.monotonic() + FOR
    pause = _FIRST
    while time.monotonic() + pause < deadline:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(pause * 2, _LONGEST)


def after(remaining: Iterator[float]) -> bool:
    """Sleep for the next of the pauses; False when it is time to give up."""
    pause = next(remaining, None)
    if pause is None:
        return False
    time.sleep(pause)
    return True
