"""Each command that changes something, with each program that it starts failing, on any machine.

Whatever fails, guests see what they saw and no cache has a wrong byte; the same command once more
does its work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import click
import pytest

from onestor_lib.frontend.commands.onestor import main as onestor
from tests.commands.conftest import Desk
from tests.drivers.conftest import (
    MEDIUM_QCOW2,
    configure_system,
    content,
    digest,
    entry_of,
    unfinished,
)
from tests.drivers.lives import one_each
from tests.drivers.starts import PLANTED, Starts, counted_starts
from tests.oned.objects import Image, Vm
from tests.sampling import EVERYWHERE
from tests.testbed import AGENT, Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

# Commands that are no step here, each with the reason.
NOT_HERE = {
    "cache list": "looks",
    "cache show": "looks",
    "doctor": "looks",
    "metrics": "looks, and writes one file",
    "recovery list": "looks",
    "recovery run": "works on domains: tests/life/test_recovery.py has it",
    "vm show": "looks",
}


class Step(NamedTuple):
    """One call; ``is_done`` tells whether it has done its work."""

    command: str
    words: tuple[str, ...]
    is_done: Callable[[], bool]


@pytest.fixture(scope="module")
def starts(running_desk: Desk) -> Iterator[Starts]:
    with counted_starts(running_desk.bed) as found:
        yield found


@pytest.fixture(scope="module")
def counted(running_desk: Desk, starts: Starts) -> dict[str, int]:
    """How many starts each command makes when nothing goes wrong."""
    return live(running_desk, starts, itertools.repeat(0))


def life(bed: Testbed, vm: Vm, image: Image) -> list[Step]:
    base, number = f"{bed.disk_path(vm)}.base", str(vm.id)

    def cached(*names: str) -> Callable[[], bool]:
        return lambda: {n.name for n in bed.hosts if n.exists(entry_of(image))} == set(names)

    hosts = ("host01", "host02", "host03", "host04")
    warm = ("--hosts", "host02,host03")
    return [
        Step("cache warm", (str(image.id), *warm), cached(*hosts)),
        Step("cache verify", (), cached(*hosts)),
        Step("flatten", (number, "0"), lambda: not bed.hosts[0].exists(base)),
        Step("cache drop", (str(image.id),), cached()),
        Step("thin", (number, "0"), lambda: bed.hosts[0].exists(base)),
        Step("cache prune", (), lambda: True),
        Step("recovery drop", (number,), lambda: True),
    ]


def prepared(desk: Desk) -> tuple[Vm, Image]:
    """A thin disk on host01, by way of the replica host04."""
    desk.bed.clean()
    configure_system(desk.bed, REPLICA_HOST="host04")
    image = desk.bed.image(MEDIUM_QCOW2)
    vm = desk.started(image)
    desk.off(vm)
    return vm, image


def live(desk: Desk, starts: Starts, faults: Iterable[int]) -> dict[str, int]:
    """One life, in which of each command the start with the number in ``faults`` fails.

    How many starts each command made at its first try.
    """
    bed = desk.bed
    vm, image = prepared(desk)
    disk, host = bed.disk_path(vm), bed.hosts[0]
    before, original = content(host, disk, "qcow2"), digest(bed.frontend, entry_of(image))
    counted = {}
    for step, fault in zip(life(bed, vm, image), faults):
        argv = ["onestor", *step.command.split(), *step.words]
        with starts.counting(fail=fault):
            done = bed.frontend.run(argv, env=AGENT, check=False, timeout=120)
            bed.assert_at_rest()
        counted[step.command] = len(starts)
        said, culprit = done.stdout + done.stderr, starts[fault]
        assert unfinished(bed) == []
        assert content(host, disk, "qcow2") == before, culprit
        for node in bed.hosts:
            if node.exists(entry_of(image)):
                assert digest(node, entry_of(image)) == original, culprit
        if done.returncode:
            assert culprit, said
            assert "Traceback" not in said
            assert PLANTED in said or culprit.split()[1] in said, f"{said!r} is silent on {culprit}"
            desk.run(*argv[1:])
        assert step.is_done(), f"{step.command}: {culprit}"
        assert content(host, disk, "qcow2") == before
    return counted


def test_every_command_is_a_step(counted: dict[str, int]) -> None:
    assert all(counted.values())
    assert set(counted) | set(NOT_HERE) == set(commands(onestor))
    assert not set(counted) & set(NOT_HERE)


def commands(group: click.Group, before: str = "") -> Iterator[str]:
    """All there are, as they are called."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name


def test_some_starts_that_fail(desk: Desk, starts: Starts, counted: dict[str, int]) -> None:
    """One of each command, another one with another FAULTS_SEED."""
    live(desk, starts, one_each((range(1, number + 1) for number in counted.values()), 0))


@pytest.mark.skipif(not EVERYWHERE, reason="FAULTS_EVERYWHERE is not set")
def test_every_start_that_fails(desk: Desk, starts: Starts, counted: dict[str, int]) -> None:
    """The first of each command, the second, and so on."""
    for number in range(1, max(counted.values()) + 1):
        live(desk, starts, itertools.repeat(number))
