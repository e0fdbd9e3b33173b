"""Each action with each program that it starts failing, and killed at each crash point it passes.

In each step of a life one of these goes wrong; the step is repeated, and must succeed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints
from tests.drivers.every_action import NOT_HERE, life
from tests.drivers.lives import (
    Lives,
    Taken,
    every_point,
    every_start,
    lives_on,
    some_point,
    some_start,
)
from tests.sampling import EVERYWHERE
from tests.testbed import Testbed
from tests.tool.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.fault]

# Whoever passes these points is killed there by tests of its own, and no life here does...
_OWN_TESTS = {
    "eviction", "flatten", "thin", "recovery", "tm.clone recovery", "tm.snap_create_live",
}  # fmt: skip
# ... nor finds what these are about: a leftover of a try before, snapshots of a persistent image.
_LEFTOVERS = {"move.aside", "place.snapshots", "snapshot.aside"}


@pytest.fixture(scope="module")
def lives(running_bed: Testbed) -> Iterator[Lives]:
    with lives_on(running_bed, lambda: life(running_bed)) as found:
        yield found


@pytest.fixture(scope="module")
def counted(lives: Lives) -> list[Taken]:
    """What there is in each step when nothing goes wrong."""
    return lives.live()


def actions() -> set[str]:
    """All there are."""
    folders = [(kind, ROOT / "remotes" / kind / "onestor") for kind in ("datastore", "tm")]
    return {f"{kind}.{file.name}" for kind, folder in folders for file in folder.iterdir()}


def test_every_action_is_a_step(counted: list[Taken]) -> None:
    tried = {each.action for each in counted}
    assert tried | set(NOT_HERE) == actions(), "an action without a step, or without a reason"
    assert not tried & set(NOT_HERE)


def test_K18_every_crash_point_is_passed_here_or_has_its_own_test(counted: list[Taken]) -> None:
    here = {point for each in counted for point in each.points}
    own = {point for point, kinds in crashpoints.POINTS.items() if set(kinds) <= _OWN_TESTS}
    assert set(crashpoints.POINTS) - here - own == _LEFTOVERS


def test_some_starts_that_fail(lives: Lives, counted: list[Taken]) -> None:
    done = lives.live(some_start(counted))
    unharmed = {each.action for each in counted if each.starts}
    unharmed -= {each.action for each in done if each.culprit}
    assert not unharmed, "nothing has failed"


def test_K18_some_crash_points(lives: Lives, counted: list[Taken]) -> None:
    done = lives.live(some_point(counted))
    assert [bool(each.culprit) for each in done] == [bool(each.points) for each in counted]


@pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
def test_every_start_that_fails(lives: Lives) -> None:
    assert every_start(lives) > 3


@pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
def test_K18_every_crash_point(lives: Lives, counted: list[Taken]) -> None:
    every_point(lives, counted)
