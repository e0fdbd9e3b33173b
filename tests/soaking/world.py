"""The cloud of a soak: hosts with libvirt, a replica, small caches, and the model beside it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import uuid
from collections.abc import Iterator, Sequence

from tests.cluster import Node, libvirt
from tests.cluster.process import CommandFailed
from tests.drivers.conftest import entry_of
from tests.hypervisor import Kvm
from tests.oned.objects import Vm
from tests.soaking.model import (
    DiskModel,
    ImageModel,
    Model,
    Violation,
    VmModel,
    difference,
    unlisted,
)
from tests.testbed import AGENT, DATASTORES, LOG, Testbed, running_testbed

HYPERVISORS = ("host01", "host02", "host03")
REPLICA = "host04"
# Machines whose datastores are small enough to be filled up, and on which file system.
SMALL = {"host01": "ext4", "host02": "xfs+reflink", REPLICA: "ext4"}
_SMALL_MB = 1024
HOST_CACHE_MB, REPLICA_CACHE_MB = 14, 20
# What guests write: no two sectors are the same.
PATTERNS = [random.Random(number).randbytes(1 << 20) for number in range(4)]
COPIES = f"{DATASTORES}/replica_snaps"
# What is waited for in vain at a machine that is dead.
_IMPATIENT = "CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=10\n"
_TIMEOUT = 120.0
_FAILURE = re.compile(r" failed |no new recovery copy")  # a line that tells of one


def pattern_file(number: int) -> str:
    """Where every node has one of PATTERNS."""
    return f"/var/tmp/soak-pattern{number}"


class IdleKvm(Kvm):
    """Virtual machines that find nothing to boot: what they write is written by the soak."""

    def start_on(self, host: str) -> None:
        """Bring up libvirtd on a host that has just come back."""
        self.hosts[host].run(libvirt.START, user="root")

    def virsh(self, host: str, *words: str, check: bool = True) -> str:
        try:
            return super().virsh(host, *words, check=check)
        except CommandFailed as error:  # such as a domain that is gone, or lacks a disk
            raise Violation(str(error)) from error

    def write(self, vm: Vm, number: int, command: str) -> None:
        """Have the VM write to a disk by a command of qemu-io(1), and flush it."""
        device = f"-d /machine/peripheral/virtio-disk{number}/virtio-backend"
        for each in (command, "flush"):
            said = self.virsh(
                vm.history[-1].hostname, "qemu-monitor-command", f"one-{vm.id}",
                "--hmp", f'qemu-io {device} "{each}"',
            )  # fmt: skip
            if said:
                raise Violation(f"VM {vm.id} cannot write to disk {number}: {said}")


class World:
    """The cloud and its model, and what can be asked of both at once."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.model = Model()
        cloud = bed.cloud
        self.system_datastores = [bed.system, cloud.add_system_datastore("more_system", id=104)]
        self.image_datastores = [bed.images, cloud.add_image_datastore("more_images", id=105)]
        # From when to when an image may have been made without oned ever hearing of it.
        self.lost_images: list[tuple[float, float]] = []
        self.tampered: set[str] = set()  # names in caches that were not verified since
        self.amid = 0  # snapshots that show a moment between a guest's writes
        self.outdated: set[tuple[str, int]] = set()  # hosts that died, and VMs they had then
        self.rotten: set[int] = set()  # images that had other content in the replica's cache
        self._log_read = 0
        self.kvm = IdleKvm(bed.frontend, {name: bed.cluster.node(name) for name in HYPERVISORS})

    def begin(self) -> None:
        """Be a cloud without VMs and images, and with the settings of a soak."""
        self.kvm.end_all()
        self.bed.clean()
        self.model, self._log_read = Model(), 0
        self.lost_images.clear()
        self.tampered.clear()
        self.rotten.clear()
        self.outdated.clear()
        self.bed.configure(_IMPATIENT)
        for datastore in self.system_datastores:
            datastore.template.update(
                REPLICA_HOST=REPLICA,
                HOST_CACHE_MAX_SIZE_MB=str(HOST_CACHE_MB),
                REPLICA_MAX_SIZE_MB=str(REPLICA_CACHE_MB),
            )
        for datastore in self.image_datastores:
            datastore.images.clear()
        self.bed.cloud.save(*self.system_datastores, *self.image_datastores)
        for node in self.bed.cluster.nodes:
            for number, pattern in enumerate(PATTERNS):
                node.write(pattern_file(number), pattern)

    def new_log(self) -> str:
        """What onestor's log has got since it was asked for last."""
        with self.bed.frontend.path(LOG).open("rb") as file:
            file.seek(self._log_read)
            said = file.read()
        self._log_read += len(said)
        return said.decode()

    def node(self, name: str) -> Node:
        return self.bed.cluster.node(name)

    def directory(self, vm: VmModel) -> str:
        """Where the VM's disks are, on its host or on the front-end."""
        return self.kvm.directory(vm.vm)

    def path(self, vm: VmModel, disk: DiskModel) -> str:
        return f"{self.directory(vm)}/disk.{disk.number}"

    def place(self, vm: VmModel) -> Node:
        """The machine that has the VM's disks."""
        return self.bed.frontend if vm.is_away else self.node(vm.host)

    def onestor(self, *words: str, excused: str = "") -> str:
        """Run the command of people; what it says.

        It must not fail, but for what `excused`, a regular expression, finds in each line that
        tells of a failure.
        """
        argv = ["onestor", *words]
        done = self.bed.frontend.run(argv, env=AGENT, check=False, timeout=_TIMEOUT)
        said = done.stdout + done.stderr
        failed = [line for line in said.splitlines() if _FAILURE.search(line)]
        is_excused = failed and excused and all(re.search(excused, line) for line in failed)
        if done.returncode and not is_excused:
            raise Violation(f"{' '.join(argv)}: {said.strip()}")
        return said

    def verify_caches(self) -> None:
        """onestor cache verify; where all the rest is in use there is no room for a repair."""
        self.onestor("cache", "verify", excused="MB needed")

    def content(self, node: Node, path: str, image_format: str, *, base: str = "") -> bytes:
        """What a guest sees of a file, with all that lies below it, or with another `base`."""
        copy = f"/var/tmp/soak-{uuid.uuid4().hex}"
        source = ["-f", image_format, path]
        if base:
            layers = f"driver=qcow2,file.filename={path},backing.driver=qcow2"
            source = ["--image-opts", f"{layers},backing.file.filename={base}"]
        argv = ["qemu-img", "convert", "-U", "-O", "raw", *source, copy]
        try:
            done = node.run(argv, check=False)
            if done.returncode:
                raise Violation(f"{node.name}:{path}: {done.stderr.strip()}")
            return node.read(copy)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(node.path(copy))

    def check_file(self, node: Node, path: str, image_format: str, *allowed: bytes) -> bytes:
        """A file must hold one of the contents that are allowed; which one it is."""
        found = self.content(node, path, image_format)
        if found not in allowed:
            raise Violation(f"{node.name}:{path}: {difference(found, allowed[0])}")
        return found

    def check_disk(self, vm: VmModel, disk: DiskModel, *allowed: bytes) -> None:
        """A disk must hold what the model says, or one of the contents that are `allowed`."""
        path = self.path(vm, disk)
        self.check_file(self.place(vm), path, disk.format, *(allowed or (disk.now,)))

    def check_snapshots(self, vm: VmModel, disk: DiskModel) -> None:
        """A disk has the snapshots that the model has, and each holds what it held."""
        self._check_beside(self.place(vm), self.path(vm, disk), disk.format, disk)

    def _check_beside(
        self, node: Node, path: str, image_format: str, model: DiskModel | ImageModel
    ) -> None:
        directory = f"{path}.snap"
        names = set(os.listdir(node.path(directory))) if node.exists(directory) else set()
        found = {int(name) for name in names if name.isdigit()}
        if found - unlisted(model) != set(model.snapshots):
            raise Violation(f"{node.name}:{path} has the snapshots {sorted(found)}")
        for number, content in model.snapshots.items():
            self.check_file(node, f"{directory}/{number}", image_format, content)

    def check_disk_with_snapshots(self, vm: VmModel, disk: DiskModel) -> None:
        self.check_disk(vm, disk)
        self.check_snapshots(vm, disk)

    def check_vm(self, vm: VmModel) -> None:
        """Each disk holds what the model says, with its snapshots; a saved memory is there."""
        if vm.has_checkpoint and not self.place(vm).exists(f"{self.directory(vm)}/checkpoint"):
            raise Violation(f"{vm} has lost its checkpoint")
        for disk in vm.disks:
            self.check_disk_with_snapshots(vm, disk)
        self.outdated.discard((self.place(vm).name, vm.vm.id))

    def check_whole(self, vm: VmModel, disks: Sequence[DiskModel], *, where: str = "") -> None:
        """A disk that has its final name is complete, whatever has gone wrong.

        On the host `where`, or that of the VM. What is still at work there may take names away.
        What a host that came back has of the VM is old, until that is deleted or replaced.
        """
        node = self.node(where) if where else self.place(vm)
        if (node.name, vm.vm.id) in self.outdated:
            return
        for disk in disks:
            path = self.path(vm, disk)
            if node.exists(path):
                try:
                    self.check_file(node, path, disk.format, disk.now)
                except Violation:
                    if node.exists(path):
                        raise

    def check_gone(self, vm: VmModel, host: str, directory: str = "") -> None:
        """A host has nothing of a VM any more, where its directory is or was."""
        if self.node(host).exists(directory or self.directory(vm)):
            raise Violation(f"{vm} is on {host} still")

    def check_image(self, image: ImageModel, *allowed: bytes) -> None:
        """An image must hold what the model says, with its snapshots, or what is `allowed`."""
        node, path, image_format = self.bed.frontend, entry_of(image.image), image.image.format
        self.check_file(node, path, image_format, *(allowed or (image.content,)))
        if not allowed:
            self._check_beside(node, path, image_format, image)

    def copy_of(self, vm: VmModel, disk: DiskModel) -> str:
        """The youngest recovery copy of a disk on the replica; "" for none."""
        directory = self.node(REPLICA).path(f"{COPIES}/{vm.vm.id}")
        prefix = f"disk.{disk.number}."
        with contextlib.suppress(FileNotFoundError):
            points = [
                int(name[len(prefix) :])
                for name in os.listdir(directory)
                if name.startswith(prefix) and name[len(prefix) :].isdigit()
            ]
            if points:
                return f"{COPIES}/{vm.vm.id}/{prefix}{max(points)}/disk.{disk.number}"
        return ""

    def _copied(self, disk: DiskModel, path: str) -> bytes:
        """What a recreate makes of a recovery copy.

        Its base on the replica is another name for what the cache there had. Where that was rotten
        already the base comes from elsewhere, because its digest is on record.
        """
        node = self.node(REPLICA)
        if not (disk.image and disk.image.born in self.rotten and node.exists(f"{path}.base")):
            return self.content(node, path, disk.format)
        origin = f"/var/tmp/soak-{uuid.uuid4().hex}"
        node.write(origin, self.bed.frontend.read(entry_of(disk.image.image)))
        try:
            return self.content(node, path, disk.format, base=origin)
        finally:
            os.unlink(node.path(origin))

    def settle_copies(self, must: bool) -> None:
        """Learn what the recovery copies show; with `must`, each disk that asks has a present one.

        Only while nothing is at work.
        """
        for vm in self.model.vms:
            for disk in vm.disks:
                path = self.copy_of(vm, disk) if disk.asks else ""
                if path:
                    found = self._copied(disk, path)
                    if found in ([disk.now] if must and vm.runs else disk.may_be_copied_as()):
                        disk.copied = found
                    elif found != disk.copied or (must and vm.runs):
                        what = difference(found, disk.now)
                        raise Violation(f"copy of {vm} disk {disk.number}, {path}: {what}")
                elif disk.copied is not None or (must and disk.asks and vm.runs):
                    raise Violation(f"{vm} disk {disk.number} has no recovery copy")
                disk.earlier.clear()

    def forget_earlier(self) -> None:
        """No copy was made: what disks have held before is of no interest."""
        for vm in self.model.vms:
            for disk in vm.disks:
                disk.earlier.clear()


@contextlib.contextmanager
def running_world() -> Iterator[World]:
    """Bring it up; everything is gone behind the block."""
    with running_testbed(hosts=4) as bed:
        for name, file_system in SMALL.items():
            bed.cluster.node(name).mount_datastores(_SMALL_MB, file_system)
        world = World(bed)
        world.kvm.start()
        world.begin()
        yield world
