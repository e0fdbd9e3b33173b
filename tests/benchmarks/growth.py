"""Growth curves: how a figure changes with the size of what it is about."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from tests.benchmarks.cloning import SMALL, Clone, at_once, by_hand, make_image, one_create
from tests.benchmarks.measure import Figure, Yardstick, against, compare, in_turn
from tests.testbed import Testbed

VIRTUAL = ("64M", "1G", "10G", "100G")
DATA = (16, 64)  # MB; cold-clone is the next point
CLONES = (1, 8, 64)


def size(bed: Testbed) -> Iterator[Figure]:
    """Warm clones of images with the same data, ever larger for their guest: all take the same."""
    clones = [Clone.of(bed, make_image(bed, SMALL, each), bed.hosts[0]) for each in VIRTUAL]
    for clone in clones:
        clone.run()
    taken = in_turn([clone.run for clone in clones], runs=9)
    for at, ours in zip(VIRTUAL, taken):
        # The end of the curve tells; between them, one of four is often beyond by chance.
        limit = 1.1 if at == VIRTUAL[-1] else None
        yield compare("growth-size", ours, f"that of {VIRTUAL[0]}", taken[0], limit=limit, at=at)


def data(bed: Testbed) -> Iterator[Figure]:
    """Cold clones of images with more and more data, against the same bytes by hand."""
    for megabytes in DATA:
        image = make_image(bed, megabytes, f"{megabytes}M")
        clone = Clone.of(bed, image, bed.hosts[0])
        yardstick = Yardstick("scp, sync, sha256sum", by_hand(clone))
        yield from against(
            "growth-data", clone.run, yardstick, reset=clone.chill, at=f"{megabytes}M"
        )


def clones(bed: Testbed) -> Iterator[Figure]:
    """More and more warm clones at once on all hosts, against as many times one by hand."""
    image = make_image(bed, SMALL, f"{SMALL}M")
    clones = [Clone.of(bed, image, bed.hosts[n % len(bed.hosts)]) for n in range(CLONES[-1])]
    for clone in clones[: len(bed.hosts)]:
        clone.run()  # now they have the base
    for number in CLONES:
        work = functools.partial(at_once, [clone.run for clone in clones[:number]])
        yardstick = one_create(clones[0], number)
        (figure,) = against("growth-clones", work, yardstick, at=str(number))
        figure.notes["for each (s)"] = figure.seconds / number
        yield figure
