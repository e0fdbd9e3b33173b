"""KVM on the hosts of the test cluster, driven as OpenNebula's scripts drive it (contract 2.6)."""

from __future__ import annotations

import json
import re
import shlex
from xml.sax.saxutils import escape

from tests import guest
from tests.cluster import Node, libvirt
from tests.oned.mads import SSH_AUTH_SOCK
from tests.oned.objects import DATASTORES, Disk, Vm
from tests.waiting import wait_until

# By their paths: a test that puts something else before them in the PATH means the drivers.
VIRSH, QEMU_IMG = "/usr/bin/virsh", "/usr/bin/qemu-img"
URI = "qemu:///system"
# Emulated everywhere: within a virtual machine this small guest starts six times as fast so.
_DOMAIN = """\
<domain type="qemu">
  <name>one-{id}</name>
  <uuid>{uuid}</uuid>
  <memory unit="MiB">32</memory>
  <vcpu>1</vcpu>
  <os><type arch="x86_64" machine="pc">hvm</type><boot dev="hd"/></os>
  <features><acpi/></features>
  <devices>{disks}</devices>
</domain>
"""
_DISK = """\
<disk type="file" device="{device}">
  <driver name="qemu" type="{format}" cache="none"/>
  <source file="{path}"/>{more}
  <target dev="{target}" bus="{bus}"/>
</disk>
"""


class Kvm:
    """The hosts by name; `start` brings up libvirtd on each."""

    def __init__(self, frontend: Node, hosts: dict[str, Node]) -> None:
        self.frontend, self.hosts = frontend, hosts
        self.failing = False  # the next migration breaks off

    def start(self) -> None:
        for node in self.hosts.values():
            node.run(libvirt.START, user="root")

    def virsh(self, host: str, *words: str, check: bool = True) -> str:
        argv = [VIRSH, "-q", "-c", URI, *words]
        return self.hosts[host].run(argv, check=check, timeout=120).stdout.strip()

    def end_all(self) -> None:
        """Whatever runs on any host runs no more."""
        for host in self.hosts:
            for name in self.virsh(host, "list", "--name").split():
                self.virsh(host, "destroy", name)

    def state(self, vm: Vm, host: str) -> str:
        return self.virsh(host, "domstate", f"one-{vm.id}", check=False)

    def deploy(self, vm: Vm) -> None:
        host = vm.history[-1].hostname
        file = f"{self.directory(vm)}/deployment.0"
        self.hosts[host].write(file, self._domain(vm))
        self.virsh(host, "create", file)

    def shutdown(self, vm: Vm, host: str) -> None:
        self.virsh(host, "destroy", f"one-{vm.id}")

    def save(self, vm: Vm, host: str) -> None:
        file = f"{self.directory(vm)}/checkpoint"
        self.hosts[host].write(file, b"")  # so that it is oneadmin's
        self.virsh(host, "save", f"one-{vm.id}", file)

    def restore(self, vm: Vm) -> None:
        host = vm.history[-1].hostname
        file = f"{self.directory(vm)}/checkpoint"
        # The datastore may be another one than it was when the VM was saved.
        saved = self.virsh(host, "save-image-dumpxml", file)
        now = f"/{vm.history[-1].ds_id}/{vm.id}/disk."
        moved = re.sub(rf"/\d+/{vm.id}/disk\.", now, saved)
        self.hosts[host].write(f"{file}.xml", moved)
        self.virsh(host, "restore", file, "--xml", f"{file}.xml")
        self.hosts[host].run(["rm", "-f", file, f"{file}.xml"])

    def migrate(self, vm: Vm, source: str, target: str) -> bool:
        """As kvm/migrate does for a system datastore that is not shared.

        Regular files get an empty image on the target; their ``.snap`` directory, read-only disks
        and the XML files come by rsync; libvirt copies the rest.
        """
        directory, node = self.directory(vm), self.hosts[source]
        devices, there = [], self.hosts[target]
        there.run(["mkdir", "-p", directory])
        for line in self.virsh(source, "domblklist", f"one-{vm.id}").splitlines():
            device, path = line.split(None, 1)
            path = path.strip()
            number = path.rpartition("disk.")[2]
            if vm.context and number == str(vm.context["DISK_ID"]):
                self._on(source, "rsync", "-a", path, f"{target}:{path}")
                continue
            info = json.loads(node.run([QEMU_IMG, "info", "-U", "--output=json", path]).stdout)
            create = [QEMU_IMG, "create", "-q", "-f", info["format"], path]
            there.run([*create, str(info["virtual-size"])])
            if node.exists(f"{path}.snap"):
                self._on(source, "rsync", "-a", f"{path}.snap/", f"{target}:{path}.snap/")
            devices.append(device)
        xml = node.run(["sh", "-c", f"ls {shlex.quote(directory)}/*.xml"]).stdout.split()
        self._on(source, "rsync", "-a", *xml, f"{target}:{directory}/")
        if self.failing:
            self.failing = False
            return False
        self._on(
            source, VIRSH, "-q", "-c", URI, "migrate", "--live", "--copy-storage-all", "--unsafe",
            "--migrate-disks", ",".join(devices), f"one-{vm.id}",
            self._uri(target),
        )  # fmt: skip
        return True

    def resize(self, vm: Vm, disk: Disk, size: int) -> None:
        path = f"{self.directory(vm)}/disk.{disk.id}"
        words = ["blockresize", f"one-{vm.id}", path, f"{size}M"]
        self.virsh(vm.history[-1].hostname, *words)

    def migrate_shared(self, vm: Vm, source: str, target: str) -> None:
        """As the same script does for a datastore that is shared."""
        words = ["migrate", "--live", "--unsafe", f"one-{vm.id}", self._uri(target)]
        self._on(source, VIRSH, "-q", "-c", URI, *words)

    def guest_at_work(self, vm: Vm, host: str) -> None:
        """Wait until the guest has written to its first disk again."""
        wait_until(lambda: self.state(vm, host) == "running", f"VM {vm.id} runs on {host}", 60)
        disk = vm.disks[0]
        path, node = f"{self.directory(vm)}/disk.{disk.id}", self.hosts[host]
        before = guest.on(node, path, disk.attributes["FORMAT"])
        wait_until(
            lambda: guest.on(node, path, disk.attributes["FORMAT"]).highest > before.highest,
            f"the guest of VM {vm.id} writes", 60,
        )  # fmt: skip

    @staticmethod
    def directory(vm: Vm) -> str:
        return f"{DATASTORES}/{vm.history[-1].ds_id}/{vm.id}"

    def _uri(self, target: str) -> str:
        return f"qemu+ssh://oneadmin@{target}/system"

    def _on(self, host: str, *argv: str) -> None:
        """Run a program on a host that is lent the front-end's ssh-agent, as oned's mads do."""
        command = ["ssh", "-A", "-o", "ControlMaster=no", "-o", "ControlPath=none", host]
        environment = {"SSH_AUTH_SOCK": SSH_AUTH_SOCK}
        self.frontend.run([*command, shlex.join(argv)], env=environment, timeout=120)

    def _domain(self, vm: Vm) -> str:
        disks = []
        for disk in vm.disks:
            attributes = disk.attributes
            disks.append(
                _DISK.format(
                    device="disk",
                    format=attributes["FORMAT"],
                    more="",
                    bus="virtio",
                    path=escape(f"{self.directory(vm)}/disk.{disk.id}"),
                    target=f"vd{chr(ord('a') + disk.id)}",
                )
            )
        if vm.context:
            disks.append(
                _DISK.format(
                    device="cdrom",
                    format="raw",
                    more="<readonly/>",
                    target="hda",
                    bus="ide",
                    path=escape(f"{self.directory(vm)}/disk.{vm.context['DISK_ID']}"),
                )
            )
        boot = vm.template["OS"]
        assert isinstance(boot, dict)
        return _DOMAIN.format(id=vm.id, uuid=boot["UUID"], disks="".join(disks))
