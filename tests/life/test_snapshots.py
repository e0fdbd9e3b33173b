"""Snapshots of the disks of VMs that run: one moment each, and the guest goes on (failures F)."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import agents, points, program_before, unfinished, warnings
from tests.life.conftest import SOURCES, World
from tests.oned import transfer
from tests.oned.objects import Vm
from tests.oned.reply import Reply
from tests.testbed import DATASTORES
from tests.waiting import wait_until

MB = 1 << 20


def good(reply: Reply) -> None:
    assert reply.success, reply.error


def chain(world: World, disk: str) -> str:
    return world.one.run(["qemu-img", "info", "-U", "--backing-chain", disk]).stdout


def names(world: World, vm: Vm, disk: int = 0) -> set[str]:
    found = world.one.run(["find", f"{world.disk(vm, disk)}.snap", "-printf", "%P\n"], check=False)
    return set(found.stdout.split())


def moment(world: World, vm: Vm, number: int, disk: int = 0, image_format: str = "qcow2") -> int:
    """How far the guest was: the snapshot is the disk at one moment."""
    count = world.count(world.one, f"{world.disk(vm, disk)}.snap/{number}", image_format)
    assert count.is_one_moment
    return count.highest


def test_F1_F4_a_guest_that_writes_goes_on(world: World, with_raw: Vm) -> None:
    vm = with_raw
    disk, template = world.disk(vm), vm.disks[0]
    before = world.kvm.virsh("host01", "domblklist", vm.deploy_id)
    layers = chain(world, disk).count("image: ")
    good(world.life.snapshot(vm, template))
    first = moment(world, vm, 0)
    world.kvm.guest_at_work(vm, "host01")
    good(world.life.snapshot(vm, template))
    assert 0 < first < moment(world, vm, 1)
    assert world.kvm.virsh("host01", "domblklist", vm.deploy_id) == before
    assert chain(world, disk).count("image: ") == layers == 2
    assert names(world, vm) == {"0", "1", "disk.0.base"}
    for number in (0, 1):
        file = world.one.path(f"{disk}.snap/{number}").stat()
        assert file.st_blocks * 512 < 2 * MB and file.st_mode & 0o777 == 0o660
    assert "SNAPSHOT_SIZE = [ID=1, DISK_ID=0" in world.probe("host01", vm)
    good(world.life.delete_snapshot(vm, template, 1))

    good(world.life.snapshot(vm, vm.disks[1]))  # the persistent one, which nobody writes to
    original = world.bed.frontend.read(f"{SOURCES}/guest.raw")
    assert world.one.read(f"{world.disk(vm, 1)}.snap/0") == original

    world.life.power_off(vm)
    good(world.life.revert(vm, template, 0))
    count = world.count(world.one, disk)
    assert count.highest == first and count.is_one_moment
    good(world.life.delete_snapshot(vm, template, 0))
    good(world.bed.oned.terminate(vm))
    assert world.bed.frontend.read(f"{vm.disks[1].attributes['SOURCE']}.snap/0") == original


def test_D19_L11_snapshots_go_with_a_live_migration_and_can_be_reverted_to(
    world: World, vm: Vm
) -> None:
    """The disk is flattened on its way, its snapshots stay overlays.

    They need the base, which the hypervisor does not bring.
    """
    disk, one, two = world.disk(vm), world.one, world.two
    good(world.life.snapshot(vm, vm.disks[0]))
    then = moment(world, vm, 0)
    for number in (9, 10, 123):
        file = f"{disk}.snap/{number}"
        create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "disk.0.base"]
        one.run([*create, "-F", "qcow2", file, str(64 * MB)])
        one.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {number + 1} 2M 64k", file])

    def digests(node: Node) -> list[str]:
        files = (f"{disk}.snap/{number}" for number in (0, 9, 10, 123))
        contents = (world.content(node, file, "qcow2") for file in files)
        return [hashlib.sha256(content).hexdigest() for content in contents]

    before = digests(one)
    answer = world.life.live_migrate(vm, "host02")
    assert answer.success and world.life.after.success, (answer, world.life.after)
    assert digests(two) == before
    assert world.names(one, vm) == set()
    world.kvm.guest_at_work(vm, "host02")
    good(world.life.snapshot(vm, vm.disks[0]))
    world.life.power_off(vm)
    later = world.count(world.two, f"{disk}.snap/1")
    assert later.is_one_moment and later.highest > then
    good(world.life.revert(vm, vm.disks[0], 0))
    assert world.count(world.two, disk).highest == then
    world.kvm.deploy(vm)
    world.kvm.guest_at_work(vm, "host02")
    world.life.power_off(vm)
    # It is moved on, cold, and everything is there still.
    assert world.life.migrate(vm, "host01").success
    assert digests(one) == before


def test_F5_a_raw_disk_shares_its_blocks_while_the_guest_writes(world: World) -> None:
    world.one.mount_datastores(1024, "xfs+reflink")
    try:
        vm = world.bed.vm(world.bed.image(f"{SOURCES}/guest.raw", persistent=True))
        good(world.life.instantiate(vm, "host01", world.bed.system))
        world.kvm.guest_at_work(vm, "host01")

        def used() -> int:
            world.one.run(["sync"])
            facts = os.statvfs(world.one.path(DATASTORES))
            return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

        before = used()
        with program_before(world.one, "virsh", failing("blockcopy")):
            good(world.life.snapshot(vm, vm.disks[0]))
        assert used() - before < 2 * MB  # what the guest has written meanwhile included
        assert moment(world, vm, 0, image_format="raw") > 0
        world.life.power_off(vm)
    finally:
        world.kvm.end_all()
        world.one.unmount_datastores()


def test_incremental_backups_do_not_notice(world: World, vm: Vm) -> None:
    """A checkpoint is there before, one is made after, and the increment is right."""
    disk, template = world.disk(vm), vm.disks[0]
    world.backup(vm, "full")
    checkpoints = world.kvm.virsh("host01", "checkpoint-list", vm.deploy_id, "--name").split()
    assert checkpoints == ["full"]
    good(world.life.snapshot(vm, template))
    assert (
        world.kvm.virsh("host01", "checkpoint-list", vm.deploy_id, "--name").split() == checkpoints
    )
    world.kvm.guest_at_work(vm, "host01")
    moment(world, vm, 0)
    world.kvm.virsh("host01", "suspend", vm.deploy_id)
    world.backup(vm, "increment", "full")
    now = world.content(world.one, disk, "qcow2")
    world.kvm.virsh("host01", "resume", vm.deploy_id)
    assert world.restored("full", "increment") == now
    good(world.life.snapshot(vm, template))
    assert moment(world, vm, 1) > moment(world, vm, 0)
    world.life.power_off(vm)
    bitmaps = world.one.run(["qemu-img", "info", disk]).stdout
    good(world.life.revert(vm, template, 1))
    assert "name: full" in bitmaps
    assert "name: full" not in world.one.run(["qemu-img", "info", disk]).stdout
    assert any("has to be a full one" in line for line in warnings(world.bed))


def failing(action: str, cause: str = "is broken") -> str:
    """A virsh that fails to do one thing."""
    return (
        f'case " $* " in *" {action} "*) echo "error: {action} {cause}" >&2; exit 1;; esac\n'
        'exec /usr/bin/virsh "$@"'
    )


def agent_says(freeze: str, thaw: str) -> str:
    """A virsh for a guest with an agent, which notes what that is told."""
    note = 'echo "$4" >> /var/tmp/agent.log'
    return (
        f'case "$4" in domfsfreeze) {note}; {freeze};; domfsthaw) {note}; {thaw};; esac\n'
        'exec /usr/bin/virsh "$@"'
    )


def told(world: World) -> list[str]:
    said = world.one.read("/var/tmp/agent.log").decode().split()
    world.one.run(["rm", "/var/tmp/agent.log"])
    return said


def test_F10_F11_the_guests_agent(world: World, vm: Vm) -> None:
    """It freezes and thaws; it does not answer; it does not thaw at once, or not at all."""
    template = vm.disks[0]
    with program_before(world.one, "virsh", agent_says("exit 0", "exit 0")):
        good(world.life.snapshot(vm, template))
    assert told(world) == ["domfsfreeze", "domfsthaw"]

    with program_before(world.one, "virsh", agent_says("sleep 600", "exit 0")):
        begin = time.monotonic()
        good(world.life.snapshot(vm, template))
        assert time.monotonic() - begin < 40
    assert told(world) == ["domfsfreeze", "domfsthaw"]

    with program_before(world.one, "virsh", agent_says("sleep 600", "echo stuck >&2; exit 1")):
        reply = world.life.snapshot(vm, template)  # it may have frozen, and nobody can tell
    assert not reply.success and "thaw the guest" in reply.error
    assert told(world) == ["domfsfreeze", *["domfsthaw"] * 3]

    once = "if test -e /var/tmp/thaws; then rm /var/tmp/thaws; exit 0; fi; touch /var/tmp/thaws"
    with program_before(world.one, "virsh", agent_says("exit 0", f"{once}; exit 1")):
        good(world.life.snapshot(vm, template))
    assert told(world) == ["domfsfreeze", "domfsthaw", "domfsthaw"]

    before = names(world, vm)
    with program_before(world.one, "virsh", agent_says("exit 0", "echo stuck >&2; exit 1")):
        reply = world.life.snapshot(vm, template)
    assert not reply.success and "thaw the guest" in reply.error and "stuck" in reply.error
    assert told(world) == ["domfsfreeze", *["domfsthaw"] * 3]
    assert names(world, vm) == before
    assert world.kvm.state(vm, "host01") == "running"


def test_F14_what_apparmor_denies_is_named(world: World, vm: Vm) -> None:
    """It is done another way; where that fails, too, nothing is left but the error."""
    denied = failing("blockcopy", "/disk.0: Permission denied")
    before = chain(world, world.disk(vm)).count("image: ")
    with program_before(world.one, "virsh", denied):
        good(world.life.snapshot(vm, vm.disks[0]))
        assert any("AppArmor" in line for line in warnings(world.bed))
        assert moment(world, vm, 0) > 0
        with program_before(world.one, "cp", "echo no cp >&2; exit 1"):
            reply = world.life.snapshot(vm, vm.disks[0])
    assert not reply.success and "AppArmor" in reply.error and "no cp" in reply.error
    assert names(world, vm) == {"0", "disk.0.base"}
    assert chain(world, world.disk(vm)).count("image: ") == before
    world.kvm.guest_at_work(vm, "host01")


@pytest.mark.crash
@pytest.mark.parametrize("point", points("tm.snap_create_live", "tm.snap_create"))
def test_F3_after_a_crash_there_is_no_snapshot_or_a_whole_one(
    world: World, vm: Vm, point: str
) -> None:
    if point == "snapshot.aside":
        world.one.run(["mkdir", f"{world.disk(vm)}.snap"])
        world.one.write(f"{world.disk(vm)}.snap/0", "of a failed one")
    world.bed.environment(**{crashpoints.VARIABLE: point})
    assert not world.life.snapshot(vm, vm.disks[0]).success
    assert set(world.bed.crashed_at()) == {point}
    world.bed.environment()
    if world.one.exists(f"{world.disk(vm)}.snap/0"):
        moment(world, vm, 0)
    good(world.life.snapshot(vm, vm.disks[0]))
    moment(world, vm, 0)
    world.bed.assert_at_rest()
    assert unfinished(world.bed) == []


def test_E10_F3_the_job_of_an_action_that_was_killed_is_cancelled_at_once(
    world: World, with_raw: Vm
) -> None:
    vm = with_raw
    world.bed.configure('REPLICA_BWLIMIT_MB_S="1"\nBLOCK_JOB_TIMEOUT="600"\n')
    template = vm.disks[1]
    number = world.life._snapshots_of(vm, template).add("", 64)
    line = transfer.snapshot(vm, template, "SNAP_CREATE_LIVE", number)
    call = world.bed.oned.transfer_mad.start_script([line])
    wait_until(lambda: "<mirror" in world.domain_xml(vm), "the disk is copied")
    world.one.run(["kill", "-KILL", *map(str, agents(world.one))])
    assert not call.wait().success
    assert "<mirror" in world.domain_xml(vm)
    world.bed.configure('BLOCK_JOB_TIMEOUT="600"\n')
    begin = time.monotonic()
    good(world.life.snapshot(vm, template))
    assert time.monotonic() - begin < 60
    original = world.bed.frontend.read(f"{SOURCES}/guest.raw")
    assert world.one.read(f"{world.disk(vm, 1)}.snap/1") == original
    assert names(world, vm, 1) == {"1"}


def test_E11_other_hypervisors_and_vms_that_do_not_run(world: World, vm: Vm) -> None:
    driver, vm.history[-1].vm_mad = vm.history[-1].vm_mad, "lxc"
    world.bed.cloud.save(vm)
    line = transfer.snapshot(vm, vm.disks[0], "SNAP_CREATE_LIVE", 0)
    reply = world.bed.oned.vmm.run_line(line)
    assert not reply.success and "'lxc'" in reply.error
    assert names(world, vm) == set()
    vm.history[-1].vm_mad = driver
    world.bed.cloud.save(vm)

    world.kvm.virsh("host01", "destroy", vm.deploy_id)
    before = world.names(world.one, vm)
    reply = world.life.snapshot(vm, vm.disks[0])
    assert not reply.success and "host01" in reply.error
    assert world.names(world.one, vm) == before
