"""What this process counts for monitoring; it goes to the front-end with the next result.

Each count has a name, the host it was made on, a kind ("" where there is but one) and a value.
Those of an agent that another agent uses go the same way.
"""

from __future__ import annotations

import os
import threading
from typing import Any

EVICTIONS = "evictions_total"  # by reason
FILL_SECONDS = "cache_fill_seconds_total"
LOCK_SECONDS = "lock_wait_seconds_total"
NAMES = (EVICTIONS, FILL_SECONDS, LOCK_SECONDS)

_counts: dict[tuple[str, str, str], float] = {}
_lock = threading.Lock()


def add(name: str, value: float, kind: str = "") -> None:
    """Count on this host."""
    merge([[name, os.uname().nodename, kind, value]])


def merge(counts: list[list[Any]]) -> None:
    """Take over what another agent has counted."""
    with _lock:
        for name, host, kind, value in counts:
            key = str(name), str(host), str(kind)
            _counts[key] = _counts.get(key, 0) + float(value)


def take() -> list[list[Any]]:
    """All since the last time."""
    with _lock:
        found = [[*key, value] for key, value in _counts.items()]
        _counts.clear()
    return found
