"""Recovery copies, made while guests write (known failures G)."""

from __future__ import annotations

import os
import time

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import CALL_ENVIRONMENT, program_before, warnings
from tests.drivers.starts import PLANTED, counted_starts
from tests.life.conftest import SOURCES, World
from tests.life.recovering import (
    ROOT,
    argv,
    assert_nothing_is_left,
    copies,
    good,
    listed,
    moment,
    onestor,
    recreate,
    run,
    started,
    use_replicas,
)
from tests.oned import objects
from tests.oned.objects import Vm
from tests.sampling import one_of, sample
from tests.testbed import STATE as ONED
from tests.waiting import wait_until

MB = 1 << 20


@pytest.fixture
def vm(world: World, replica: Node) -> Vm:
    """A VM that runs on host01 and writes to its thin disk, which asks for copies."""
    return started(world)


def test_G5_G6_G8_G9_G12_snapshots_and_live_migrations(world: World, vm: Vm, replica: Node) -> None:
    template = vm.disks[0]
    run(world)
    good(world.life.snapshot(vm, template))
    first = moment(world, vm)
    for host, node in (("host02", world.two), ("host01", world.one)):
        answer = world.life.live_migrate(vm, host)
        assert answer.success and world.life.after.success, (answer, world.life.after)
        world.kvm.guest_at_work(vm, host)
        assert node.exists(f"{world.directory(vm)}/vm.xml")
        assert "1 copied" in run(world)
        later = moment(world, vm)
        assert later > first
        first = later
    for numbers in ((9, 10), (123,)):  # a pass behind two of them, and behind one
        for number in numbers:
            vm.snapshots[0].next_snapshot = number
            good(world.life.snapshot(vm, template))
            world.kvm.guest_at_work(vm, "host01")
        run(world)
        assert moment(world, vm) > world.count(world.one, f"{world.disk(vm)}.snap/{number}").highest
    kept = {each: world.count(world.one, f"{world.disk(vm)}.snap/{each}") for each in (0, 9, 123)}
    good(world.life.delete_snapshot(vm, template, 10))
    assert "1 copied" in run(world)
    for number, count in kept.items():
        assert count.is_one_moment
        assert world.count(world.one, f"{world.disk(vm)}.snap/{number}") == count
    world.life.power_off(vm)
    before = moment(world, vm)
    assert "copied" not in run(world)  # it does not run: nothing to do, nothing to complain about
    assert warnings(world.bed) == []
    good(world.life.revert(vm, template, 9))
    assert world.count(world.one, world.disk(vm)) == kept[9]
    assert moment(world, vm) == before


def test_G7_incremental_backups(world: World, vm: Vm, replica: Node) -> None:
    """Three rounds of each by turns: every increment is right, and so is every copy.

    The first copy, of the guest at work, is before the backups; the others, of one that stands
    still, are behind them: what the backup has, too.
    """
    names: list[str] = []
    for number in range(3):
        if number == 0:
            run(world)
            moment(world, vm)
        world.kvm.guest_at_work(vm, "host01")
        world.kvm.virsh("host01", "suspend", vm.deploy_id)
        name = f"round{number}"
        world.backup(vm, name, names[-1] if names else "")
        names.append(name)
        restored = world.restored(*names)
        assert restored == world.content(world.one, world.disk(vm), "qcow2")
        run(world)
        world.kvm.virsh("host01", "resume", vm.deploy_id)
        (copy,) = copies(world, vm)
        assert world.content(replica, copy, "qcow2") == restored
    points = world.kvm.virsh("host01", "checkpoint-list", vm.deploy_id, "--name").split()
    assert points == names


def test_G15_G18_raw_disks_and_disks_that_do_not_ask(world: World, replica: Node) -> None:
    raw = world.bed.image(f"{SOURCES}/guest.raw")
    volatile = world.bed.cloud.volatile_disk(8, RECOVERY_SNAPSHOT_FREQ="3600")
    swap = world.bed.cloud.volatile_disk(8, "swap", RECOVERY_SNAPSHOT_FREQ="1")
    vm = world.bed.vm(raw, world.image(), volatile, swap)
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    good(world.bed.oned.instantiate(vm, "host01", world.bed.system))
    write = ["qemu-io", "-f", "raw", "-c", "write -P 9 1M 1M"]
    world.one.run([*write, world.disk(vm, volatile.id)])
    written = world.one.read(world.disk(vm, volatile.id))
    world.kvm.deploy(vm)
    world.kvm.guest_at_work(vm, "host01")
    assert "2 copied" in run(world)
    kept = {disk.id: len(copies(world, vm, disk.id)) for disk in vm.disks}
    assert kept == {0: 1, 1: 0, 2: 1, 3: 0}
    (copy,) = copies(world, vm)
    count = world.count(replica, copy, "raw")
    assert count.is_one_moment and count.highest > 0
    world.kvm.guest_at_work(vm, "host01")
    assert "1 copied" in run(world)  # the other one is not due
    (copy,) = copies(world, vm)
    later = world.count(replica, copy, "raw")
    assert later.highest > count.highest
    world.kvm.shutdown(vm, "host01")
    recreate(world, vm)
    assert world.count(world.two, world.disk(vm), "raw").highest == later.highest
    assert world.two.read(world.disk(vm, volatile.id)) == written


def test_G14_G17_the_switch(world: World, vm: Vm, replica: Node) -> None:
    """Removed from the disk, or REPLICA_HOST from the datastore: copies end with the next pass.

    Meanwhile the only replica is the VM's own host.
    """
    use_replicas(world, "host01")
    assert run(world) == ""
    why = "the only REPLICA_HOST is the VM's own host"
    assert listed(world)[vm.id, "disk.0"]["error"] == why
    assert vm.lcm_state == objects.RUNNING
    use_replicas(world, "host03")
    run(world)
    assert len(copies(world, vm)) == 1
    del vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"]
    world.bed.cloud.save(vm)
    for _ in range(2):
        assert "copied" not in run(world)
        assert copies(world, vm) == []
    assert listed(world) == {}
    assert not replica.exists(f"{ROOT}/{vm.id}")
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "often"
    world.bed.cloud.save(vm)
    assert "RECOVERY_SNAPSHOT_FREQ is 'often', not a number" in run(world)
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    world.bed.cloud.save(vm)
    run(world)
    assert len(copies(world, vm)) == 1
    use_replicas(world)
    assert "copied" not in run(world)
    assert copies(world, vm) == []  # though nobody names the replica any more
    assert "no REPLICA_HOST" in listed(world)[vm.id, "disk.0"]["error"]
    other = world.bed.vm(world.image())
    other.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    good(world.bed.oned.instantiate(other, "host02", world.bed.system))
    (warning,) = [line for line in warnings(world.bed) if f"VM {other.id} " in line]
    assert "has no REPLICA_HOST" in warning
    assert run(world) == ""


def test_passes_that_have_little_to_do(world: World, vm: Vm, replica: Node) -> None:
    """Of a front-end that does not lead, beside another driver's copies, of a disk at rest."""
    # The ssh driver keeps its own in the same directory, under the ids of VMs.
    replica.run(["mkdir", "-p", f"{ROOT}/77/disk.0.snap", f"{ROOT}/78"])
    replica.write(f"{ROOT}/77/disk.0.snap/base", "somebody's only copy")
    replica.write(f"{ROOT}/78/.disk.0.lock", "")
    run(world)
    assert replica.read(f"{ROOT}/77/disk.0.snap/base") == b"somebody's only copy"
    assert not replica.exists(f"{ROOT}/78")

    # Others than the leader may know less of VMs than there is, and would remove copies of those.
    (kept,) = copies(world, vm)
    world.bed.frontend.write(f"{ONED}/raft", "2\n", owner="root")
    try:
        assert "another front-end leads" in run(world)
    finally:
        world.bed.frontend.path(f"{ONED}/raft").unlink()
    assert copies(world, vm) == [kept]

    # What is not written to costs nothing.
    world.kvm.virsh("host01", "suspend", vm.deploy_id)
    assert "1 copied" in run(world)
    (before,) = copies(world, vm)
    file = replica.run(["stat", "-c", "%i", before]).stdout
    assert "1 unchanged" in run(world)
    (after,) = copies(world, vm)
    assert replica.run(["stat", "-c", "%i", after]).stdout == file
    assert after > before  # the name tells the moment it shows
    assert "DISK_RECOVERY_SNAPSHOT = [ID=0, TIMESTAMP=" in world.probe("host01", vm)
    row = listed(world)[vm.id, "disk.0"]
    assert row["age"] < 30 and row["replica"] == "host03" and row["frequency"] == 1
    assert "host03" in onestor(world, "list").splitlines()[1]
    world.kvm.virsh("host01", "resume", vm.deploy_id)
    assert f"VM {vm.id}: removed from host03" in onestor(world, "drop", str(vm.id))
    assert copies(world, vm) == []


def test_G3_G22_saves_resizes_and_another_version_of_the_image(
    world: World, vm: Vm, replica: Node
) -> None:
    """By turns with passes, in both orders; libvirt's path has a double slash in it.

    A copy goes with what the disk was made from: it is not used when the image has been replaced.
    """
    assert "//" in world.kvm.virsh("host01", "domblklist", vm.deploy_id)
    template = vm.disks[0]
    run(world)
    first = moment(world, vm)
    image = world.life.save_as(vm, template)
    assert world.count(world.bed.frontend, image.source).is_one_moment
    run(world)
    assert moment(world, vm) > first
    world.kvm.virsh("host01", "blockresize", vm.deploy_id, "vda", "72M")
    good(world.life.resize(vm, template, 72))
    run(world)
    (copy,) = copies(world, vm)
    assert len(world.content(replica, copy, "qcow2")) == 72 * MB
    world.kvm.shutdown(vm, "host01")
    source = world.bed.cloud.images[template.image_id or 0].source
    world.bed.frontend.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 40M 1M", source])
    recreate(world, vm)
    fresh = world.content(world.bed.frontend, source, "qcow2").ljust(72 * MB, b"\0")
    assert world.content(world.two, world.disk(vm), "qcow2") == fresh
    assert "of another image, or another version of it" in world.bed.log()


def test_G11_G22_L11_a_disk_of_the_old_recovery_layout(world: World, vm: Vm, replica: Node) -> None:
    world.life.power_off(vm)
    disk = world.disk(vm)
    script = f"""
qemu-img convert -f qcow2 -O qcow2 {disk} {disk}.flat && mkdir {disk}.snap &&
ln -s . {disk}.snap/disk.0.snap && mv {disk}.flat {disk}.snap/base && rm {disk} {disk}.base &&
qemu-img create -q -u -f qcow2 -b disk.0.snap/base -F qcow2 {disk}.snap/base.1 {64 * MB} &&
ln -s disk.0.snap/base.1 {disk}"""
    world.one.run(["sh", "-c", script])
    world.kvm.deploy(vm)
    world.bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    world.kvm.guest_at_work(vm, "host01")
    before = world.names(world.one, vm)
    for _ in range(2):
        world.kvm.guest_at_work(vm, "host01")
        assert "1 copied" in run(world)
    kept = moment(world, vm)
    assert world.names(world.one, vm) == before
    with program_before(world.one, "virsh", "exit 1"):  # nobody knows what is in use
        assert "1 failed" in run(world)
    assert world.names(world.one, vm) == before

    # It is a link into the directory of its snapshots, which goes on being one.
    good(world.life.snapshot(vm, vm.disks[0]))
    then = world.count(world.one, f"{disk}.snap/0")
    assert then.is_one_moment and then.highest > kept
    chain = ["qemu-img", "info", "-U", "--backing-chain", f"{disk}.snap/0"]
    assert "backing" not in world.one.run(chain).stdout
    assert os.readlink(world.one.path(disk)) == "disk.0.snap/base.1"
    world.life.power_off(vm)
    good(world.life.revert(vm, vm.disks[0], 0))
    assert world.count(world.one, disk).highest == then.highest
    snapshots = {name for name in world.names(world.one, vm) if name.startswith("disk.0.snap/")}
    assert snapshots == {"disk.0.snap/0", "disk.0.snap/disk.0.snap"}

    recreate(world, vm)
    assert world.count(world.two, disk).highest == kept


@pytest.mark.crash
def test_G10_G19_a_pass_that_is_killed_leaves_a_whole_copy(
    world: World, vm: Vm, replica: Node
) -> None:
    run(world)
    for point in one_of(2, crashpoints.names("recovery")):
        first = moment(world, vm)
        world.kvm.guest_at_work(vm, "host01")
        time.sleep(1.1)
        world.bed.forget(str(crashpoints.NOTE))
        onestor(world, "run", **{crashpoints.VARIABLE: point})
        assert set(world.bed.crashed_at()) == {point}
        kept = [world.count(replica, copy) for copy in copies(world, vm)]
        assert kept and all(count.is_one_moment and count.highest >= first for count in kept)
        assert "1 copied" in run(world), point
        assert moment(world, vm) > first
        assert_nothing_is_left(world)


@pytest.mark.fault
def test_G10_G19_a_pass_whose_programs_fail_leaves_a_whole_copy(
    world: World, vm: Vm, replica: Node
) -> None:
    """Each program that it starts, on any machine."""
    run(world)
    first = moment(world, vm)
    with counted_starts(world.bed) as starts:
        with starts.counting():
            assert "1 copied" in run(world)
        for number in sample(range(1, len(starts) + 1), 4):
            world.kvm.guest_at_work(vm, "host01")
            with starts.counting(fail=number):
                said = run(world)
                world.bed.assert_at_rest()
            culprit = starts[number]
            assert "1 copied" in said or PLANTED in said or culprit.split()[1] in said, culprit
            kept = [world.count(replica, copy) for copy in copies(world, vm)]
            assert kept and all(each.is_one_moment and each.highest >= first for each in kept)
    assert "1 copied" in run(world)
    assert moment(world, vm) > first
    assert_nothing_is_left(world)


def test_G13_dead_hosts_and_replicas_and_slow_vms_delay_no_other(
    world: World, vm: Vm, replica: Node
) -> None:
    other = started(world, host="host02")
    # The pass copies what is due again as long as it waits for the dead host: once is enough.
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "3600"
    world.bed.cloud.save(vm)
    use_replicas(world, "host02", "host03")
    world.two.cut()
    begin = time.monotonic()
    said = run(world)
    assert "1 copied" in said and "1 failed" in said
    assert time.monotonic() - begin < 60
    world.two.heal()
    assert len(copies(world, vm)) == 1 and copies(world, other) == []
    error = listed(world)[other.id, "disk.0"]["error"]
    assert "host02" in error
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    world.bed.cloud.save(vm)
    assert "2 copied" in run(world)
    assert listed(world)[other.id, "disk.0"]["error"] == ""

    use_replicas(world, "host03")
    kept, before = copies(world, vm), copies(world, other)
    waits = "touch /var/tmp/stuck; while [ -e /var/tmp/stuck ]; do sleep 0.1; done"
    stuck = f'case "$*" in *blockcopy*) {waits};; esac\nexec /usr/bin/virsh "$@"'
    world.one.run(["rm", "-f", "/var/tmp/stuck"])
    time.sleep(1.1)
    with (
        program_before(world.one, "virsh", stuck),
        world.bed.frontend.popen(argv("run"), env=CALL_ENVIRONMENT) as at_work,
    ):
        try:
            wait_until(lambda: world.one.exists("/var/tmp/stuck"), "one is stuck", 60)
            wait_until(lambda: copies(world, other) != before, "the other one is copied", 20)
            first = copies(world, other)
            begin = time.monotonic()
            assert "DISK_SIZE" in world.probe("host01", vm)
            assert time.monotonic() - begin < 2
            assert "another pass is at work" in run(world)
            wait_until(lambda: copies(world, other) != first, "and again when it is due", 60)
            assert set(copies(world, vm)) <= set(kept)  # none is made yet
        finally:
            world.one.run(["rm", "-f", "/var/tmp/stuck"])
        at_work.wait(timeout=120)
    assert len(copies(world, vm)) == 1 and copies(world, vm) != kept
