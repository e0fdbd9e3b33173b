"""The actions on a VM that runs, with each program failing and killed at each crash point.

As ``tests/drivers/test_every_action.py`` does with all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.conftest import MEDIUM_QCOW2
from tests.drivers.conftest import make_sources as make_plain_sources
from tests.drivers.every_action import LIBVIRT, NOT_HERE, Step, Steps
from tests.drivers.lives import EveryStep, Lives, lives_on, some_starts
from tests.life.conftest import World
from tests.oned import objects, transfer
from tests.oned.life import LIVE_MIGRATE
from tests.oned.reply import Reply

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.fault]


def life(world: World) -> Steps:
    """A snapshot, a migration that fails and one that does not.

    The guest finds nothing to boot, so its disk is what was written to it before.
    """
    bed, kvm = world.bed, world.kvm
    kvm.end_all()
    vm = bed.vm(bed.image(MEDIUM_QCOW2))
    assert world.life.instantiate(vm, "host01", bed.system).success
    disk, path = vm.disks[0], world.disk(vm)
    before = world.content(world.one, path, "qcow2")
    yield Step("tm.snap_create_live", lambda: world.life.snapshot(vm, disk))
    number = vm.snapshots[0].next_snapshot - 1
    assert world.content(world.one, f"{path}.snap/{number}", "qcow2") == before
    bed.cloud.set_state(vm, objects.ACTIVE, objects.MIGRATE)
    bed.cloud.place(vm, "host02", bed.system, LIVE_MIGRATE)

    def step(name: str) -> Step:
        def call() -> Reply:
            line = transfer.migration(vm, name, "host01", "host02")
            return world.bed.oned.vmm.run_line(line, vm.driver_xml(bed.cloud.version))

        return Step(f"tm.{name.lower()}", call)

    yield step("PREMIGRATE")
    yield step("FAILMIGRATE")
    assert world.names(world.two, vm) <= {"vm.xml", "ds.xml"}
    yield step("PREMIGRATE")
    assert kvm.migrate(vm, "host01", "host02")
    yield step("POSTMIGRATE")
    assert world.content(world.two, path, "qcow2") == before
    assert not world.one.exists(world.directory(vm))


@pytest.fixture(scope="module")
def lives(running_world: World) -> Iterator[Lives]:
    make_plain_sources(running_world.bed.frontend)
    with lives_on(running_world.bed, lambda: life(running_world)) as found:
        yield found
        running_world.kvm.end_all()


def test_all_are_here_that_work_on_domains(lives: Lives) -> None:
    expected = {action for action, reason in NOT_HERE.items() if reason == LIBVIRT}
    assert {each.action for each in lives.counted} == expected
    assert all(each.starts for each in lives.counted)


def test_some_starts_that_fail(lives: Lives) -> None:
    assert all(each.culprit for each in some_starts(lives))


class TestEveryStep(EveryStep):
    pass
