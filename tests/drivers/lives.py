"""Lives in whose steps something goes wrong: a program that fails, or a process that dies.

What there is of both is found by running: a life in which nothing goes wrong tells which programs
each of its steps starts, on whatever machine, and which crash points it passes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, TypeVar

import pytest

from onestor_lib.agent import crashpoints
from tests.drivers.conftest import (
    CALL_ENVIRONMENT,
    MEDIUM_QCOW2,
    agents,
    digest,
    entry_of,
    onestor_argv,
    unfinished,
)
from tests.drivers.every_action import Step, Steps
from tests.drivers.starts import PLANTED, Starts, counted_starts
from tests.oned.reply import Reply
from tests.sampling import EVERYWHERE, SEED
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

Files = dict[str, tuple[int, ...]]
Fault = tuple[int, str]  # the number of a start that fails, and the crash point to die at; 0, ""

_PASSED = "/var/tmp/onestor-passed"  # where, on each machine, crash points are noted


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
    """A step that was taken.

    ``starts`` and ``points`` are those of the first try: how many programs were started, and which
    crash points were passed. ``culprit`` is what went wrong.
    """

    action: str
    starts: int
    points: list[str]
    culprit: str = ""


class Lives:
    """Lives of one kind; a step is taken with something going wrong, and again if need be."""

    def __init__(self, bed: Testbed, starts: Starts, life: Callable[[], Steps]) -> None:
        self.bed, self.starts, self.life = bed, starts, life
        self.is_tidy = True  # nobody has died in this life

    @functools.cached_property
    def counted(self) -> list[Taken]:
        """What there is in each step when nothing goes wrong."""
        return self.live(itertools.repeat((0, "")))

    def take(self, step: Step, fault: Fault) -> tuple[Reply, Taken]:
        """Take a step with that fault."""
        start, point = fault
        bed, before = self.bed, final_files(self.bed)
        bed.forget(_PASSED)
        bed.forget(str(crashpoints.NOTE))
        bed.environment(**({crashpoints.VARIABLE: point} if point else {}))
        with self.starts.counting(fail=start):
            reply = step.call()
            self.is_tidy &= not point
            self.rest()
        bed.environment()
        culprit = self.starts[start] or point
        assert set(bed.crashed_at()) == ({point} if point else set())
        taken = Taken(step.action, len(self.starts), sorted(set(bed.noted(_PASSED))), culprit)
        if not reply.success:
            assert culprit, f"{step.action} without a failure: {reply.error}"
            if not point:
                assert_clean(bed, reply, before, culprit)
            reply = step.call()
            assert reply.success, f"repeated after {culprit}: {reply.error}"
        self.rest()
        step.check()
        return reply, taken

    def rest(self) -> None:
        """Wait for the end of all agents; nothing is left of what was not finished.

        But for what the dead have left, which goes with the next one who sweeps there.
        """
        if self.is_tidy:
            self.bed.assert_at_rest()
            left = unfinished(self.bed)
            assert not left, left
        else:
            wait_until(lambda: not any(map(agents, self.bed.cluster.nodes)), "agents end")

    def tidy(self) -> None:
        """Have somebody sweep wherever somebody may have died; no fill is left to be resumed."""
        bed = self.bed
        image = bed.import_image(MEDIUM_QCOW2)
        for host in bed.hosts[:2]:
            vm = bed.vm(image)
            assert bed.oned.instantiate(vm, host.name, bed.system).success
            assert all(reply.success for reply in bed.oned.recover_delete(vm))
        for each in list(bed.cloud.images.values()):
            if each.source and bed.frontend.exists(entry_of(each)):
                assert bed.oned.delete_image(each).success
        bed.frontend.run(onestor_argv("cache", "prune"), env=CALL_ENVIRONMENT)
        self.is_tidy = True
        self.rest()

    def live(self, faults: Iterable[Fault]) -> list[Taken]:
        """One life with one of the faults in each step."""
        self.bed.clean()
        self.is_tidy = True
        done = []
        steps = self.life()
        step = next(steps)
        for fault in faults:
            reply, taken = self.take(step, fault)
            done.append(taken)
            try:
                step = steps.send(reply)
            except StopIteration:
                break
        if not self.is_tidy:
            self.tidy()
        return done


@contextlib.contextmanager
def lives_on(bed: Testbed, life: Callable[[], Steps]) -> Iterator[Lives]:
    """Starts are counted and crash points noted on all machines for the time of the block."""
    reach = "    if name != _chosen:\n"
    note = f'    with open("{_PASSED}", "a") as file:\n        file.write(f"{{name}}\\n")\n'
    noting = bed.changed_source("agent/crashpoints.py", (reach, note + reach), prepare=True)
    with noting, counted_starts(bed) as starts:
        yield Lives(bed, starts, life)


Item = TypeVar("Item")


def one_each(choices: Iterable[Sequence[Item]], none: Item, seed: int = SEED) -> Iterator[Item]:
    """One of each, another one with another seed; `none` where there are no choices."""
    for place, items in enumerate(choices):
        yield items[(seed + place) % len(items)] if items else none


def some_starts(lives: Lives) -> list[Taken]:
    """A life with a start that fails in each step."""
    choices = (range(1, each.starts + 1) for each in lives.counted)
    return lives.live((number, "") for number in one_each(choices, 0))


class EveryStep:
    """What is shown of all kinds of lives: a file with `lives` has a class of tests like this."""

    def test_K18_some_crash_points(self, lives: Lives) -> None:
        """One in every other step, in the others with the next FAULTS_SEED."""
        choices = [
            each.points if (SEED + number) % 2 else [] for number, each in enumerate(lives.counted)
        ]
        done = lives.live((0, point) for point in one_each(choices, "", SEED // 2))
        assert [bool(each.culprit) for each in done] == [bool(points) for points in choices]

    @pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
    def test_every_start_that_fails(self, lives: Lives) -> None:
        """The first of each step, the second, and so on."""
        number = 1
        while any(each.culprit for each in lives.live(itertools.repeat((number, "")))):
            number += 1
        assert number > 3

    @pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
    def test_K18_every_crash_point(self, lives: Lives) -> None:
        """The first of each step, the second, and so on."""
        columns = (each.points for each in lives.counted)
        for points in itertools.zip_longest(*columns, fillvalue=""):
            lives.live((0, point) for point in points)
