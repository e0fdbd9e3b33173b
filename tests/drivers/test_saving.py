"""tm mvds and cpds: disks on their way back into the image datastore (known failures E)."""

from __future__ import annotations

import itertools
import os

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    QCOW2,
    RAW,
    agents,
    bridged,
    content,
    digest,
    placed,
    points,
    program_before,
    vm_files,
    write,
)
from tests.oned import objects, transfer
from tests.oned.life import Life
from tests.oned.objects import READY, Image, Vm
from tests.oned.reply import Reply
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

IDS = ("0", "9", "10", "123")


def running(bed: Testbed, image: Image, host: str = "host01") -> Vm:
    vm = bed.vm(image)
    reply = bed.oned.instantiate(vm, host, bed.system)
    assert reply.success, reply.error
    bed.cloud.set_state(vm, objects.POWEROFF)
    return vm


def bring_back(bed: Testbed, vm: Vm, disk: int = 0) -> Reply:
    """MVDS alone, as it is repeated in EPILOG_FAILURE."""
    line = transfer._dismiss(vm, vm.disk(disk))
    assert line.startswith("MVDS ")
    return bed.oned.transfer_mad.run_line(line)


def disk_files(bed: Testbed, node: Node, vm: Vm) -> set[str]:
    """What is left of the VM's disks, but for notes and locks."""
    names = {name.split("/", 2)[2] for name in vm_files(bed, node) if "/disk." in name}
    return {name for name in names if not name.startswith(".")}


def image_files(bed: Testbed, image: Image, node: Node | None = None) -> set[str]:
    """What lies in the image datastore under the image's name."""
    name = os.path.basename(image.source)
    files = bed.files(node or bed.frontend, f"{DATASTORES}/101")
    return {found for found in files if name in found and not found.endswith(".returned")}


@pytest.mark.parametrize("source", one_of(2, [MEDIUM, MEDIUM_QCOW2]))
def test_E6_L6_trap22_a_persistent_disk_goes_back_with_its_snapshots(
    bed: Testbed, source: str
) -> None:
    """Also when the epilog is repeated, until another VM has had the image since."""
    image = bed.image(source, persistent=True)
    image_format, host = image.format, bed.hosts[0]
    vm = running(bed, image)
    disk = bed.disk_path(vm)
    host.run(["mkdir", f"{disk}.snap"])
    for snapshot in IDS:
        write(host, disk, image_format, int(snapshot))
        host.run(["cp", disk, f"{disk}.snap/{snapshot}"])
    write(host, disk, image_format, 77)
    wanted = {name: digest(host, f"{disk}.snap/{name}") for name in IDS}
    now = digest(host, disk)
    old = bed.frontend.read(image.source)
    bed.frontend.write(f"{image.source}.md5sum", "stale")
    bed.frontend.run(["mkdir", f"{image.source}.snap"])
    bed.frontend.write(f"{image.source}.snap/5", "gone in the VM")

    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert digest(bed.frontend, image.source) == now and bed.frontend.read(image.source) != old
    assert {name: digest(bed.frontend, f"{image.source}.snap/{name}") for name in IDS} == wanted
    name = os.path.basename(image.source)
    assert image_files(bed, image) == {
        name, f".{name}.manifest", *(f"{name}.snap/{snapshot}" for snapshot in IDS)
    }  # fmt: skip
    assert bed.frontend.path(image.source).stat().st_mode & 0o777 == 0o660
    assert disk_files(bed, host, vm) == set()

    # The epilog failed later and is repeated: the disk is gone, the image stays as it is.
    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert digest(bed.frontend, image.source) == now

    # trap22: the delete of its last line was done, and its answer was lost.
    host.run(["rm", "-rf", os.path.dirname(disk)])
    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert digest(bed.frontend, image.source) == now
    assert not host.exists(os.path.dirname(disk))

    later = running(bed, image, "host02")
    assert digest(bed.hosts[1], bed.disk_path(later)) == now
    assert digest(bed.hosts[1], f"{bed.disk_path(later)}.snap/123") == wanted["123"]
    # What the other VM brings back is not this one's.
    assert bring_back(bed, later).success
    reply = bring_back(bed, vm)
    assert not reply.success and "nothing says that it is back" in reply.error


def test_L13_a_disk_that_a_vm_still_has_open_is_not_taken_away(bed: Testbed) -> None:
    """The guest has not let go of it yet; or it runs though oned believes that it does not."""
    image = bed.image(MEDIUM_QCOW2, persistent=True)
    vm = placed(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    before = digest(bed.frontend, image.source)
    script = f"(echo 'read 0 512'; touch /var/tmp/open; sleep 5) | qemu-io -f qcow2 {disk}"
    host.run(["rm", "-f", "/var/tmp/open"])
    with host.popen(["sh", "-c", script]) as program:
        wait_until(lambda: host.exists("/var/tmp/open"), "it is open")
        line = transfer._dismiss(vm, vm.disks[0])
        call = bed.oned.transfer_mad.start_script([line])
        wait_until(lambda: agents(host), "the action looks")
        assert digest(bed.frontend, image.source) == before
        program.wait(timeout=60)
        reply = call.wait()
    assert reply.success, reply.error
    assert not host.exists(disk)


def test_trap8_L13_an_image_that_was_released_or_has_no_disk_is_left_alone(bed: Testbed) -> None:
    image = bed.image(MEDIUM, persistent=True)
    vm = placed(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    write(host, disk, "raw", 9)
    before = digest(bed.frontend, image.source)
    # oned has cancelled the action, and does not end it.
    bed.cloud.set_state(vm, objects.ACTIVE, objects.CLEANUP_DELETE)
    reply = bring_back(bed, vm)
    assert not reply.success and "is being deleted" in reply.error
    assert digest(bed.frontend, image.source) == before
    assert host.exists(disk)
    # L13: nobody can account for the disk.
    bed.cloud.set_state(vm, objects.POWEROFF)
    host.run(["rm", disk])
    reply = bring_back(bed, vm)
    assert not reply.success
    assert disk in reply.error and "nothing says that it is back" in reply.error
    assert digest(bed.frontend, image.source) == before


def test_D10_datastores_that_are_links(bed: Testbed) -> None:
    """On the host and on the front-end, as administrators put them on other file systems."""
    host, life = bed.hosts[0], Life(bed.oned)
    for node, number in ((host, 102), (bed.frontend, 101)):
        script = f"mkdir /var/tmp/big && ln -s /var/tmp/big {DATASTORES}/{number}"
        node.run(["sh", "-c", f"rm -rf {DATASTORES}/{number} && {script}"])
    try:
        image, other = bed.image(MEDIUM_QCOW2, persistent=True), bed.image(MEDIUM_QCOW2)
        vm = bed.vm(image, other)
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        assert reply.success, reply.error
        bed.cloud.set_state(vm, objects.POWEROFF)
        for disk in vm.disks:
            path = bed.disk_path(vm, disk.id)
            assert life.snapshot(vm, disk).success
            write(host, path, "qcow2", 5)
            assert life.resize(vm, disk, 9).success
            saved = life.save_as(vm, disk)
            assert saved.state == READY, saved.template
            seen = content(host, path, "qcow2")
            assert content(bed.frontend, saved.source, "qcow2") == seen
            reply = life.revert(vm, disk, 0)
            assert reply.success, reply.error
        now = content(host, bed.disk_path(vm), "qcow2")
        reply = bed.oned.terminate(vm)
        assert reply.success, reply.error
        assert content(bed.frontend, image.source, "qcow2") == now
    finally:
        for node, number in ((host, 102), (bed.frontend, 101)):
            node.run(["rm", "-rf", f"{DATASTORES}/{number}", "/var/tmp/big"])


def recovery_layout(host: Node, disk: str, size: str = "8M") -> None:
    """As the ssh driver's recovery snapshots leave a qcow2 disk (contract section 6.1)."""
    snap = f"{disk}.snap"
    name = os.path.basename(snap)
    host.run(["mkdir", snap])
    host.run(["ln", "-s", ".", f"{snap}/{name}"])
    host.run(["mv", disk, f"{snap}/base"])
    options = ["-b", f"{name}/base", "-F", "qcow2", f"{snap}/base.1"]
    host.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, size])
    host.run(["ln", "-s", f"{name}/base.1", disk])


def assert_one_file(bed: Testbed, image: Image, seen: bytes, snapshots: dict[str, bytes]) -> None:
    """The image is complete in itself, with these snapshots and nothing else beside it."""
    assert content(bed.frontend, image.source, "qcow2") == seen
    info = bed.frontend.run(["qemu-img", "info", "-f", "qcow2", image.source]).stdout
    assert "backing" not in info
    assert bed.frontend.path(image.source).is_file()
    assert not bed.frontend.path(image.source).is_symlink()
    for snapshot, expected in snapshots.items():
        assert content(bed.frontend, f"{image.source}.snap/{snapshot}", "qcow2") == expected
    name = os.path.basename(image.source)
    assert image_files(bed, image) == {
        name, f".{name}.manifest", *(f"{name}.snap/{snapshot}" for snapshot in snapshots)
    }  # fmt: skip


def test_E2_E3_L11_the_recovery_layout_becomes_one_file(bed: Testbed) -> None:
    """With snapshots; without any below, behind programs that fail."""
    image = bed.image(MEDIUM_QCOW2, persistent=True)
    vm = placed(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    recovery_layout(host, disk)
    wanted = {}
    for snapshot in IDS:
        write(host, disk, "qcow2", int(snapshot) + 1)
        host.run(["cp", f"{disk}.snap/base.1", f"{disk}.snap/{snapshot}"])
        wanted[snapshot] = content(host, f"{disk}.snap/{snapshot}", "qcow2")
    write(host, disk, "qcow2", 200, "5M")
    seen = content(host, disk, "qcow2")
    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert_one_file(bed, image, seen, wanted)
    assert disk_files(bed, host, vm) == set()


def test_E1_E5_no_room_to_flatten_harms_nothing(bed: Testbed) -> None:
    host = bed.hosts[0]
    host.mount_datastores(24)
    try:
        bed.configure('CHECK_FREE_SPACE="NO"\n')
        image = bed.image(QCOW2, persistent=True)
        vm = placed(bed, image)
        disk = bed.disk_path(vm)
        recovery_layout(host, disk, "67109376")
        write(host, disk, "qcow2", 5)

        def contents() -> dict[str, str]:
            names = [name for name in vm_files(bed, host) if not name.endswith((".snap", ".lock"))]
            return {name: digest(host, f"{DATASTORES}/{name}") for name in names}

        host.run(["sh", "-c", f"head -c 12M /dev/urandom > {DATASTORES}/filler; sync"], check=False)
        before = contents()
        image_before = digest(bed.frontend, image.source)
        reply = bring_back(bed, vm)
        assert not reply.success and "flatten disk" in reply.error
        assert digest(bed.frontend, image.source) == image_before
        wait_until(lambda: contents() == before, "all is as it was")
        bed.configure()
        reply = bring_back(bed, vm)  # with the check it is told before anything is done
        assert not reply.success and "MB needed" in reply.error
    finally:
        bed.configure()
        host.unmount_datastores()


def test_E2_E5_K1_each_program_that_fails_leaves_all_as_it_was(bed: Testbed) -> None:
    image = bed.image(MEDIUM_QCOW2, persistent=True)
    vm = placed(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    recovery_layout(host, disk)
    write(host, disk, "qcow2", 200, "5M")
    seen, image_before = content(host, disk, "qcow2"), digest(bed.frontend, image.source)
    for program in ("qemu-img", "python3"):
        with program_before(host, program, "echo broken >&2; exit 3"):
            reply = bring_back(bed, vm)
            assert not reply.success and "broken" in reply.error, program
        assert digest(bed.frontend, image.source) == image_before
        assert content(host, disk, "qcow2") == seen
    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert_one_file(bed, image, seen, {})
    assert disk_files(bed, host, vm) == set()


def test_E4_a_full_image_datastore_keeps_the_old_image(bed: Testbed) -> None:
    bed.frontend.mount_datastores(12)
    try:
        image = bed.image(RAW, persistent=True)
        vm = placed(bed, image)
        host, disk = bed.hosts[0], bed.disk_path(vm)
        before = digest(bed.frontend, image.source)
        host.run(["dd", "if=/dev/urandom", f"of={disk}", "bs=1M", "count=9", "seek=8",
                  "conv=notrunc", "status=none"])  # fmt: skip
        reply = bring_back(bed, vm)
        assert not reply.success and "MB needed" in reply.error, reply.error
        bed.images.template["CHECK_FREE_SPACE"] = "NO"
        bed.cloud.save(bed.images)
        reply = bring_back(bed, vm)
        assert not reply.success and "No space left" in reply.error, reply.error
        assert digest(bed.frontend, image.source) == before
        assert host.exists(disk)
    finally:
        bed.frontend.unmount_datastores()


@pytest.mark.crash
@pytest.mark.parametrize("point", points("tm.mvds", "tm.clone"))
def test_E4_E5_A13_mvds_after_a_crash(bed: Testbed, point: str) -> None:
    """The image is the old or the new one and never in between; a repeat finishes the work."""
    image = bed.image(MEDIUM, persistent=True)
    vm = placed(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    bed.frontend.run(["mkdir", f"{image.source}.snap"])
    bed.frontend.write(f"{image.source}.snap/4", "old snapshot")
    host.run(["mkdir", f"{disk}.snap"])
    host.write(f"{disk}.snap/0", "snapshot 0")
    write(host, disk, "raw", 99)
    old, new = digest(bed.frontend, image.source), digest(host, disk)
    bed.environment(**{crashpoints.VARIABLE: point})
    bring_back(bed, vm)
    bed.environment()
    assert set(bed.crashed_at()) == {point}
    assert digest(bed.frontend, image.source) in (old, new)
    if not host.exists(disk):
        assert digest(bed.frontend, image.source) == new
    wait_until(lambda: not any(agents(node) for node in bed.cluster.nodes), "agents end")
    if point.startswith("replace."):
        # Whoever touches the image next finds it whole: it is decided, or it never was.
        # A13: declared a success by the operator, it starts elsewhere.
        later = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image)])
        assert bed.oned.instantiate(later, "host02", bed.system).success
        found = digest(bed.hosts[1], bed.disk_path(later))
        assert found == (old if point == "replace.prepared" else new)
        names = {name.rpartition("/")[2] for name in image_files(bed, image) if ".snap/" in name}
        assert names == ({"4"} if point == "replace.prepared" else {"0"})
        assert bed.oned.recover_delete(later)
    reply = bring_back(bed, vm)
    assert reply.success, reply.error
    assert digest(bed.frontend, image.source) == new
    assert bed.frontend.read(f"{image.source}.snap/0") == b"snapshot 0"
    name = os.path.basename(image.source)
    left = image_files(bed, image) - {f".{name}.manifest"}
    assert left == {name, f"{name}.snap/0"}
    assert disk_files(bed, host, vm) == set()
    bed.assert_at_rest()


@pytest.mark.parametrize(
    ("source", "where"),
    one_of(2, list(itertools.product([MEDIUM, MEDIUM_QCOW2], ["host", "front-end"]))),
)
def test_E12_C10_cpds_makes_a_complete_image(bed: Testbed, source: str, where: str) -> None:
    """Of a raw disk, and of an overlay on the host's cache; also once the VM is stopped."""
    image = bed.image(source)
    vm = running(bed, image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    write(host, disk, image.format, 42)
    seen = content(host, disk, image.format)
    life = Life(bed.oned)
    if where == "front-end":
        assert life.undeploy(vm).success
    saved = life.save_as(vm, vm.disks[0])
    assert saved.state == READY, saved.template
    assert saved.format == image.format
    assert content(bed.frontend, saved.source, image.format) == seen
    name = os.path.basename(saved.source)
    assert image_files(bed, saved) == {name, f".{name}.manifest"}
    again = running(bed, saved, "host02")
    assert content(bed.hosts[1], bed.disk_path(again), image.format) == seen


@pytest.mark.parametrize("persistent", [False, True])
def test_SPARSE_NO_of_what_comes_back(bed: Testbed, persistent: bool) -> None:
    bed.images.template["SPARSE"] = "NO"
    bed.cloud.save(bed.images)
    image = bed.image(MEDIUM, persistent=persistent)
    vm = placed(bed, image)
    write(bed.hosts[0], bed.disk_path(vm), "raw", 42)
    seen = content(bed.hosts[0], bed.disk_path(vm), "raw")
    if persistent:
        assert bring_back(bed, vm).success
    else:
        image = Life(bed.oned).save_as(vm, vm.disks[0])
        assert image.state == READY, image.template
    assert content(bed.frontend, image.source, "raw") == seen
    facts = bed.frontend.path(image.source).stat()
    assert facts.st_blocks * 512 >= facts.st_size


def test_E9_E13_cpds_of_snapshots_and_of_one_that_is_not_there(bed: Testbed) -> None:
    """An overlay's snapshots are overlays on the same base (docs/design.md, section 4).

    The first one becomes an image in the whole way, the action is repeated for the others.
    """
    vm = running(bed, bed.image(MEDIUM_QCOW2))
    host, disk = bed.hosts[0], bed.disk_path(vm)
    host.run(["mkdir", f"{disk}.snap"])
    host.run(["ln", "-s", "../disk.0.base", f"{disk}.snap/disk.0.base"])
    numbers = [int(number) for number in IDS]
    seen = {}
    for number in numbers:
        write(host, disk, "qcow2", number + 1)
        host.run(["cp", disk, f"{disk}.snap/{number}"])
        seen[number] = content(host, disk, "qcow2")
    write(host, disk, "qcow2", 250)
    saved = Life(bed.oned).save_as(vm, vm.disks[0], numbers[0])
    assert saved.state == READY, saved.template
    assert content(bed.frontend, saved.source, "qcow2") == seen[numbers[0]]
    for number in numbers[1:]:
        line = transfer.save_as(vm, vm.disks[0], saved.source, number)
        reply = bed.oned.transfer_mad.run_script(line)
        assert reply.success, reply.error
        assert content(bed.frontend, saved.source, "qcow2") == seen[number]

    before = bed.files(bed.frontend)
    saved = Life(bed.oned).save_as(vm, vm.disks[0], 5)
    assert saved.state == objects.IMAGE_ERROR
    assert "disk.0.snap/5" in saved.template["ERROR"]  # type: ignore[operator]
    assert bed.files(bed.frontend) == before


@pytest.mark.crash
@pytest.mark.parametrize("point", points("tm.cpds", "tm.mvds"))
def test_E4_E13_cpds_after_a_crash(bed: Testbed, point: str) -> None:
    vm = placed(bed, bed.image(MEDIUM_QCOW2))
    host, disk = bed.hosts[0], bed.disk_path(vm)
    write(host, disk, "qcow2", 42)
    before, seen = digest(host, disk), content(host, disk, "qcow2")
    bed.environment(**{crashpoints.VARIABLE: point})
    image = Life(bed.oned).save_as(vm, vm.disks[0])
    bed.environment()
    assert set(bed.crashed_at()) == {point}
    assert digest(host, disk) == before
    if bed.frontend.exists(image.source):
        assert content(bed.frontend, image.source, "qcow2") == seen
    wait_until(lambda: not any(agents(node) for node in bed.cluster.nodes), "agents end")
    line = transfer.save_as(vm, vm.disks[0], image.source, -1)
    assert bed.oned.transfer_mad.run_script(line).success
    assert content(bed.frontend, image.source, "qcow2") == seen
    name = os.path.basename(image.source)
    assert image_files(bed, image) - {f".{name}.manifest"} == {name}
    bed.assert_at_rest()


def test_E14_back_to_the_bridge_host_that_answers(bed: Testbed) -> None:
    image, other = bed.image(MEDIUM, persistent=True), bed.image(MEDIUM_QCOW2)
    for each in (image, other):
        bridge = bridged(bed, each, bed.hosts[2], "host02", "host03")
    for file in ("tm/onestor/onestorrc", "datastore/onestor/onestor.conf"):
        bed.configure('CONNECT_TIMEOUT="2"\n', file)
    bed.hosts[1].cut()
    try:
        vm = running(bed, image)
        write(bed.hosts[0], bed.disk_path(vm), "raw", 42)
        now = digest(bed.hosts[0], bed.disk_path(vm))
        reply = bring_back(bed, vm)
        assert reply.success, reply.error
        assert digest(bridge, image.source) == now
        thin = running(bed, other, "host01")
        saved = Life(bed.oned).save_as(thin, thin.disks[0])
        assert saved.state == READY, saved.template
    finally:
        bed.hosts[1].heal()
    seen = content(bed.hosts[0], bed.disk_path(thin), "qcow2")
    assert content(bridge, saved.source, "qcow2") == seen
    assert not bed.frontend.exists(image.source) and not bed.frontend.exists(saved.source)


def test_J5_nothing_is_written_outside_the_datastore(bed: Testbed) -> None:
    vm = placed(bed, bed.image(MEDIUM, persistent=True))
    place = f"host01:{bed.disk_path(vm)}"
    before = bed.files(bed.frontend)
    datastore = f"{DATASTORES}/101"
    paths = ("/etc/passwd", f"{datastore}/../passwd", f"{datastore}/.hidden", f"{datastore}/x/y")
    for path, action in itertools.product(paths, ("MVDS", "CPDS")):
        snapshot = "-1" if action == "CPDS" else ""
        line = f"{action} onestor {place} {path} {snapshot} {vm.id} 101"
        reply = bed.oned.transfer_mad.run_line(line)
        assert not reply.success and path.rpartition("/")[2] in reply.error
        assert bed.files(bed.frontend) == before and bed.hosts[0].exists(bed.disk_path(vm))
