"""The cloud of a soak: hosts with libvirt, a replica, small caches, and the model beside it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

from tests.cluster import Node, libvirt
from tests.drivers.conftest import CALL_ENVIRONMENT
from tests.hypervisor import Kvm
from tests.oned.objects import Vm
from tests.soaking.model import DiskModel, ImageModel, Model, Violation, VmModel, difference
from tests.testbed import AGENT, DATASTORES, LOG, Testbed, running_testbed

HYPERVISORS = ("host01", "host02", "host03")
REPLICA = "host04"
HOST_CACHE_MB, REPLICA_CACHE_MB = 14, 20
COPIES = f"{DATASTORES}/replica_snaps"
# What is waited for in vain at a machine that is dead.
_IMPATIENT = "CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=10\n"
_TIMEOUT = 120.0


class Standing(Kvm):
    """Virtual machines that are there but stand still: what they write is written by the soak.

    A domain that is not there any more is one that has ended: its host was dead meanwhile.
    """

    def start_on(self, host: str) -> None:
        """Bring up libvirtd on a host that has just come back."""
        self.hosts[host].run(libvirt.START, user="root")

    def deploy(self, vm: Vm) -> None:
        host = vm.history[-1].hostname
        file = f"{self.directory(vm)}/deployment.0"
        self.hosts[host].write(file, self._domain(vm))
        self.virsh(host, "create", file, "--paused")

    def shutdown(self, vm: Vm, host: str) -> None:
        if self.state(vm, host):
            super().shutdown(vm, host)

    def save(self, vm: Vm, host: str) -> None:
        if self.state(vm, host):
            super().save(vm, host)

    def restore(self, vm: Vm) -> None:
        host = vm.history[-1].hostname
        file = f"{self.directory(vm)}/checkpoint"
        self.virsh(host, "restore", file, "--paused")
        self.hosts[host].run(["rm", "-f", file])

    def write(self, vm: Vm, number: int, offset: int, length: int, pattern: int) -> None:
        """Have the VM write to a disk, and flush it."""
        device = f"-d /machine/peripheral/virtio-disk{number}/virtio-backend"
        for command in (f"write -P {pattern} {offset} {length}", "flush"):
            said = self.virsh(
                vm.history[-1].hostname, "qemu-monitor-command", f"one-{vm.id}",
                "--hmp", f'qemu-io {device} "{command}"',
            )  # fmt: skip
            if said:
                raise Violation(f"VM {vm.id} cannot write to disk {number}: {said}")


class World:
    """The cloud and its model, and what can be asked of both at once."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.model = Model()
        self._log_read = 0
        self.kvm = Standing(bed.frontend, {name: bed.cluster.node(name) for name in HYPERVISORS})

    def begin(self) -> None:
        """Be a cloud without VMs and images, and with the settings of a soak."""
        for name in HYPERVISORS:
            for domain in self.kvm.virsh(name, "list", "--name").split():
                self.kvm.virsh(name, "destroy", domain)
        self.bed.clean()
        self.model, self._log_read = Model(), 0
        self.bed.configure(_IMPATIENT)
        self.bed.system.template.update(
            REPLICA_HOST=REPLICA,
            HOST_CACHE_MAX_SIZE_MB=str(HOST_CACHE_MB),
            REPLICA_MAX_SIZE_MB=str(REPLICA_CACHE_MB),
        )
        self.bed.cloud.save(self.bed.system)

    def new_log(self) -> str:
        """What onestor's log has got since it was asked for last."""
        with self.bed.frontend.path(LOG).open("rb") as file:
            file.seek(self._log_read)
            said = file.read()
        self._log_read += len(said)
        return said.decode()

    def node(self, name: str) -> Node:
        return self.bed.cluster.node(name)

    def directory(self, vm: Vm) -> str:
        return f"{DATASTORES}/{vm.history[-1].ds_id}/{vm.id}"

    def path(self, vm: VmModel, disk: DiskModel) -> str:
        return f"{self.directory(vm.vm)}/disk.{disk.number}"

    def place(self, vm: VmModel) -> Node:
        """The machine that has the VM's disks."""
        return self.bed.frontend if vm.is_undeployed else self.node(vm.host)

    def onestor(self, *words: str) -> str:
        """Run the command of people; what it says."""
        argv = ["onestor", *words]
        done = self.bed.frontend.run(argv, env=AGENT, check=False, timeout=_TIMEOUT)
        if done.returncode:
            raise Violation(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def recovery_pass(self) -> str:
        """One pass; what its log says."""
        argv = [
            "/usr/bin/python3",
            "-m",
            "onestor_lib.frontend.commands.onestor",
            "recovery",
            "run",
        ]
        done = self.bed.frontend.run(argv, env=CALL_ENVIRONMENT, check=False, timeout=_TIMEOUT)
        if done.returncode:
            raise Violation(f"recovery run: {(done.stderr or done.stdout).strip()}")
        return done.stdout + done.stderr

    def content(self, node: Node, path: str, image_format: str) -> bytes:
        """What a guest sees of a file, with all that lies below it."""
        copy = f"/var/tmp/soak-{uuid.uuid4().hex}"
        argv = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, copy]
        try:
            done = node.run(argv, check=False)
            if done.returncode:
                raise Violation(f"{node.name}:{path}: {done.stderr.strip()}")
            return node.read(copy)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(node.path(copy))

    def check_file(self, node: Node, path: str, image_format: str, *allowed: bytes) -> None:
        """A file must hold one of the contents that are allowed."""
        found = self.content(node, path, image_format)
        if found not in allowed:
            raise Violation(f"{node.name}:{path}: {difference(found, allowed[0])}")

    def check_disk(self, vm: VmModel, disk: DiskModel) -> None:
        self.check_file(self.place(vm), self.path(vm, disk), disk.format, disk.now)

    def check_whole(self, vm: VmModel, *, where: str = "") -> None:
        """A disk that has its final name is complete, whatever has gone wrong.

        On the host `where`, or that of the VM. What is still at work there may take names away.
        """
        node = self.node(where) if where else self.place(vm)
        for disk in vm.disks:
            path = self.path(vm, disk)
            if node.exists(path):
                try:
                    self.check_file(node, path, disk.format, disk.now)
                except Violation:
                    if node.exists(path):
                        raise

    def check_vm(self, vm: VmModel) -> None:
        for disk in vm.disks:
            self.check_disk(vm, disk)

    def check_image(self, image: ImageModel) -> None:
        if not image.image.source:
            raise Violation(f"image {image.image.id}: {image.image.template.get('ERROR')}")
        path = image.image.source.replace("//", "/")
        self.check_file(self.bed.frontend, path, image.image.format, image.content)

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

    def settle_copies(self, must: bool) -> None:
        """Learn what the recovery copies show; with `must`, each disk that asks has a present one.

        Only while nothing is at work.
        """
        for vm in self.model.vms:
            for disk in vm.disks:
                path = self.copy_of(vm, disk) if disk.asks else ""
                if path:
                    found = self.content(self.node(REPLICA), path, disk.format)
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
def running_world(version: str = "6.10.0.1") -> Iterator[World]:
    """Bring it up; everything is gone behind the block."""
    with running_testbed(hosts=4, version=version) as bed:
        world = World(bed)
        world.kvm.start()
        world.begin()
        yield world
