"""VMs that come back from recovery copies when their host has died (known failures G)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import impatient, unfinished, warnings
from tests.life.conftest import SOURCES, World
from tests.life.recovering import (
    ROOT,
    assert_nothing_is_left,
    being_fetched,
    copies,
    delete_for_recreate,
    good,
    listed,
    moment,
    recreate,
    run,
    started,
    use_replicas,
)
from tests.oned import objects, transfer
from tests.oned.objects import PROLOG_MIGRATE_UNKNOWN, Datastore, Vm
from tests.sampling import one_of
from tests.testbed import DATASTORES


@pytest.fixture
def vm(world: World, replica: Node) -> Vm:
    """A VM that runs on host01 and writes to its thin disk, which asks for copies."""
    return started(world)


def dead(world: World, host: str) -> None:
    """oned has noticed that the host does not answer."""
    for each in world.bed.cloud.hosts.values():
        if each.name == host:
            each.state = 3
            world.bed.cloud.save(each)


def alive(world: World) -> None:
    """It has noticed that all of them do."""
    for each in world.bed.cloud.hosts.values():
        each.state = 2
        world.bed.cloud.save(each)


@pytest.fixture
def revived(world: World) -> Iterator[None]:
    yield
    alive(world)


@pytest.mark.usefixtures("revived")
def test_G1_G16_G20_a_dead_host(world: World, vm: Vm, replica: Node) -> None:
    """Its VM goes on elsewhere from the copy; what it had of it goes when it is back."""
    gone = started(world)
    assert "2 copied" in run(world)
    kept = moment(world, vm)
    assert kept > 0
    for node in (world.one, world.two, replica):
        assert node.run(["sh", "-c", "ls ~oneadmin/.ssh"]).stdout.count("id_") == 0
    world.kvm.guest_at_work(vm, "host01")
    world.one.cut()
    dead(world, "host01")
    begin = time.monotonic()
    recreate(world, vm)
    assert time.monotonic() - begin < 60
    for reply in world.bed.oned.recover_delete(gone):
        good(reply)
    assert not replica.exists(f"{ROOT}/{gone.id}")
    disk = world.disk(vm)
    found = world.count(world.two, disk)
    assert found.highest == kept and found.is_one_moment
    assert "comes from the recovery copy on host03" in world.bed.log()
    assert "disk.0.base" in world.two.run(["qemu-img", "info", disk]).stdout
    world.kvm.deploy(vm)
    world.kvm.guest_at_work(vm, "host02")
    assert world.one.exists(disk)
    world.one.heal()
    world.kvm.virsh("host01", "destroy", gone.deploy_id)
    assert "still runs on host01" in run(world)  # its guest has gone on: nothing is taken from it
    assert world.one.exists(disk) and not world.one.exists(world.disk(gone))
    world.kvm.virsh("host01", "destroy", vm.deploy_id)
    run(world)
    assert not world.one.exists(disk) and world.two.exists(disk)
    assert listed(world)[vm.id, "disk.0"]["error"] == ""
    good(world.bed.oned.terminate(vm))
    assert not replica.exists(f"{ROOT}/{vm.id}")


def back_without(world: World, vm: Vm) -> None:
    """host01 dies, oned deletes the VM there to place it anew, and it comes back: a note stays."""
    world.one.cut()
    dead(world, "host01")
    delete_for_recreate(world, vm)
    world.one.heal()
    world.kvm.virsh("host01", "destroy", vm.deploy_id)


def on_its_way(
    world: World,
    vm: Vm,
    host: str,
    state: int = objects.PROLOG_MIGRATE,
    datastore: Datastore | None = None,
) -> None:
    """oned counts a VM to the host that it moves to from the beginning."""
    world.bed.cloud.place(vm, host, datastore or world.bed.system)
    world.bed.cloud.set_state(vm, objects.ACTIVE, state)


def test_G1_what_a_dead_host_had_is_not_what_a_failed_move_leaves_there(
    world: World, vm: Vm, replica: Node, revived: None
) -> None:
    """The VM went on elsewhere, and now it is to go back: an old disk must not start there."""
    run(world)
    directory = world.directory(vm)
    world.one.cut()
    dead(world, "host01")
    recreate(world, vm)
    kept = world.count(world.two, world.disk(vm)).highest
    world.one.heal()
    on_its_way(world, vm, "host01")
    move = transfer.move(vm, "host02", "host01")
    reply = world.bed.oned.transfer_mad.run_script(move)
    assert not reply.success and "the VM is running there" in reply.error
    assert world.one.exists(world.disk(vm))  # in use, after all
    world.kvm.virsh("host01", "destroy", vm.deploy_id)
    run(world)  # the note stays as long as the VM is on its way
    world.bed.environment(**{crashpoints.VARIABLE: "move.received"})
    assert not world.bed.oned.transfer_mad.run_script(move).success
    assert not world.one.exists(directory) and world.two.exists(world.disk(vm))
    world.bed.environment()
    good(world.bed.oned.transfer_mad.run_script(move))
    good(world.bed.oned.transfer_mad.run_script(move))  # it is there, and not old any more
    world.bed.cloud.set_state(vm, objects.POWEROFF)
    run(world)
    assert world.count(world.one, world.disk(vm)).highest == kept


def test_G1_what_a_host_that_came_back_has_anew_stays(
    world: World, vm: Vm, replica: Node, revived: None
) -> None:
    """The VM was made anew there, in another datastore; then in the same, and is to move."""
    other = world.bed.cloud.add_system_datastore(id=112)
    old = world.directory(vm)
    try:
        back_without(world, vm)
        good(world.life.instantiate(vm, "host01", other))
        assert world.directory(vm) != old and world.one.exists(old)
        run(world)  # it runs there again, by the same name, and not with what is to go
        assert world.one.exists(world.disk(vm)) and not world.one.exists(old)

        alive(world)
        back_without(world, vm)
        good(world.bed.oned.instantiate(vm, "host01", other))
        on_its_way(world, vm, "host02", datastore=other)
        run(world)
        assert world.one.exists(world.disk(vm))
        world.bed.cloud.set_state(vm, objects.POWEROFF)  # that failed; onevm recover --success
        run(world)
        assert world.one.exists(world.disk(vm))
        good(world.bed.oned.transfer_mad.run_script(transfer.move(vm, "host01", "host02")))
        assert world.two.exists(world.disk(vm)) and not world.one.exists(world.directory(vm))
    finally:
        world.kvm.virsh("host01", "destroy", vm.deploy_id, check=False)
        world.bed.cloud.delete(other)


def test_G1_what_is_old_stays_though_oned_has_the_vm_there(
    world: World, vm: Vm, replica: Node, revived: None
) -> None:
    """A move there failed at once and was declared a success: nothing replaces the newer one."""
    world.one.cut()
    dead(world, "host01")
    recreate(world, vm)
    world.one.heal()
    world.kvm.virsh("host01", "destroy", vm.deploy_id)
    on_its_way(world, vm, "host01")
    world.bed.cloud.set_state(vm, objects.POWEROFF)
    assert "is older than the VM" in run(world)
    newer = world.content(world.two, world.disk(vm), "qcow2")
    on_its_way(world, vm, "host02")
    good(world.bed.oned.transfer_mad.run_script(transfer.move(vm, "host01", "host02")))
    assert world.content(world.two, world.disk(vm), "qcow2") == newer
    world.bed.cloud.set_state(vm, objects.POWEROFF)
    run(world)
    assert not world.one.exists(world.directory(vm))


def test_G1_D9_a_vm_that_leaves_a_dead_host_finds_nothing_old(
    world: World, vm: Vm, replica: Node, revived: None
) -> None:
    world.one.cut()
    dead(world, "host01")
    recreate(world, vm)
    world.one.heal()
    on_its_way(world, vm, "host01", PROLOG_MIGRATE_UNKNOWN)
    move = transfer.move(vm, "host02", "host01")
    reply = world.bed.oned.transfer_mad.run_script(move)
    assert not reply.success and "the VM still runs there" in reply.error
    world.kvm.virsh("host01", "destroy", vm.deploy_id)
    good(world.bed.oned.transfer_mad.run_script(move))
    assert not world.one.exists(world.directory(vm)) and world.two.exists(world.disk(vm))


def test_G2_G21_replicas_that_are_down_are_told_later(world: World, vm: Vm, replica: Node) -> None:
    other = started(world, host="host02")
    run(world)
    replica.cut()
    begin = time.monotonic()
    good(world.bed.oned.terminate(vm))
    assert time.monotonic() - begin < 60
    assert any("go later" in line for line in warnings(world.bed))
    replica.heal()
    assert copies(world, vm)
    run(world)
    assert not replica.exists(f"{ROOT}/{vm.id}")
    # oned does not answer: copies must not stay and boot old data one day.
    line = f"DELETE onestor host02:{world.directory(other)} {other.id} 102"
    world.bed.environment(ONE_XMLRPC="http://127.0.0.1:1/RPC2")
    world.bed.configure('REPLICA_HOST="host03"\n')
    world.kvm.virsh("host02", "destroy", other.deploy_id)
    good(world.bed.oned.transfer_mad.run_line(line))
    world.bed.environment()
    assert not replica.exists(f"{ROOT}/{other.id}")


def test_G3_G4_L5_disks_that_come_and_go(world: World, replica: Node) -> None:
    """A detached disk takes its copy along, no other's; what is attached then is no recovery.

    And a disk that was written to while its VM did not run is copied: what the hypervisor has
    counted since the last start says nothing of that.
    """
    empty = world.bed.cloud.volatile_disk(8, RECOVERY_SNAPSHOT_FREQ="1")
    vm = started(world, world.image(persistent=True), empty)
    run(world)
    assert all(len(copies(world, vm, disk)) == 1 for disk in (0, 1, 2))
    world.life.power_off(vm)
    disk = world.disk(vm, 1)  # the guest does not write to it
    world.one.run(["qemu-io", "-f", "qcow2", "-c", "write -P 5 10M 1M", disk])
    world.kvm.deploy(vm)
    world.bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    world.kvm.guest_at_work(vm, "host01")
    assert "2 copied, 1 unchanged" in run(world)
    (copy,) = copies(world, vm, 1)
    assert world.content(replica, copy, "qcow2") == world.content(world.one, disk, "qcow2")
    world.life.power_off(vm)
    others = {0, 1, 2}
    for number in (2, 1):
        good(world.bed.oned.detach_disk(vm, vm.disk(number)))
        others.remove(number)
        assert copies(world, vm, number) == []
        assert all(len(copies(world, vm, other)) == 1 for other in others)
    image = world.bed.image(f"{SOURCES}/guest.raw")
    attached = world.bed.cloud.image_disk(image, RECOVERY_SNAPSHOT_FREQ="1")
    good(world.bed.oned.attach_disk(vm, attached))
    assert attached.id == 1
    recreate(world, vm)
    original = world.bed.frontend.read(f"{SOURCES}/guest.raw")
    assert world.two.read(world.disk(vm, 1)) == original
    assert "disk.1 does not come from a recovery copy" in world.bed.log()


def test_G3_a_copy_under_way_when_its_host_is_given_up_or_its_disk_detached(
    world: World, vm: Vm, replica: Node
) -> None:
    """It is younger than the copy that the VM went on from elsewhere, and older than the VM.

    That of a detached disk does not appear, and would not be used for one of the same image.
    """
    run(world)
    kept = moment(world, vm)
    world.kvm.guest_at_work(vm, "host01")
    waits = "while [ -e /var/tmp/reading ]; do sleep 0.1; done"
    with being_fetched(world, replica, waits) as at_work:
        vm.history[-1].seq += 1
        world.bed.cloud.save(vm)
        world.one.run(["rm", "/var/tmp/reading"])
        at_work.wait(timeout=60)
    assert moment(world, vm) == kept and unfinished(world.bed) == []
    assert "was deployed anew meanwhile" in world.bed.log()
    with being_fetched(world, replica, waits) as at_work:
        world.life.power_off(vm)  # nothing of the disk is locked, a snapshot would be possible
        good(world.life.snapshot(vm, vm.disks[0]))
        good(world.life.delete_snapshot(vm, vm.disks[0], 0))
        detached = vm.disks[0]
        good(world.bed.oned.detach_disk(vm, detached))
        world.one.run(["rm", "/var/tmp/reading"])
        at_work.wait(timeout=60)
    assert copies(world, vm) == [] and unfinished(world.bed) == []


def test_G3_G22_a_disk_that_has_grown_and_one_that_is_attached_after_a_recreate(
    world: World, vm: Vm, replica: Node
) -> None:
    """The copy is from before the disk has grown: its base has no name yet when the new disk is
    made as large as it was.

    And what is attached is new, even where the copy of an earlier one of the same image could
    not be removed.
    """
    run(world)
    count = moment(world, vm)
    world.life.power_off(vm)
    good(world.life.resize(vm, vm.disks[0], 72))
    recreate(world, vm)
    disk = world.disk(vm)
    assert world.count(world.two, disk).highest == count
    info = json.loads(world.two.run(["qemu-img", "info", "--output=json", disk]).stdout)
    assert (info["virtual-size"], info["backing-filename"]) == (72 << 20, "disk.0.base")
    world.bed.cloud.set_state(vm, objects.POWEROFF)
    kept = "/var/tmp/kept"
    replica.run(["sh", "-c", f"rm -rf {kept}; cp -a {ROOT}/{vm.id} {kept}"])
    original = world.bed.cloud.images[vm.disks[0].image_id or 0]
    good(world.bed.oned.detach_disk(vm, vm.disks[0]))
    replica.run(["sh", "-c", f"mv {kept} {ROOT}/{vm.id}"])
    good(world.bed.oned.attach_disk(vm, world.bed.cloud.image_disk(
        original, RECOVERY_SNAPSHOT_FREQ="1")))  # fmt: skip
    fresh = world.content(world.bed.frontend, original.source, "qcow2")
    assert world.content(world.two, world.disk(vm), "qcow2") == fresh


def test_G3_replica_down_at_a_detach(world: World, vm: Vm, replica: Node) -> None:
    """What it has is not used before it could be told to forget it."""
    run(world)
    world.life.power_off(vm)
    original = world.bed.cloud.images[vm.disks[0].image_id or 0]
    replica.cut()
    good(world.bed.oned.detach_disk(vm, vm.disks[0]))
    replica.heal()
    good(world.bed.oned.attach_disk(vm, world.bed.cloud.image_disk(
        original, RECOVERY_SNAPSHOT_FREQ="1")))  # fmt: skip
    assert copies(world, vm)
    fresh = world.content(world.one, world.disk(vm), "qcow2")
    recreate(world, vm)
    assert world.content(world.two, world.disk(vm), "qcow2") == fresh
    run(world)
    assert copies(world, vm) == []


def test_G19_a_replica_that_dies_in_the_middle_keeps_the_previous_copy(
    world: World, vm: Vm, replica: Node
) -> None:
    """And the next one in the list serves meanwhile; the youngest counts.

    A copy from before the clock was set back is not the youngest, neither at a recreate, nor for
    the pass, which keeps the younger one of two replicas. And the one that has it must be asked,
    though the datastore names others by now.
    """
    run(world)
    first = moment(world, vm)
    world.kvm.guest_at_work(vm, "host01")
    world.bed.configure('STALL_TIMEOUT="2"\nCONNECT_TIMEOUT="3"\n')
    with impatient(world.bed), being_fetched(world, replica, "sleep 600") as at_work:
        replica.cut()
        at_work.wait(timeout=120)
    # What stands before the agent is ours: without it that one would begin to wait for a dead peer.
    world.one.run(["pkill", "-KILL", "-f", "sleep 60[0]|onestor_bootstra[p]"], check=False)
    replica.heal()
    assert moment(world, vm) == first
    assert "has no new recovery copy" in world.bed.log()
    assert listed(world)[vm.id, "disk.0"]["error"]
    use_replicas(world, "host03", "host02")
    world.kvm.guest_at_work(vm, "host01")
    replica.cut()
    assert "1 copied" in run(world)
    replica.heal()
    later = moment(world, vm, world.two)
    assert later > first
    world.kvm.shutdown(vm, "host01")
    recreate(world, vm, "host01")
    assert world.count(world.one, world.disk(vm)).highest == later
    assert "comes from the recovery copy on host02" in world.bed.log()

    directory = os.path.dirname(copies(world, vm)[0])
    stem, _, point = directory.rpartition(".")
    ahead = f"{stem}.{int(point) + 86_400_000}"  # as it is called where it is tomorrow
    replica.run(["mv", directory, ahead])
    recreate(world, vm, "host01")
    assert world.count(world.one, world.disk(vm)).highest == later
    world.bed.oned.cloud.set_state(vm, objects.POWEROFF)  # nothing is copied: only cleaned up
    run(world)
    assert copies(world, vm) == [] and moment(world, vm, world.two) == later

    use_replicas(world, "host03")
    delete_for_recreate(world, vm)
    world.two.cut()
    reply = world.bed.oned.instantiate(vm, "host01", world.bed.system)
    assert not reply.success and "host02" in reply.error
    world.two.heal()
    run(world)  # it forgets no replica
    good(world.bed.oned.retry_prolog(vm))
    assert world.count(world.one, world.disk(vm)).highest == later


@pytest.mark.crash
def test_G19_a_recreate_that_finds_no_replica_and_one_that_is_killed_are_tried_again(
    world: World, vm: Vm, replica: Node
) -> None:
    run(world)
    kept = moment(world, vm)
    world.kvm.shutdown(vm, "host01")
    delete_for_recreate(world, vm)
    # A disk from the image would lack what the guest has written, and nobody would notice.
    replica.cut()
    reply = world.bed.oned.instantiate(vm, "host02", world.bed.system)
    assert not reply.success and "look for a recovery copy" in reply.error
    replica.heal()
    for point in crashpoints.names("tm.clone recovery"):
        world.bed.forget(str(crashpoints.NOTE))
        world.bed.environment(**{crashpoints.VARIABLE: point})
        assert not world.bed.oned.retry_prolog(vm).success
        assert set(world.bed.crashed_at()) == {point}
    world.bed.environment()
    good(world.bed.oned.retry_prolog(vm))
    count = world.count(world.two, world.disk(vm))
    assert count.highest == kept and count.is_one_moment
    assert_nothing_is_left(world)


@pytest.mark.fault
def test_a_base_that_the_cache_has_not_is_brought(world: World, vm: Vm, replica: Node) -> None:
    """To the replica with the first copy, and back from there; else it is the image itself."""
    world.bed.configure('CACHE_ENABLE="NO"\n')
    replica.run(["sh", "-c", f"rm -rf {DATASTORES}/101"])
    run(world)
    kept = moment(world, vm)
    name = f"{copies(world, vm)[0]}.base"
    base, whole = replica.path(name), replica.read(name)
    world.kvm.shutdown(vm, "host01")
    for damage in one_of(2, ["rotten", "", "cut short", "gone"]):
        replica.write(name, whole, mode=0o660)
        if damage == "rotten":
            with base.open("r+b") as file:
                file.write(b"odd")
        elif damage == "cut short":
            os.truncate(base, base.stat().st_size // 2)
        elif damage == "gone":
            base.unlink()
        recreate(world, vm)
        found = world.count(world.two, world.disk(vm))
        assert found.highest == kept and found.is_one_moment, damage
        assert world.two.exists(f"{world.disk(vm)}.base"), damage
