"""Live migration: what goes wrong with it, and what must not happen then (known failures D)."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.cluster import Node
from tests.cluster.sharing import share, unshare
from tests.drivers.conftest import program_before
from tests.life.conftest import SOURCES, World
from tests.oned import transfer
from tests.oned.objects import Vm
from tests.oned.reply import Reply
from tests.testbed import DATASTORES, REMOTES


@pytest.fixture
def vm(world: World) -> Iterator[Vm]:
    """A VM that runs on host01, with a thin disk."""
    vm = world.bed.vm(world.image())
    assert world.life.instantiate(vm, "host01", world.bed.system).success
    yield vm


def step(world: World, vm: Vm, name: str, *more: str) -> Reply:
    """One step of a live migration from host01 to host02, as oned has it called."""
    line = transfer.migration(vm, name, "host01", "host02")
    xml = vm.driver_xml(world.bed.cloud.version)
    return world.bed.oned.vmm.run_line(" ".join([line, *more]), xml)


def driver(world: World, name: str, script: str) -> None:
    """Another driver's scripts on the front-end; each notes how it was called."""
    for action in ("premigrate", "postmigrate", "failmigrate"):
        note = f'echo "{action} $*" >> /var/tmp/{name}; cat >> /var/tmp/{name}.stdin'
        path = f"{REMOTES}/tm/{name}/{action}"
        world.bed.frontend.write(path, f"#!/bin/sh\n{note}\n{script}\n", mode=0o755)
    world.bed.frontend.run(["rm", "-f", f"/var/tmp/{name}", f"/var/tmp/{name}.stdin"])


def foreign_disk(world: World, vm: Vm) -> None:
    """Let the VM have a disk that another driver keeps elsewhere."""
    disk = world.bed.cloud.volatile_disk(1)
    disk.attributes.update(
        {"DISK_ID": "7", "TM_MAD": "ceph", "IMAGE_ID": "99", "CLONE": "YES", "CLONE_TARGET": "SELF"}
    )
    disk.attributes["TARGET"] = "vdz"
    vm.disks.append(disk)
    world.bed.cloud.save(vm)


def test_L11_the_ssh_driver_has_no_part_in_it(world: World, vm: Vm) -> None:
    """Its scripts would remove the directory, at the target before and at the source behind it."""
    vm.disks[0].attributes["TM_MAD"] = "ssh"  # as of a disk that is older than the adoption
    world.bed.cloud.save(vm)
    world.kvm.guest_at_work(vm, "host01")
    driver(world, "ssh", "exit 1")
    try:
        answer = world.life.live_migrate(vm, "host02")
    finally:
        world.bed.frontend.run(["sh", "-c", f"rm {REMOTES}/tm/ssh/*migrate"])
    assert answer.success and world.life.after.success, (answer, world.life.after)
    assert not world.bed.frontend.exists("/var/tmp/ssh")
    world.kvm.guest_at_work(vm, "host02")
    assert not world.one.exists(world.directory(vm))


def test_D12_D13_after_a_failure_the_target_is_clean_and_the_guest_runs(
    world: World, vm: Vm
) -> None:
    """And what one has left there all the same goes with the next migration."""
    driver(world, "ceph", "exit 0")
    foreign_disk(world, vm)
    before = world.names(world.one, vm)
    world.kvm.failing = True
    answer = world.life.live_migrate(vm, "host02")
    assert answer.success and world.life.after.success, world.life.after
    assert world.names(world.two, vm) == set()
    assert world.names(world.one, vm) == before
    assert world.kvm.state(vm, "host01") == "running"
    called = world.bed.frontend.read("/var/tmp/ceph").decode().splitlines()
    directory = f"/var/lib/one//datastores/102/{vm.id}"
    words = f"host01 host02 {directory} {vm.id} 102 onestor"
    assert called == [f"premigrate {words}", f"failmigrate {words}"]
    told = base64.b64decode(world.bed.frontend.read("/var/tmp/ceph.stdin")[:400] + b"==")
    assert told.startswith(b"<VM><ID>")

    directory = world.directory(vm)
    world.two.write(f"{directory}/disk.0", b"half of it")
    world.two.write(f"{directory}/disk.0.snap/0", b"old")
    answer = world.life.live_migrate(vm, "host02")
    assert answer.success and world.life.after.success
    assert world.kvm.state(vm, "host02") == "running"
    assert not world.two.exists(f"{directory}/disk.0.snap")


def test_D15_what_premigrate_is_told_and_what_the_hypervisors_script_needs(
    world: World, vm: Vm
) -> None:
    directory = world.directory(vm)
    word = base64.b64encode(b"<IMAGE/>").decode()
    for nonsense in ("%%%", word, "a b"):
        argv = f"host01 host02 {directory} {vm.id} 102 {nonsense} onestor".split()
        done = world.bed.frontend.run([f"{REMOTES}/tm/onestor/premigrate", *argv], check=False)
        assert done.returncode != 0 and done.stderr.count("\n") == 1, nonsense

    world.one.run(["sh", "-c", f"rm {directory}/*.xml"])
    assert step(world, vm, "PREMIGRATE").success
    assert b"<VM><ID>" in world.one.read(f"{directory}/vm.xml")
    assert b"<DATASTORE>" in world.one.read(f"{directory}/ds.xml")
    assert step(world, vm, "FAILMIGRATE").success
    assert not world.two.exists(f"{directory}/disk.0.base")

    # The template as a word, as older manuals have it.
    xml = vm.driver_xml(world.bed.cloud.version).encode()
    line = transfer.migration(vm, "PREMIGRATE", "host01", "host02")
    word = base64.b64encode(xml).decode()
    reply = world.bed.oned.transfer_mad.run_line(f"{line} {word}")
    assert reply.success, reply.error
    assert world.two.exists(f"{directory}/disk.0.base")


def test_D16_nothing_goes_where_the_guest_still_runs_or_libvirt_does_not_tell(
    world: World, vm: Vm
) -> None:
    """libvirt has reported one thing and done the other, or does not answer."""
    half = f"{world.directory(vm)}/disk.0"
    world.two.write(half, b"half of it")

    def refused(name: str, node: Node) -> None:
        before = world.names(node, vm)
        reply = step(world, vm, name)
        assert not reply.success and "host02" in reply.error
        assert world.names(node, vm) == before

    refused("POSTMIGRATE", world.one)

    # The source is asked only by the one step that removes something there.
    before = [world.names(node, vm) for node in (world.one, world.two)]
    asked = [("PREMIGRATE", "host02"), ("FAILMIGRATE", "host02")]
    asked += [("POSTMIGRATE", "host02"), ("POSTMIGRATE", "host01")]
    for name, host in asked:
        with program_before(world.bed.cluster.node(host), "virsh", "echo broken >&2; exit 1"):
            reply = step(world, vm, name)
        assert not reply.success, (name, host)
        assert [world.names(node, vm) for node in (world.one, world.two)] == before

    world.two.run(["rm", half])
    assert step(world, vm, "PREMIGRATE").success
    assert world.kvm.migrate(vm, "host01", "host02")  # it has worked after all
    refused("FAILMIGRATE", world.two)


def test_D17_D18_other_drivers_that_call_or_fail_or_have_no_script(world: World, vm: Vm) -> None:
    """Called by one the directory is not touched; whichever fails, or has no script, is named."""
    driver(world, "ceph", "echo no such pool >&2; exit 1")
    foreign_disk(world, vm)
    world.two.write(f"{world.directory(vm)}/disk.0", b"of the other driver")
    before = [world.names(node, vm) for node in (world.one, world.two)]
    for name in ("PREMIGRATE", "POSTMIGRATE", "FAILMIGRATE"):
        reply = step(world, vm, name, "ceph")
        assert reply.success, reply.error
        assert [world.names(node, vm) for node in (world.one, world.two)] == before
    assert not world.bed.frontend.exists("/var/tmp/ceph")

    world.two.run(["rm", f"{world.directory(vm)}/disk.0"])
    for name in ("PREMIGRATE", "FAILMIGRATE"):
        reply = step(world, vm, name)
        assert not reply.success
        assert "driver ceph" in reply.error and "no such pool" in reply.error
    assert not step(world, vm, "POSTMIGRATE").success  # the guest runs on host01 besides

    vm.disks[-1].attributes["TM_MAD"] = "nothing"
    world.bed.cloud.save(vm)
    reply = step(world, vm, "PREMIGRATE")
    assert not reply.success and "driver nothing" in reply.error and "no such script" in reply.error


def test_D20_a_disk_that_would_not_be_copied(world: World, vm: Vm) -> None:
    disk = world.disk(vm)
    world.one.run(["mv", disk, f"{SOURCES}/elsewhere"])
    world.one.run(["ln", "-s", f"{SOURCES}/elsewhere", disk])
    before = [world.bed.files(node) for node in (world.one, world.two)]
    reply = step(world, vm, "PREMIGRATE")
    assert not reply.success and "a live migration does not copy" in reply.error
    assert [world.bed.files(node) for node in (world.one, world.two)] == before


def test_D5_a_datastore_that_is_shared_after_all(world: World, vm: Vm) -> None:
    """SHARED=NO is wrong: both hosts have one and the same directory."""
    path = f"{DATASTORES}/102"
    world.two.run(["mkdir", "-p", path])
    share(world.one, world.two, path)
    try:
        before = world.names(world.one, vm)
        for name in ("PREMIGRATE", "FAILMIGRATE"):
            reply = step(world, vm, name)
            assert reply.success, reply.error
            assert world.names(world.one, vm) == before
        world.kvm.migrate_shared(vm, "host01", "host02")
        reply = step(world, vm, "POSTMIGRATE")
        assert reply.success, reply.error
        assert world.names(world.two, vm) == before
        assert world.kvm.state(vm, "host02") == "running"
        world.kvm.shutdown(vm, "host02")
        lines = transfer.move(vm, "host02", "host01")
        assert world.bed.oned.transfer_mad.run_script(lines).success
        assert world.names(world.one, vm) == before
    finally:
        world.kvm.end_all()
        unshare(world.two, path)
