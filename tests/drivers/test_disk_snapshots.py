"""tm snap_create, snap_revert and snap_delete: disks of VMs that do not run (known failures F)."""

from __future__ import annotations

import os

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    configure_system,
    content,
    lock_held,
    placed,
    points,
    program_before,
    unfinished,
    warnings,
    write,
)
from tests.oned import objects, transfer
from tests.oned.life import Life
from tests.oned.objects import Image, Vm
from tests.oned.reply import Reply
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed

pytestmark = pytest.mark.cluster

MB = 1 << 20


@pytest.fixture
def life(bed: Testbed) -> Life:
    return Life(bed.oned)


def powered_off(bed: Testbed, image: Image, host: str = "host01") -> Vm:
    vm = bed.vm(image)
    reply = bed.oned.instantiate(vm, host, bed.system)
    assert reply.success, reply.error
    bed.cloud.set_state(vm, objects.POWEROFF)
    return vm


def good(reply: Reply) -> None:
    assert reply.success, reply.error


def files(bed: Testbed, node: Node) -> dict[str, int]:
    """All files below the datastores, but for locks, which say who had them."""
    return {name: size for name, size in bed.files(node).items() if not name.endswith(".lock")}


def names(node: Node, disk: str) -> set[str]:
    """What lies in the directory of a disk's snapshots."""
    return set(node.run(["find", f"{disk}.snap", "-printf", "%P\n"], check=False).stdout.split())


@pytest.mark.parametrize("source", one_of(2, [MEDIUM_QCOW2, MEDIUM]))
def test_F9_what_was_written_after_a_revert_goes_back_to_the_image(
    bed: Testbed, life: Life, source: str
) -> None:
    image = bed.image(source, persistent=True)
    vm = powered_off(bed, image)
    host, disk, template = bed.hosts[0], bed.disk_path(vm), vm.disks[0]
    good(life.snapshot(vm, template))
    then = content(host, disk, image.format)
    write(host, disk, image.format, 0xAA)
    good(life.revert(vm, template, 0))
    write(host, disk, image.format, 0xBB, "2M")
    now = content(host, disk, image.format)
    good(bed.oned.terminate(vm))
    found = content(bed.frontend, image.source, image.format)
    assert found == now and found[2 * MB] == 0xBB and found[MB] != 0xAA
    assert content(bed.frontend, f"{image.source}.snap/0", image.format) == then
    later = powered_off(bed, image, "host02")
    life._snapshots_of(later, later.disks[0]).add("", 8)
    good(life.revert(later, later.disks[0], 0))
    assert content(bed.hosts[1], bed.disk_path(later), image.format) == then


def test_F1_F4_F12_F15_the_snapshots_of_a_thin_disk_on_its_way(bed: Testbed, life: Life) -> None:
    """With a replica: snapshots, a larger disk, another host, one saved as image, all deleted."""
    configure_system(bed, REPLICA_HOST="host03")
    vm = powered_off(bed, bed.image(MEDIUM_QCOW2))
    disk, template = bed.disk_path(vm), vm.disks[0]
    one, two, replica = bed.hosts
    replicas = bed.files(replica)
    received = replica.bytes_received()
    kept = life._snapshots_of(vm, template)
    wanted: dict[int, bytes] = {}
    for number in (0, 9, 10, 123):
        kept.next_snapshot = number
        write(one, disk, "qcow2", number + 1)
        good(life.snapshot(vm, template))
        wanted[number] = content(one, disk, "qcow2")
    assert replica.bytes_received() - received < 64 << 10
    assert bed.files(replica) == replicas
    for number in wanted:
        size = one.path(f"{disk}.snap/{number}").stat()
        assert size.st_blocks * 512 < MB and size.st_mode & 0o777 == 0o660
    good(life.resize(vm, template, 12))
    write(one, disk, "qcow2", 77, "11M")
    for number, expected in wanted.items():
        assert content(one, f"{disk}.snap/{number}", "qcow2") == expected

    probe = ["/var/tmp/one/tm/onestor/monitor_ds", f"{DATASTORES}/102"]
    assert f"VM = [ ID = {vm.id}," in one.run(probe).stdout
    good(life.migrate(vm, "host02"))
    assert not one.exists(os.path.dirname(disk))
    for number, expected in wanted.items():
        assert content(two, f"{disk}.snap/{number}", "qcow2") == expected
    image = life.save_as(vm, template, 9)
    assert content(bed.frontend, image.source, "qcow2") == wanted[9]
    good(life.revert(vm, template, 10))
    assert content(two, disk, "qcow2") == wanted[10] + bytes(4 * MB)  # as large as oned counts it
    for number in (9, 123, 0, 10):
        good(life.delete_snapshot(vm, template, number))
    assert not two.exists(f"{disk}.snap")
    assert content(two, disk, "qcow2") == wanted[10] + bytes(4 * MB)
    assert bed.files(replica) == replicas


def test_F2_a_file_that_oned_does_not_know_is_moved_aside(bed: Testbed, life: Life) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk = bed.hosts[0], bed.disk_path(vm)
    host.run(["mkdir", f"{disk}.snap"])
    host.write(f"{disk}.snap/0", "of a failed one")
    good(life.snapshot(vm, vm.disks[0]))
    (aside,) = (name for name in names(host, disk) if name.endswith(".unknown"))
    assert host.read(f"{disk}.snap/{aside}") == b"of a failed one"
    (warning,) = warnings(bed)
    assert f"{disk}.snap/0" in warning and aside in warning
    assert content(host, f"{disk}.snap/0", "qcow2") == content(host, disk, "qcow2")


def test_F5_raw_disks_share_their_blocks_where_the_file_system_can(
    bed: Testbed, life: Life
) -> None:
    host = bed.hosts[0]
    host.mount_datastores(1024, "xfs+reflink")
    try:
        vm = powered_off(bed, bed.image(MEDIUM, persistent=True))
        disk = bed.disk_path(vm)
        fill = f"head -c 64M /dev/urandom > {disk}; sync"
        host.run(["sh", "-c", fill])

        def used() -> int:
            host.run(["sync"])
            facts = os.statvfs(host.path(DATASTORES))
            return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

        before = used()
        good(life.snapshot(vm, vm.disks[0]))
        assert used() - before < MB
        good(life.revert(vm, vm.disks[0], 0))
        assert used() - before < MB
        good(life.delete_snapshot(vm, vm.disks[0], 0))
    finally:
        host.unmount_datastores()


def test_F3_F7_a_full_disk_leaves_all_as_it_was(bed: Testbed, life: Life) -> None:
    host = bed.hosts[0]
    host.mount_datastores(24)
    bed.configure('CHECK_FREE_SPACE="NO"\n')
    try:
        vm = placed(bed, bed.image(MEDIUM, persistent=True))
        disk, template = bed.disk_path(vm), vm.disks[0]
        good(life.snapshot(vm, template))
        write(host, disk, "raw", 5)
        seen, snapshot = content(host, disk, "raw"), content(host, f"{disk}.snap/0", "raw")
        host.run(["sh", "-c", f"cat /dev/zero > {DATASTORES}/filler; sync"], check=False)
        before = files(bed, host)
        for reply in (life.snapshot(vm, template), life.revert(vm, template, 0)):
            assert not reply.success and "No space left" in reply.error
            assert files(bed, host) == before
            assert content(host, disk, "raw") == seen
            assert content(host, f"{disk}.snap/0", "raw") == snapshot
        bed.configure()
        reply = life.revert(vm, template, 0)
        assert not reply.success and "MB needed" in reply.error
    finally:
        bed.configure()
        host.unmount_datastores()


def crash_at(bed: Testbed, point: str) -> None:
    bed.environment(**{crashpoints.VARIABLE: point})


def recovered(bed: Testbed, point: str) -> None:
    """The process died there and nowhere else; from now on none does."""
    assert set(bed.crashed_at()) == {point}
    bed.environment()


@pytest.mark.crash
@pytest.mark.parametrize("point", one_of(2, crashpoints.names("tm.snap_create")))
def test_F3_snap_create_after_a_crash(bed: Testbed, life: Life, point: str) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk, template = bed.hosts[0], bed.disk_path(vm), vm.disks[0]
    if point == "snapshot.aside":
        host.run(["mkdir", f"{disk}.snap"])
        host.write(f"{disk}.snap/0", "of a failed one")
    seen = content(host, disk, "qcow2")
    crash_at(bed, point)
    assert not life.snapshot(vm, template).success
    recovered(bed, point)
    assert content(host, disk, "qcow2") == seen
    if host.exists(f"{disk}.snap/0"):
        assert content(host, f"{disk}.snap/0", "qcow2") == seen
    write(host, disk, "qcow2", 3)
    good(life.snapshot(vm, template))  # it has the same id: oned knows of no other one
    assert content(host, f"{disk}.snap/0", "qcow2") == content(host, disk, "qcow2")
    bed.assert_at_rest()
    assert unfinished(bed) == []


@pytest.mark.crash
@pytest.mark.parametrize("point", points("tm.snap_revert", "tm.clone"))
def test_F7_snap_revert_after_a_crash(bed: Testbed, life: Life, point: str) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk, template = bed.hosts[0], bed.disk_path(vm), vm.disks[0]
    old = content(host, disk, "qcow2")
    good(life.snapshot(vm, template))
    write(host, disk, "qcow2", 3)
    new = content(host, disk, "qcow2")
    crash_at(bed, point)
    assert not life.revert(vm, template, 0).success
    recovered(bed, point)
    assert content(host, disk, "qcow2") in (old, new)
    good(life.revert(vm, template, 0))
    assert content(host, disk, "qcow2") == content(host, f"{disk}.snap/0", "qcow2") == old
    bed.assert_at_rest()
    assert unfinished(bed) == []


@pytest.mark.parametrize("point", crashpoints.names("tm.snap_delete"))
def test_F13_snap_delete_after_a_crash(bed: Testbed, life: Life, point: str) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk, template = bed.hosts[0], bed.disk_path(vm), vm.disks[0]
    good(life.snapshot(vm, template))
    host.run(["cp", f"{disk}.snap/0", f"{disk}.snap/1"])
    life._snapshots_of(vm, template).add("", 8)
    bed.cloud.save(vm)
    seen = content(host, disk, "qcow2")
    crash_at(bed, point)
    assert not life.delete_snapshot(vm, template, 0).success
    recovered(bed, point)
    assert content(host, disk, "qcow2") == content(host, f"{disk}.snap/1", "qcow2") == seen
    good(life.delete_snapshot(vm, template, 0))
    assert names(host, disk) == {"", "1", "disk.0.base"} - {""}
    bed.assert_at_rest()


def test_F2_K1_each_program_that_fails_leaves_all_as_it_was(bed: Testbed, life: Life) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk, template = bed.hosts[0], bed.disk_path(vm), vm.disks[0]
    good(life.snapshot(vm, template))
    template.attributes["SIZE"] = "9"  # to be made larger, behind the copy
    bed.cloud.save(vm)
    before, seen = files(bed, host), content(host, disk, "qcow2")
    looks_on = 'case "$1 $2" in "info --output"*) exec /usr/bin/qemu-img "$@";; esac\n'
    for program in ("qemu-img", "python3"):
        script = f"{looks_on if program == 'qemu-img' else ''}echo broken >&2; exit 3"
        with program_before(host, program, script):
            reply = life.revert(vm, template, 0)
        assert not reply.success and "broken" in reply.error
        assert files(bed, host) == before
        with program_before(host, program, "echo broken >&2; exit 3"):
            reply = life.snapshot(vm, template)
        assert not reply.success and "broken" in reply.error and "host01" in reply.error
        assert files(bed, host) == before
        assert content(host, disk, "qcow2") == seen


def test_one_action_at_a_time_changes_a_disk(bed: Testbed, life: Life) -> None:
    bed.configure('REPLICA_COPY_LOCK_TIMEOUT="1"\n')
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    directory = os.path.dirname(bed.disk_path(vm))
    with lock_held(bed.hosts[0], f"{directory}/.disk.0.lock"):
        for reply in (life.snapshot(vm, vm.disks[0]), life.resize(vm, vm.disks[0], 9)):
            assert not reply.success and ".disk.0.lock" in reply.error


def test_a_host_that_cannot_be_reached_is_named(bed: Testbed, life: Life) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    bed.hosts[0].cut()
    reply = life.snapshot(vm, vm.disks[0])
    assert not reply.success and "host01" in reply.error


WRONG = [
    ("host01:/var/lib/one//datastores/102/{id}/disk.0 {id} 101", "expected host:DIR/disk.i"),
    ("host01:/var/lib/one//datastores/102/{id}/disk.0 -1 {id} 101", "'-1', not a number"),
    ("host01:/var/lib/one//datastores/102/{id}/disk.0 ../1 {id} 101", "not a number"),
    ("host01:/var/lib/one//datastores/102/{id} 0 {id} 101", "is no disk"),
    ("host01:/var/lib/one//datastores/102/{id}/disk.7 0 {id} 101", "no disk 7"),
]
SNAP_ACTIONS = ("SNAP_CREATE", "SNAP_REVERT", "SNAP_DELETE")


@pytest.mark.parametrize(
    ("words", "expected", "action"),
    one_of(3, [(*wrong, action) for wrong in WRONG for action in SNAP_ACTIONS]),
)
def test_K5_wrong_words_are_one_line(bed: Testbed, words: str, expected: str, action: str) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    line = f"{action} onestor {words.format(id=vm.id)}"
    reply = bed.oned.transfer_mad.run_line(line)
    assert not reply.success and expected in reply.error
    assert "Traceback" not in reply.error


def test_F13_deleting_what_is_not_there_is_done(bed: Testbed) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    line = transfer.snapshot(vm, vm.disks[0], "SNAP_DELETE", 5)
    good(bed.oned.transfer_mad.run_line(line))
    assert "snapshot 5" in warnings(bed)[0]
