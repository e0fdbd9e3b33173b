"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from typing import Callable


def wait_until(
    condition: Callable[[], object], what: str, timeout: float = 10.0, interval: float = 0.005
) -> None:
    """Return once `condition()` is true; raise TimeoutError naming `what` at the deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)
