"""How much of what can be enumerated is tried: some of it at each run, all of it on demand.

It is the same at each run, so that whoever breaks something learns of it and nobody else; another
FAULTS_SEED in the environment tries something else, and after some of them it was all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

EVERYWHERE = "FAULTS_EVERYWHERE" in os.environ
SEED = int(os.environ.get("FAULTS_SEED", "1"))

Item = TypeVar("Item")


class Sampled(list[Item]):
    """Variants, not all of them at each run; a test parametrized with it is marked `sampled`.

    One that draws a sample by itself has to have a mark of its own.
    """


def sample(items: Sequence[Item], count: int, seed: int = SEED) -> Sequence[Item]:
    """At most ``count`` of ``items``, evenly spread; all of them if EVERYWHERE.

    One of each stretch, the next one with each seed. Each stretch has an order of its own: what
    comes in turns (a cut, a kill, a cut) would be always of the same kind otherwise.
    """
    if len(items) <= count:
        return items
    if EVERYWHERE:
        return Sampled(items)
    bounds = [number * len(items) // count for number in range(count + 1)]
    found: Sampled[Item] = Sampled()
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
        order = random.Random(number).sample(items[begin:end], end - begin)
        found.append(order[seed % (end - begin)])
    return found


def one_of(many: int, items: Sequence[Item]) -> Sequence[Item]:
    """One of so ``many``; all of them if EVERYWHERE."""
    return sample(items, -(-len(items) // many))
