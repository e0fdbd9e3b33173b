"""A VM's life on real hypervisors, in the order of the recordings."""

from __future__ import annotations

import hashlib

from tests.life.conftest import MB, SOURCES, World
from tests.oned.objects import DONE, READY, Disk, Vm


def digest(world: World, node: str, vm: Vm, disk: Disk) -> str:
    """What the guest sees on a disk of a VM that does not run, wherever its files are."""
    machine = world.bed.cluster.node(node)
    content = world.content(machine, world.disk(vm, disk.id), disk.attributes["FORMAT"])
    return hashlib.sha256(content).hexdigest()


def digests(world: World, node: str, vm: Vm) -> dict[int, str]:
    """The same of each disk."""
    return {disk.id: digest(world, node, vm, disk) for disk in vm.disks}


def test_L3_L4_D14_D21_the_recorded_life_of_a_vm(world: World) -> None:
    """Each step of the recordings; what the guest has written is there behind each of them."""
    bed, life, kvm = world.bed, world.life, world.kvm
    thin = world.image()
    kept = bed.image(f"{SOURCES}/guest.raw", persistent=True)
    kept2 = world.image(persistent=True)
    vm = bed.cloud.add_vm(
        disks=[
            *(bed.cloud.image_disk(image) for image in (thin, kept, kept2)),
            bed.cloud.volatile_disk(8, FS="ext4", TARGET="vdx"),
            bed.cloud.volatile_disk(8, "swap", TARGET="vdy"),
        ],
        context={"NETWORK": "YES"},
    )
    original = hashlib.sha256(world.content(bed.frontend, kept2.source, "qcow2")).hexdigest()
    assert life.instantiate(vm, "host01", bed.system).success
    kvm.guest_at_work(vm, "host01")
    assert "DISK_SIZE = [ID=3" in world.probe("host01", vm)

    hot = life.save_as(vm, vm.disks[0])
    assert hot.state == READY, hot.template
    assert world.count(bed.frontend, hot.source).is_one_moment

    assert life.live_migrate(vm, "host02").success
    assert life.after.success
    assert kvm.state(vm, "host02") == "running" and world.names(world.one, vm) == set()
    kvm.guest_at_work(vm, "host02")  # and goes on

    answer = life.migrate(vm, "host01")
    assert answer.success, answer
    assert kvm.state(vm, "host01") == "running" and world.names(world.two, vm) == set()
    kvm.guest_at_work(vm, "host01")

    assert life.stop(vm).success
    stopped = digest(world, "fe", vm, vm.disks[0])
    assert world.names(world.one, vm) == set()
    cold = life.save_as(vm, vm.disks[0])
    assert cold.state == READY
    content = world.content(bed.frontend, cold.source, "qcow2")
    assert hashlib.sha256(content).hexdigest() == stopped

    assert life.resume(vm, "host02").success
    assert kvm.state(vm, "host02") == "running" and world.names(bed.frontend, vm) == set()
    count = world.count(world.two, world.disk(vm))
    kvm.guest_at_work(vm, "host02")
    later = world.count(world.two, world.disk(vm))
    assert later.is_one_moment and later.highest > count.highest

    assert life.undeploy(vm).success
    undeployed = [digest(world, "fe", vm, disk) for disk in vm.disks[1:]]
    assert life.resize(vm, vm.disks[0], 96).success
    assert len(world.content(bed.frontend, world.disk(vm), "qcow2")) == 96 * MB
    assert life.resume(vm, "host01").success

    life.power_off(vm)
    before = digests(world, "host01", vm)
    assert life.migrate(vm, "host02").success
    assert digests(world, "host02", vm) == before
    # The guest writes to the first disk only.
    assert [before[disk.id] for disk in vm.disks[1:]] == undeployed

    assert world.life.resize(vm, vm.disks[2], 80).success
    assert bed.oned.terminate(vm).success and vm.state == DONE
    assert world.names(world.two, vm) == set()
    content = world.content(bed.frontend, kept2.source, "qcow2")
    assert len(content) == 80 * MB
    assert hashlib.sha256(content[: 64 * MB]).hexdigest() == original
    assert hashlib.sha256(bed.frontend.read(kept.source)).hexdigest() == before[1]
    for node in bed.hosts:
        assert not [name for name in bed.files(node) if name.startswith(f"102/{vm.id}/")]
