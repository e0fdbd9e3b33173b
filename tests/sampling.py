"""How much of what can be enumerated is tried: some of it at each run, all of it on demand.

What is tried changes from day to day, so that in time it is all of it. A failure is repeated with
the FAULTS_SEED that pytest has shown at its beginning.
"""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Sequence
from typing import TypeVar

EVERYWHERE = "FAULTS_EVERYWHERE" in os.environ
# Kept in the environment for the processes of xdist: they must all have the same tests, also when
# they start around midnight.
SEED = int(os.environ.setdefault("FAULTS_SEED", str(datetime.date.today().toordinal())))

Item = TypeVar("Item")


def sample(items: Sequence[Item], count: int, seed: int = SEED) -> Sequence[Item]:
    """At most ``count`` of ``items``, evenly spread; all of them if EVERYWHERE.

    One of each stretch, the next one with each seed. Each stretch has an order of its own: what
    comes in turns (a cut, a kill, a cut) would be always of the same kind otherwise.
    """
    if EVERYWHERE or len(items) <= count:
        return items
    bounds = [number * len(items) // count for number in range(count + 1)]
    found = []
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
        order = random.Random(number).sample(items[begin:end], end - begin)
        found.append(order[seed % (end - begin)])
    return found


def one_of(many: int, items: Sequence[Item]) -> Sequence[Item]:
    """One of so ``many``; all of them if EVERYWHERE."""
    return sample(items, -(-len(items) // many))
