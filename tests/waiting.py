"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from typing import Callable

_LONGEST = 0.1  # seconds between two questions: some states are short


def wait_until(
    condition: Callable[[], object],
    what: str = "it",
    timeout: float = 10.0,
    interval: float = 0.005,
) -> None:
    """Return once `condition()` is true; raise TimeoutError naming `what` at the deadline.

    What takes long to ask is asked less often: what is waited for may need the processor.
    """
    deadline = time.monotonic() + timeout
    asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(max(interval, min(3 * (now - asked), _LONGEST)))
        asked = time.monotonic()
