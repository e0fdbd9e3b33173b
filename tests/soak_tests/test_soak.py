"""The soak itself: a short one finds nothing, and one with a bug in onestor finds that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.soaking.bugs import BUGS, seeded
from tests.soaking.model import Violation
from tests.soaking.soak import Soak
from tests.soaking.world import World, running_world

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.fault]

# Where a bug is, there are more steps than usual, and what hides it is left out: CI has no time for
# the others.
_CLONES = {"instantiate": 100.0, "register": 15.0, "terminate": 40.0, "write": 0.0}
NEAR: dict[str, dict[str, Any]] = {
    "publish order": {"weights": _CLONES, "faulty": 1.0},
    "lock": {"weights": _CLONES, "faulty": 0.0},
    "eviction": {"weights": {**_CLONES, "register": 50.0}, "faulty": 0.0},
    "delta": {"weights": {"recovery_pass": 30.0, "write": 60.0}, "faulty": 0.0},
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
    report = Soak(world, 1).run(60)
    assert sum(report.steps.values()) == 60
    assert report.faults


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(world: World, bug: str) -> None:
    with seeded(world.bed, bug), pytest.raises(Violation):
        Soak(world, 1, **NEAR[bug]).run(200)
