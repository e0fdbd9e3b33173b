"""How much of what can be enumerated is tried: some of it at each run, all of it on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

EVERYWHERE = "FAULTS_EVERYWHERE" in os.environ

Item = TypeVar("Item")


def sample(items: Sequence[Item], count: int) -> Sequence[Item]:
    """At most ``count`` of ``items``, evenly spread; all of them if EVERYWHERE."""
    if EVERYWHERE or len(items) <= count:
        return items
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]
