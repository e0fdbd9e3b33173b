"""The life of images and of a VM in which every action is called, one after the other.

What each call finds is what those before it have left, so that a life costs little more than its
calls. Whoever runs it makes each step succeed, at the first try or at a repeat.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Callable

from tests.cluster import Node
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    configure_system,
    content,
    digest,
    entry_of,
    same_content,
    write,
)
from tests.oned import objects, transfer
from tests.oned.objects import Disk, Image, Vm
from tests.oned.reply import Reply
from tests.testbed import DATASTORES, Testbed

LIBVIRT = "works on a domain: tests/life/test_every_action_live.py has it"
OPENNEBULAS = "hands over to OpenNebula's script: test_backups.py has one that fails"
# Actions that are no step of a life, each with the reason.
NOT_HERE = {
    "tm.snap_create_live": LIBVIRT,
    "tm.premigrate": LIBVIRT,
    "tm.postmigrate": LIBVIRT,
    "tm.failmigrate": LIBVIRT,
    "tm.prebackup": OPENNEBULAS,
    "tm.prebackup_live": OPENNEBULAS,
    "tm.postbackup": OPENNEBULAS,
    "tm.postbackup_live": OPENNEBULAS,
    "tm.restore": OPENNEBULAS,
    "tm.monitor": "only reads, with a local agent as datastore.monitor does",
    "tm.monitor_ds": "only reads, on the host itself, without starting anything",
}

MB = 1 << 20
OVERLAY = "overlay"  # of disk.0, which the guest writes to


@dataclass
class Step:
    """One call of an action, which may be repeated; ``check`` looks once it has succeeded."""

    action: str
    call: Callable[[], Reply]
    check: Callable[[], object] = bool


Steps = Generator[Step, Reply, None]  # a step is answered with the reply that was a success


def life(bed: Testbed) -> Steps:
    """By way of a replica: images, a VM with a disk of each kind, and its end."""
    configure_system(bed, REPLICA_HOST="host03")
    thin, raw = new_image(bed, MEDIUM_QCOW2), new_image(bed, compressed(bed), persistent=True)
    yield from registered(bed, thin)
    yield from registered(bed, raw)
    assert same_content(bed, bed.frontend, entry_of(thin), "qcow2", MEDIUM_QCOW2)
    assert digest(bed.frontend, entry_of(raw)) == digest(bed.frontend, MEDIUM)
    yield from more_images(bed, thin)
    yield from snapshots_of_an_image(bed, raw)
    yield from vm_with_disks(bed, thin, raw)
    yield on_image(bed, "rm", raw, lambda: require(not bed.frontend.exists(entry_of(raw))))


def new_image(bed: Testbed, path: str, **fields: Any) -> Image:
    return bed.cloud.add_image(
        bed.images, path=path, state=objects.LOCKED, prev_state=0, size=8, **fields
    )


def compressed(bed: Testbed) -> str:
    """A source that an external program unpacks."""
    bed.frontend.run(["zstd", "-qf", MEDIUM])
    return f"{MEDIUM}.zst"


def require(right: bool) -> None:
    assert right


def on_image(
    bed: Testbed, action: str, image: Image, check: Callable[[], object] = bool, snapshot: int = -1
) -> Step:
    def call() -> Reply:
        return bed.oned.snapshot_action(action, image, snapshot)

    return Step(f"datastore.{action}", call, check)


def registered(bed: Testbed, image: Image) -> Steps:
    mad = bed.oned.datastore_mad
    message = bed.oned._message(f"<IMAGE><PATH>{image.path}</PATH></IMAGE>", bed.images)
    said = yield Step("datastore.stat", lambda: mad.call("stat", "onestor", message, 7))
    assert said.info == "8"
    said = yield on_image(bed, "cp", image)
    image.source, image.format = said.info.split()
    image.set_state(objects.READY)
    bed.cloud.save(image)
    message = bed.oned._message("", bed.images)
    yield Step("datastore.monitor", lambda: mad.call("monitor", "onestor", message, 101))
    said = yield on_image(bed, "export", image)
    md5 = bed.frontend.run(["md5sum", entry_of(image)]).stdout.split()[0]
    assert md5 in said.result.stdout


def more_images(bed: Testbed, image: Image) -> Steps:
    """An empty one with a file system, and a copy."""
    empty = bed.cloud.add_image(bed.images, size=16, format="qcow2", fs="ext4")
    made = yield on_image(bed, "mkfs", empty)
    empty.source = made.info.split()[0]
    check = ["qemu-img", "check", "-q", "-f", "qcow2", empty.source]
    bed.frontend.run(check)
    twin = bed.cloud.add_image(
        bed.images, path=image.source, size=image.size, format=image.format, cloning_id=image.id
    )
    made = yield on_image(bed, "clone", twin)
    twin.source = made.info.split()[0]
    assert same_content(bed, bed.frontend, entry_of(twin), "qcow2", MEDIUM_QCOW2)


def snapshots_of_an_image(bed: Testbed, image: Image) -> Steps:
    fe, path = bed.frontend, entry_of(image)
    for number in (0, 123):
        fe.write(f"{path}.snap/{number}", f"{number:x}".ljust(8) * MB, mode=0o660)
    wanted = {number: digest(fe, f"{path}.snap/{number}") for number in (0, 123)}
    for action, number in (("snap_revert", 0), ("snap_delete", 0), ("snap_flatten", 123)):
        yield on_image(bed, action, image, snapshot=number)
        now = 123 if action == "snap_flatten" else 0
        assert digest(fe, path) == wanted[now]
    assert not fe.exists(f"{path}.snap")


def vm_with_disks(bed: Testbed, thin: Image, raw: Image) -> Steps:
    """From its prolog to its end."""
    disks = [
        bed.cloud.image_disk(thin, SIZE="16"),
        bed.cloud.image_disk(thin, QCOW2_STANDALONE="YES"),
        bed.cloud.image_disk(raw),
        bed.cloud.volatile_disk(16, FORMAT="qcow2", DRIVER="qcow2", FS="ext4"),
        bed.cloud.volatile_disk(4, "swap"),
    ]
    vm = bed.cloud.add_vm(disks=disks, context={"A": "1"})
    bed.cloud.place(vm, "host01", bed.system)
    yield from prolog(bed, vm)
    bed.cloud.set_state(vm, objects.POWEROFF)
    yield from snapshots_of_a_disk(bed, vm)
    yield from saved(bed, vm, thin)
    yield from moved(bed, vm)
    yield from epilog(bed, vm, raw)


def on_vm(bed: Testbed, vm: Vm, line: str, during: int, check: Callable[[], object] = bool) -> Step:
    """A line of a transfer script, while the VM is in the state ``during``."""

    def call() -> Reply:
        before = (vm.state, vm.lcm_state)
        bed.cloud.set_state(vm, objects.ACTIVE, during)
        reply = bed.oned.transfer_mad.run_line(line)
        bed.cloud.set_state(vm, *before)
        return reply

    return Step(f"tm.{line.split()[0].lower()}", call, check)


def prolog(bed: Testbed, vm: Vm) -> Steps:
    host = bed.hosts[0]
    lines = transfer.prolog(vm, "fe")
    for disk, line in zip(vm.disks, lines):
        path, image_format = bed.disk_path(vm, disk.id), disk.attributes["FORMAT"]
        yield on_vm(bed, vm, line, objects.PROLOG)
        host.run(["qemu-img", "info", "-f", image_format, path])
    assert same_content(bed, host, bed.disk_path(vm, 0), "qcow2", MEDIUM_QCOW2)
    assert same_content(bed, host, bed.disk_path(vm, 1), "qcow2", MEDIUM_QCOW2)
    assert host.read(bed.disk_path(vm, 2))[:3] == b"7b "
    script = f"/var/lib/one/vms/{vm.id}/context.sh"
    bed.frontend.write(script, "A='1'\n")
    line = transfer.context(vm, script)
    yield Step("tm.context", lambda: bed.oned.vmm.run_line(line))
    number = vm.context["DISK_ID"]
    label = ["blkid", "-o", "value", "-s", "LABEL", f"{DATASTORES}/102/{vm.id}/disk.{number}"]
    assert host.run(label).stdout == "CONTEXT\n"


def snapshots_of_a_disk(bed: Testbed, vm: Vm) -> Steps:
    host, disk, path = bed.hosts[0], vm.disks[0], bed.disk_path(vm)
    wanted = {}
    kept = objects.Snapshots("YES", disk.id)
    vm.snapshots.append(kept)
    for number in (0, 1):
        write(host, path, "qcow2", number + 1)
        kept.add("", 16)
        line = transfer.snapshot(vm, disk, "SNAP_CREATE", number)
        yield on_vm(bed, vm, line, objects.DISK_SNAPSHOT_POWEROFF)
        wanted[number] = content(host, f"{path}.snap/{number}", "qcow2")
        assert wanted[number] == content(host, path, "qcow2")
    line = transfer.snapshot(vm, disk, "SNAP_REVERT", 0)
    yield on_vm(bed, vm, line, objects.DISK_SNAPSHOT_REVERT_POWEROFF)
    assert content(host, path, "qcow2") == wanted[0]
    line = transfer.snapshot(vm, disk, "SNAP_DELETE", 0)
    yield on_vm(bed, vm, line, objects.DISK_SNAPSHOT_DELETE_POWEROFF)
    assert content(host, f"{path}.snap/1", "qcow2") == wanted[1]
    kept.remove(0)
    disk.attributes["SIZE"] = "24"
    (line,) = transfer.resize(vm, disk, 24)
    yield on_vm(bed, vm, line, objects.DISK_RESIZE_POWEROFF)
    assert content(host, path, "qcow2") == wanted[0].ljust(24 * MB, b"\0")


def saved(bed: Testbed, vm: Vm, original: Image) -> Steps:
    """onevm disk-saveas of the first disk."""
    host, path = bed.hosts[0], bed.disk_path(vm)
    image = bed.cloud.add_image(bed.images, size=24, format="save_as", state=objects.LOCKED)
    made = yield on_image(bed, "mkfs", image)
    image.source, image.format = made.info.split()[0], original.format
    bed.cloud.save(image)
    (line,) = transfer.save_as(vm, vm.disks[0], image.source, -1)
    yield on_vm(bed, vm, line, objects.HOTPLUG_SAVEAS_POWEROFF)
    assert content(bed.frontend, image.source, "qcow2") == content(host, path, "qcow2")


def moved(bed: Testbed, vm: Vm) -> Steps:
    """onevm migrate from host01 to host02."""
    source, target = bed.hosts[:2]
    before = contents(bed, source, vm)
    bed.cloud.place(vm, target.name, bed.system, 1)
    for line in transfer.move(vm, source.name, target.name):
        yield on_vm(bed, vm, line, objects.PROLOG_MIGRATE)
    assert contents(bed, target, vm) == before
    assert not source.exists(f"{DATASTORES}/102/{vm.id}")


def contents(bed: Testbed, host: Node, vm: Vm) -> dict[int, bytes]:
    """What the guest sees of its disks."""
    return {
        disk.id: content(host, bed.disk_path(vm, disk.id), image_format(disk)) for disk in vm.disks
    }


def image_format(disk: Disk) -> str:
    return disk.attributes["FORMAT"]


def epilog(bed: Testbed, vm: Vm, raw: Image) -> Steps:
    host, path = bed.hosts[1], bed.disk_path(vm, 2)
    write(host, path, "raw", 77)
    now = digest(host, path)
    for line in transfer.epilog(vm):
        yield on_vm(bed, vm, line, objects.EPILOG)
    assert digest(bed.frontend, entry_of(raw)) == now
    assert not host.exists(f"{DATASTORES}/102/{vm.id}")
