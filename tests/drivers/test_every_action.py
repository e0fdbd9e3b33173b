"""Each action with each program that it starts failing, and killed at each crash point it passes.

In each step of a life one of these goes wrong; the step is repeated, and must succeed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints
from tests.drivers.every_action import NOT_HERE, life
from tests.drivers.lives import EveryStep, Lives, lives_on, some_starts
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


def actions() -> set[str]:
    """All there are."""
    folders = [(kind, ROOT / "remotes" / kind / "onestor") for kind in ("datastore", "tm")]
    return {f"{kind}.{file.name}" for kind, folder in folders for file in folder.iterdir()}


def test_every_action_is_a_step(lives: Lives) -> None:
    tried = {each.action for each in lives.counted}
    assert tried | set(NOT_HERE) == actions(), "an action without a step, or without a reason"
    assert not tried & set(NOT_HERE)


def test_K18_every_crash_point_is_passed_here_or_has_its_own_test(lives: Lives) -> None:
    here = {point for each in lives.counted for point in each.points}
    own = {point for point, kinds in crashpoints.POINTS.items() if set(kinds) <= _OWN_TESTS}
    assert set(crashpoints.POINTS) - here - own == _LEFTOVERS


def test_some_starts_that_fail(lives: Lives) -> None:
    done = some_starts(lives)
    unharmed = {each.action for each in lives.counted if each.starts}
    unharmed -= {each.action for each in done if each.culprit}
    assert not unharmed, "nothing has failed"


class TestEveryStep(EveryStep):
    pass
