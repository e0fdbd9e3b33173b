"""The soak itself: a short one finds nothing, and one with a bug in onestor finds that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sampling import sample
from tests.soaking.bugs import BUGS, seeded
from tests.soaking.kinds import KINDS
from tests.soaking.model import Violation
from tests.soaking.soak import Soak
from tests.soaking.world import World, running_world

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.fault]

# The steps that come near a bug, and what hides it is left out: CI has no time for the others.
_CLONES = {"instantiate": 100.0, "register": 40.0, "terminate": 60.0}
_COPIES = {"instantiate": 8.0, "register": 3.0, "write": 100.0, "recovery_pass": 40.0}
NEAR = {
    "publish order": (_CLONES, 1.0),
    "lock": (_CLONES, 0.0),
    "eviction": (_CLONES, 0.0),
    "delta": (_COPIES, 0.0),
}


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with running_world() as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    running.begin()
    return running


def test_a_short_soak(world: World) -> None:
    """Of most kinds; what can come depends on what a fault has broken."""
    report = Soak(world, 1, even=True).run(50)
    assert len(report.steps) > len(KINDS) * 3 / 4
    assert 0 < report.effects <= report.faults
    assert world.bed.crashed_at()


@pytest.mark.parametrize("bug", sample(list(BUGS), 1))
def test_a_seeded_bug_is_found(world: World, bug: str) -> None:
    near, faulty = NEAR[bug]
    weights = {kind.name: near.get(kind.name, 0.0) for kind in KINDS}
    with seeded(world.bed, bug), pytest.raises(Violation, match=BUGS[bug].found_as):
        Soak(world, 1, weights=weights, faulty=faulty).run(200)
