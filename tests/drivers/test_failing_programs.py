"""Each program that an action starts, on whatever machine, made to fail once.

The starts are found by running: the first, the second and so on fails, until an action has gone
through without having got that far.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from tests.drivers.conftest import digest, unfinished
from tests.drivers.every_action import NOT_HERE, Step, life
from tests.drivers.starts import PLANTED, Starts, counted_starts
from tests.oned.reply import Reply
from tests.sampling import EVERYWHERE, SEED
from tests.testbed import DATASTORES, Testbed
from tests.tool.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.fault]


@pytest.fixture(scope="module")
def starts(running_bed: Testbed) -> Iterator[Starts]:
    with counted_starts(running_bed) as found:
        yield found


Files = dict[str, tuple[int, ...]]


def final_files(bed: Testbed) -> Files:
    """Whatever has a final name, with what changes when it is written to or replaced."""
    found: Files = {}
    for node in bed.cluster.nodes:
        for name in bed.files(node):
            if not os.path.basename(name).startswith("."):
                facts = node.path(f"{DATASTORES}/{name}").lstat()
                found[f"{node.name}:{name}"] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def assert_clean(bed: Testbed, reply: Reply, before: Files, culprit: str) -> None:
    """The step has failed as it should: one line, and nothing changed but caches that filled."""
    lines = reply.result.stderr.splitlines()
    (error,) = [line for line in lines if not line.startswith(("INFO:", "WARN:"))]
    program = culprit.split()[1]
    assert PLANTED in error or program in error, f"{error!r} does not tell of {culprit}"
    after = final_files(bed)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    for name in changed:
        node, _, path = name.partition(":")
        assert node != "fe" and path.startswith("101/"), f"{name} has changed"
        origin = f"{DATASTORES}/{path}"
        here = next(each for each in bed.hosts if each.name == node)
        assert digest(here, origin) == digest(bed.frontend, origin), f"{name} is incomplete"


class Taken(NamedTuple):
    """A step that was taken; ``starts`` is how many there were at the first try."""

    action: str
    culprit: str
    starts: int


def take(bed: Testbed, step: Step, starts: Starts, number: int) -> tuple[Reply, Taken]:
    """Do a step with its start ``number`` failing, and once more if need be.

    The reply in the end, and what there was at the first try.
    """
    before = final_files(bed)
    with starts.counting(fail=number):
        reply = step.call()
        bed.assert_at_rest()
    culprit = starts[number]
    taken = Taken(step.action, culprit, len(starts))
    if not reply.success:
        assert culprit, f"{step.action} without a failure: {reply.error}"
        assert_clean(bed, reply, before, culprit)
        reply = step.call()
        assert reply.success, f"repeated after {culprit}: {reply.error}"
        bed.assert_at_rest()
    assert unfinished(bed) == []
    step.check()
    return reply, taken


def live(bed: Testbed, starts: Starts, numbers: Iterable[int]) -> list[Taken]:
    """One life with a failing start in each step, the one with the next of the numbers; 0: none."""
    done = []
    steps = life(bed)
    step = next(steps)
    for number in numbers:
        reply, taken = take(bed, step, starts, number)
        done.append(taken)
        try:
            step = steps.send(reply)
        except StopIteration:
            break
    return done


def actions() -> set[str]:
    """All there are."""
    folders = [(kind, ROOT / "remotes" / kind / "onestor") for kind in ("datastore", "tm")]
    return {f"{kind}.{file.name}" for kind, folder in folders for file in folder.iterdir()}


def test_some_starts_that_fail(bed: Testbed, starts: Starts) -> None:
    """One in each step, of those that a life without failures has there."""
    counted = live(bed, starts, itertools.repeat(0))
    bed.clean()
    numbers = [
        1 + (SEED + place) % each.starts if each.starts else 0 for place, each in enumerate(counted)
    ]
    done = live(bed, starts, numbers)
    unharmed = {each.action for each in counted if each.starts}
    unharmed -= {each.action for each in done if each.culprit}
    assert not unharmed, "nothing has failed"
    tried = {each.action for each in done}
    assert tried | set(NOT_HERE) == actions(), "an action without a step, or without a reason"
    assert not tried & set(NOT_HERE)


@pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
def test_every_start_that_fails(bed: Testbed, starts: Starts) -> None:
    for number in itertools.count(1):
        if not any(each.culprit for each in live(bed, starts, itertools.repeat(number))):
            break
        bed.clean()
    assert number > 3
