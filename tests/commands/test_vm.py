"""onestor vm show, flatten and thin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.commands.conftest import Desk
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    content,
    of_driver,
    program_before,
    unfinished,
    write,
)
from tests.oned import objects
from tests.oned.life import Life
from tests.oned.objects import Vm
from tests.sampling import one_of
from tests.testbed import AGENT, DATASTORES
from tests.waiting import wait_until

MB = 1 << 20


@pytest.fixture
def vm(desk: Desk) -> Iterator[Vm]:
    """A VM on host01 that is off, with a thin disk that was written to."""
    found = desk.started(desk.bed.image(MEDIUM_QCOW2))
    write(desk.node("host01"), desk.bed.disk_path(found), "qcow2", 7)
    desk.off(found)
    yield found


def names(node: Node, vm: Vm) -> set[str]:
    found = node.run(["find", f"{DATASTORES}/102/{vm.id}", "-printf", "%P\n"]).stdout.split()
    return {name for name in found if name.startswith("disk.0")}


def make_flat(node: Node, vm: Vm, disk: str) -> None:
    """Make a disk a complete file, as a live migration leaves it."""
    script = f"qemu-img convert -O qcow2 {disk} {disk}.flat && mv {disk}.flat {disk}"
    node.run(["sh", "-c", f"{script} && rm {disk}.base"])
    assert names(node, vm) == {"disk.0"}


def test_show(desk: Desk, vm: Vm) -> None:
    other = desk.started(desk.bed.image(MEDIUM_QCOW2))
    assert other.id != vm.id
    (row,) = desk.rows("vm", "show", str(vm.id))
    assert row["host"] == "host01" and row["size"] == 8 * MB and row["own"]
    assert [each["path"].rpartition("/")[2] for each in row["files"]] == ["disk.0", "disk.0.base"]
    assert row["shared"] == 1 and row["recovery"] is None and row["snapshots"] == {}
    assert row["image"] == vm.disks[0].image_id and row["base"]
    desk.run("vm", "show", "999", status=1)
    assert "999" in desk.complaints


def test_flatten_and_thin(desk: Desk, vm: Vm) -> None:
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    before = content(node, disk, "qcow2")
    assert "is a file of its own now" in desk.run("flatten", str(vm.id), "0")
    assert names(node, vm) == {"disk.0"}
    assert "backing" not in node.run(["qemu-img", "info", disk]).stdout
    assert content(node, disk, "qcow2") == before
    (row,) = desk.rows("flatten", str(vm.id), "0")
    assert not row["done"] and row["disk"] == "disk.0" and row["bytes"] >= MB
    write(node, disk, "qcow2", 9, "6M")
    before = content(node, disk, "qcow2")
    desk.bed.configure('QCOW2_OPTIONS="-o cluster_size=128k"\n')
    assert "lies on its image now" in desk.run("thin", str(vm.id), "0")
    assert names(node, vm) == {"disk.0", "disk.0.base"}
    assert content(node, disk, "qcow2") == before
    assert "cluster_size: 131072" in node.run(["qemu-img", "info", disk]).stdout
    source = desk.bed.cloud.images[vm.disks[0].image_id or 0].source
    assert node.path(f"{disk}.base").samefile(node.path(source))
    assert node.path(disk).stat().st_blocks * 512 < MB  # what was written, and no more
    assert "already" in desk.run("thin", str(vm.id), "0")


def test_F8_a_disk_with_snapshots_is_flattened(desk: Desk, vm: Vm) -> None:
    """They keep the base that they need; a disk that was reverted to one is no other.

    Whenever the command is killed there is a disk that opens, and the same.
    """
    life = Life(desk.bed.oned)
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    assert life.snapshot(vm, vm.disks[0]).success
    (row,) = desk.rows("vm", "show", str(vm.id))
    assert set(row["snapshots"]) == {"0"} and row["snapshots"]["0"] > 0
    before = content(node, f"{disk}.snap/0", "qcow2")
    desk.run("flatten", str(vm.id), "0")
    assert content(node, f"{disk}.snap/0", "qcow2") == before
    assert "disk.0.base" in names(node, vm)
    write(node, disk, "qcow2", 3, "2M")
    assert life.revert(vm, vm.disks[0], 0).success
    assert content(node, disk, "qcow2") == before
    for point in crashpoints.names("flatten"):
        argv, environment = ["onestor", "flatten", str(vm.id), "0"], {crashpoints.VARIABLE: point}
        assert desk.bed.frontend.run(argv, env=environment, check=False).returncode
        assert content(node, disk, "qcow2") == before
        desk.run("thin", str(vm.id), "0")
    assert life.delete_snapshot(vm, vm.disks[0], 0).success
    desk.run("flatten", str(vm.id), "0")
    assert content(node, disk, "qcow2") == before and names(node, vm) == {"disk.0"}


def test_G14_L11_a_disk_of_the_old_recovery_layout_becomes_plain(desk: Desk, vm: Vm) -> None:
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    before = content(node, disk, "qcow2")
    script = f"""
qemu-img convert -f qcow2 -O qcow2 {disk} {disk}.flat && mkdir {disk}.snap &&
ln -s . {disk}.snap/disk.0.snap && mv {disk}.flat {disk}.snap/base && rm {disk} {disk}.base &&
qemu-img create -q -u -f qcow2 -b disk.0.snap/base -F qcow2 {disk}.snap/base.1 {8 * MB} &&
ln -s disk.0.snap/base.1 {disk}"""
    node.run(["sh", "-c", script])
    assert not desk.rows("vm", "show", str(vm.id))[0]["own"]
    desk.run("thin", str(vm.id), "0", status=1)
    assert "flatten it first" in desk.complaints
    desk.run("flatten", str(vm.id), "0")
    assert content(node, disk, "qcow2") == before
    assert names(node, vm) == {"disk.0"} and not node.path(disk).is_symlink()


def test_what_cannot_be_done_is_refused(desk: Desk, vm: Vm) -> None:
    desk.bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    for word in ("flatten", "thin"):
        desk.run(word, str(vm.id), "0", status=1)
        assert "not powered off" in desk.complaints
    desk.off(vm)
    desk.run("flatten", str(vm.id), "5", status=1)
    assert "has no disk 5" in desk.complaints
    raw = desk.started(desk.bed.image(MEDIUM))
    desk.off(raw)
    desk.run("thin", str(raw.id), "0", status=1)
    assert "only a qcow2 disk" in desk.complaints
    assert "already" in desk.run("flatten", str(raw.id), "0")
    kept = desk.bed.vm(desk.bed.image(MEDIUM_QCOW2, persistent=True))
    desk.bed.cloud.place(kept, "host01", desk.bed.system)
    desk.off(kept)
    desk.run("thin", str(kept.id), "0", status=1)
    assert "a persistent disk is a file of its own" in desk.complaints
    empty = desk.bed.cloud.add_vm(disks=[desk.bed.cloud.volatile_disk(4)])
    desk.run("flatten", str(empty.id), "0", status=1)
    assert "is on no host" in desk.complaints
    desk.bed.cloud.place(empty, "host01", desk.bed.system)
    desk.off(empty)
    desk.run("thin", str(empty.id), "0", status=1)
    assert "not made from an image" in desk.complaints


def test_a_disk_that_was_made_smaller_than_its_image(desk: Desk, vm: Vm) -> None:
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    make_flat(node, vm, disk)
    node.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", disk, "4M"])
    before = content(node, disk, "qcow2")
    desk.run("thin", str(vm.id), "0", status=1)
    assert "the image is larger than the disk" in desk.complaints
    assert content(node, disk, "qcow2") == before and names(node, vm) == {"disk.0"}


def test_a_disk_that_something_depends_on_is_left_alone(desk: Desk, vm: Vm) -> None:
    """Whatever oned says."""
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    before = names(node, vm)
    # The VM runs: a program of qemu has the disk open.
    # Again, if it meets the one below that looks whether it has come.
    hold = f"until qemu-io -f qcow2 -c 'sleep 60000' {disk}; do :; done"
    with node.popen(["sh", "-c", hold]) as program:
        argv = ["qemu-img", "info", "-f", "qcow2", disk]
        wait_until(lambda: node.run(argv, check=False).returncode != 0, "it has the disk open")
        desk.run("flatten", str(vm.id), "0", status=1)
        assert "uses it" in desk.complaints
        program.kill_tree()
    assert names(node, vm) == before
    # It has internal snapshots, which a copy would be without.
    node.run(["qemu-img", "snapshot", "-c", "mine", disk])
    desk.run("flatten", str(vm.id), "0", status=1)
    assert "internal snapshots" in desk.complaints
    assert "mine" in node.run(["qemu-img", "snapshot", "-l", disk]).stdout
    node.run(["qemu-img", "snapshot", "-d", "mine", disk])
    # It is a link to an image: what a guest writes afterwards would be lost to that.
    elsewhere = f"{DATASTORES}/101/image"
    node.run(
        ["sh", "-c", f"qemu-img convert -O qcow2 {disk} {elsewhere}; ln -sf {elsewhere} {disk}"]
    )
    for word in ("flatten", "thin"):
        desk.run(word, str(vm.id), "0", status=1)
        assert "it is a link" in desk.complaints
    assert node.path(disk).is_symlink()


def test_disks_of_another_driver_are_left_alone(desk: Desk, vm: Vm) -> None:
    """It goes on to change them: as a snapshot that needs the base, as an image in its place."""
    before = names(desk.node("host01"), vm)
    disk, record = vm.disks[0].attributes, vm.history[-1]

    def refused(reason: str) -> None:
        desk.bed.cloud.save(vm)
        for word in ("flatten", "thin"):
            desk.run(word, str(vm.id), "0", status=1)
            assert reason in desk.complaints
        assert names(desk.node("host01"), vm) == before

    disk["TM_MAD"] = "ssh"
    refused("disk.0 is of the driver ssh still")
    disk["TM_MAD"], record.tm_mad = "onestor", "ssh"
    refused("the VM is of the driver ssh still")
    record.tm_mad = "onestor"
    disk.update(CLONE="NO", LN_TARGET="NONE")
    refused("disk.0 is not a file in the VM's directory")
    with of_driver(desk.bed, desk.bed.system, "ssh"):
        refused(f"VM {vm.id} is in datastore 102 of another driver")


def test_thin_takes_away_what_a_link_led_to(desk: Desk, vm: Vm) -> None:
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    before = content(node, disk, "qcow2")
    script = f"""
mkdir {disk}.snap && qemu-img convert -f qcow2 -O qcow2 {disk} {disk}.snap/disk &&
rm {disk} {disk}.base && ln -s disk.0.snap/disk {disk}"""
    node.run(["sh", "-c", script])
    desk.run("thin", str(vm.id), "0")
    assert names(node, vm) == {"disk.0", "disk.0.base"} and not node.path(disk).is_symlink()
    assert content(node, disk, "qcow2") == before


@pytest.mark.parametrize("word", ["flatten", "thin"])
def test_a_vm_that_is_started_meanwhile(desk: Desk, vm: Vm, word: str) -> None:
    """Its disk does not open, and nothing is replaced when oned says that it was."""
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    if word == "thin":
        make_flat(node, vm, disk)
    before, had = content(node, disk, "qcow2"), names(node, vm)
    compares = """
/usr/bin/qemu-img "$@" || exit
case "$*" in *compare*) touch /var/tmp/compared; while [ -e /var/tmp/compared ]; do sleep 0.05; done
esac"""
    with (
        program_before(node, "qemu-img", compares),
        desk.bed.frontend.popen(["onestor", word, str(vm.id), "0"], env=AGENT) as process,
    ):
        wait_until(lambda: node.exists("/var/tmp/compared"), "the new file is compared")
        opened = node.run(["qemu-io", "-f", "qcow2", "-c", "write 0 1k", disk], check=False)
        assert opened.returncode and "lock" in opened.stdout + opened.stderr
        desk.bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
        node.run(["rm", "/var/tmp/compared"])
        assert process.wait(timeout=60) != 0
    assert names(node, vm) == had and content(node, disk, "qcow2") == before
    assert unfinished(desk.bed) == []


@pytest.mark.crash
@pytest.mark.parametrize(
    ("word", "point"),
    one_of(
        2,
        [
            *(("flatten", point) for point in crashpoints.names("flatten")),
            *(("thin", point) for point in crashpoints.names("thin")),
        ],
    ),
)
def test_a_crash_leaves_the_same_disk(desk: Desk, vm: Vm, word: str, point: str) -> None:
    node, disk = desk.node("host01"), desk.bed.disk_path(vm)
    before = content(node, disk, "qcow2")
    if word == "thin":
        make_flat(node, vm, disk)
    environment = {crashpoints.VARIABLE: point}
    assert desk.bed.frontend.run(
        ["onestor", word, str(vm.id), "0"], env=environment, check=False
    ).returncode
    assert desk.bed.crashed_at() == [point]
    assert content(node, disk, "qcow2") == before
    desk.run(word, str(vm.id), "0")
    assert content(node, disk, "qcow2") == before
    wanted = {"disk.0"} if word == "flatten" else {"disk.0", "disk.0.base"}
    assert names(node, vm) == wanted
    assert unfinished(desk.bed) == []
