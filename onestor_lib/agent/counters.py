"""What this process counts for monitoring; it goes to the front-end with the next result.

Each count has a name, the host it was made on ("" for this one: others know it by their own name
for it), a kind ("" where there is but one) and a value. Those of an agent that another agent uses
go the same way.
"""

from __future__ import annotations

import threading
from typing import Any

EVICTIONS = "evictions_total"  # by reason
FILL_SECONDS = "cache_fill_seconds_total"
LOCK_SECONDS = "lock_wait_seconds_total"
# Why an image left a cache.
NO_ROOM, NO_IMAGE, IMAGE_REMOVED = "to make room", "the image is no more", "its image was removed"
REASONS = (NO_ROOM, NO_IMAGE, IMAGE_REMOVED)
NAMES = (EVICTIONS, FILL_SECONDS, LOCK_SECONDS)

MOST = 50  # counts in one message
_counts: dict[tuple[str, str, str], float] = {}
_lock = threading.Lock()


def add(name: str, value: float, kind: str = "") -> None:
    """Count on this host."""
    with _lock:
        _count(name, "", kind, value)


def merge(peer: str, counts: list[list[Any]]) -> None:
    """Take over what the agent of the host ``peer`` has counted."""
    with _lock:
        for name, host, kind, value in counts[:MOST]:
            _count(str(name), str(host) or peer, str(kind), float(value))


def _count(name: str, host: str, kind: str, value: float) -> None:
    key = name, host, kind
    _counts[key] = _counts.get(key, 0) + value


def take() -> list[list[Any]]:
    """All since the last time."""
    with _lock:
        found = [[*key, value] for key, value in _counts.items()]
        _counts.clear()
    return found
