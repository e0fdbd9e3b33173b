"""install.sh --adopt: a system datastore of the ssh driver becomes onestor's, with its VMs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster import Node
from tests.drivers.conftest import content
from tests.install_tests.test_configure import STOCK
from tests.oned import objects
from tests.oned.life import Life
from tests.oned.objects import Datastore, Disk, Snapshots, Vm
from tests.testbed import DATASTORES, REMOTES, STATE, Testbed, register

pytestmark = pytest.mark.cluster

MODE = ("CLONE_TARGET_ONESTOR", "LN_TARGET_ONESTOR", "DISK_TYPE_ONESTOR")


@dataclass
class Site:
    """A cloud with datastores of the ssh driver, and VMs as it would have made them."""

    bed: Testbed
    images: Datastore
    system: Datastore

    def adopt(self, *words: str, status: int = 0) -> str:
        argv = ["/src/install.sh", "--adopt", *(words or (str(self.system.id),))]
        done = self.bed.frontend.run(argv, user="root", check=False, timeout=120)
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        self.bed.cloud.reread(self.system)
        return str(said)

    def directory(self, vm: Vm) -> str:
        return f"{DATASTORES}/{self.system.id}/{vm.id}"

    def vm(self, host: str, *formats: str, state: int = objects.POWEROFF) -> Vm:
        """A VM with a plain disk of each format; the files are where its state has them."""
        disks: list[Disk] = []
        for image_format in formats:
            source = f"{DATASTORES}/{self.images.id}/abc{len(disks)}"
            image = self.bed.cloud.add_image(
                self.images, source=source, format=image_format, size=8
            )
            disks.append(self.bed.cloud.image_disk(image))
        vm = self.bed.cloud.add_vm(disks=disks)
        self.bed.cloud.place(vm, host, self.system)
        lcm_state = objects.RUNNING if state == objects.ACTIVE else 0
        self.bed.cloud.set_state(vm, state, lcm_state)
        node = self.node(vm)
        node.run(["mkdir", "-p", self.directory(vm)])
        for number, image_format in enumerate(formats):
            make_disk(node, f"{self.directory(vm)}/disk.{number}", image_format)
        return vm

    def node(self, vm: Vm) -> Node:
        if vm.state in (objects.STOPPED, objects.UNDEPLOYED):
            return self.bed.frontend
        return self.bed.cluster.node(vm.history[-1].hostname)


def make_disk(node: Node, path: str, image_format: str) -> None:
    node.run(["qemu-img", "create", "-q", "-f", image_format, path, "8M"])
    node.run(["qemu-io", "-f", image_format, "-c", "write -P 7 1M 64k", path])


def use_recovery_layout(node: Node, disk: str) -> None:
    """As the ssh driver does it for RECOVERY_SNAPSHOT_FREQ (contract section 6.1)."""
    name = disk.rpartition("/")[2]
    script = f"""
mkdir {disk}.snap && ln -s . {disk}.snap/{name}.snap && mv {disk} {disk}.snap/base &&
qemu-img create -q -u -f qcow2 -b {name}.snap/base -F qcow2 {disk}.snap/base.1 8M &&
ln -s {name}.snap/base.1 {disk} && qemu-io -f qcow2 -c 'write -P 8 2M 64k' {disk}"""
    node.run(["sh", "-c", script])


def add_snapshot(site: Site, vm: Vm, disk: int) -> None:
    """One that oned knows, a full copy."""
    path = f"{site.directory(vm)}/disk.{disk}"
    site.node(vm).run(["mkdir", "-p", f"{path}.snap"])
    site.node(vm).run(["cp", path, f"{path}.snap/0"])
    vm.snapshots.append(Snapshots("YES", disk_id=disk))
    vm.snapshots[-1].add("first", 8)
    site.bed.cloud.save(vm)


@pytest.fixture
def site(bed: Testbed) -> Iterator[Site]:
    cloud, frontend = bed.cloud, bed.frontend
    register(frontend, *STOCK["6.10"])
    # What the ssh driver does for a disk of its own: the line of the directory does it all.
    frontend.write(f"{REMOTES}/tm/ssh/mv", "#!/bin/sh\nexit 0\n", mode=0o755)
    # oned writes there, too.
    frontend.run(["chown", "oneadmin:", f"{STATE}/datastore"], user="root")
    images = cloud.add_image_datastore(id=111, TM_MAD="ssh", DS_MAD="fs")
    system = cloud.add_system_datastore(name="old", id=112, TM_MAD="ssh")
    yield Site(bed, images, system)
    for vm in list(cloud.vms.values()):
        cloud.delete(vm)
    for image in list(cloud.images.values()):
        cloud.delete(image)
    for datastore in (images, system):
        cloud.clusters[0].datastores.remove(datastore.id)
        cloud.delete(datastore)
    cloud.save(cloud.clusters[0])
    frontend.run(["rm", "-rf", "/etc/one/oned.conf", "/etc/one/vmm_exec"], user="root")
    frontend.run(["rm", "-f", f"{REMOTES}/tm/ssh/mv", f"{STATE}/tm_mads"], user="root")


def test_L11_a_datastore_with_vms_of_the_ssh_driver(site: Site) -> None:
    bed, life = site.bed, Life(site.bed.oned)
    running = site.vm("host01", "raw", "qcow2", state=objects.ACTIVE)
    use_recovery_layout(bed.hosts[0], f"{site.directory(running)}/disk.1")
    running.disks[1].attributes["RECOVERY_SNAPSHOT_FREQ"] = "600"
    add_snapshot(site, running, 0)
    off = site.vm("host02", "qcow2")
    stopped = site.vm("host02", "qcow2", state=objects.UNDEPLOYED)
    disk = f"{site.directory(off)}/disk.0"
    before = content(bed.hosts[1], disk, "qcow2")

    said = site.adopt("old", "--dry-run")
    assert f"ok: VM {running.id} on host01, running: disk.0 plain with 1 snapshot" in said
    assert f"disk.1 recovery layout\nok: VM {off.id} on host02, powered off: disk.0 plain" in said
    assert f"ok: VM {stopped.id} on the front-end, undeployed: disk.0 plain" in said
    assert "would be changed: datastore 112 (old): TM_MAD=onestor" in said
    assert site.system.tm_mad == "ssh" and "onestor" not in site.system.template.values()

    said = site.adopt()
    assert "changed: datastore 112 (old): TM_MAD=onestor" in said and "problem" not in said
    assert site.system.tm_mad == site.system.template["TM_MAD"] == "onestor"
    assert site.system.template["SHARED"] == "NO"
    assert [site.system.template[name] for name in MODE] == ["SYSTEM", "SYSTEM", "FILE"]
    assert f"VMs {running.id} {off.id} {stopped.id} stay with ssh until they are placed" in said
    assert f"VMs {running.id} ask for recovery copies" in said
    assert "left to do: image datastore 111" in said
    command = r"printf 'DS_MAD=onestor\nTM_MAD=onestor\nCLONE_TARGET_ONESTOR=SYSTEM\n"
    assert command in said and "onedatastore update 111 111.ds --append" in said
    assert "onehost sync -f" in said and r"printf 'TM_MAD=ssh\nCLONE_TARGET_SSH=" in said

    again = site.adopt()
    assert "ok: datastore 112 (old) has TM_MAD=onestor already" in again
    assert "changed:" not in again

    assert life.migrate(off, "host01").success
    assert off.history[-1].tm_mad == "onestor"
    assert content(bed.hosts[0], disk, "qcow2") == before
    assert not bed.hosts[1].exists(site.directory(off))
    assert life.resume(stopped, "host02").success
    assert bed.hosts[1].exists(f"{site.directory(stopped)}/disk.0")
    bed.cloud.set_state(running, objects.POWEROFF)
    path = f"{site.directory(running)}/disk.1"
    before = content(bed.hosts[0], path, "qcow2")
    assert life.migrate(running, "host02").success
    assert content(bed.hosts[1], path, "qcow2") == before
    assert bed.hosts[1].exists(f"{site.directory(running)}/disk.0.snap/0")


def test_what_cannot_be_adopted(site: Site) -> None:
    cloud = site.bed.cloud
    assert "adopt datastore: oned knows no datastore '999'" in site.adopt("999", status=4)
    said = site.adopt(site.images.name, status=2)
    assert f"'os_images' is the name of {site.bed.images.id}, 111; give the id" in said
    said = site.adopt("111", status=3)
    assert "datastore 111 (os_images) is no system datastore" in said
    for name, value, cause in (
        ("SHARED", "YES", "has SHARED=YES, not NO"),
        ("TM_MAD", "ceph", "has TM_MAD=ceph, not ssh"),
    ):
        before = dict(site.system.template)
        site.system.template[name] = value
        site.system.tm_mad = site.system.template["TM_MAD"]  # type: ignore[assignment]
        cloud.save(site.system)
        assert cause in site.adopt(status=3)
        site.system.template, site.system.tm_mad = before, "ssh"
        cloud.save(site.system)
    site.bed.frontend.write(f"{STATE}/tm_mads", "ssh\n")  # oned was not restarted
    said = site.adopt(status=11)
    assert 'TM_MAD named "onestor" is not defined in oned.conf' in said
    assert site.system.tm_mad == "ssh"


def test_one_bad_disk_is_enough(site: Site) -> None:
    """Every reason is told at once, and nothing is changed."""
    bed, cloud = site.bed, site.bed.cloud
    host = bed.hosts[0]
    good, missing, linked, torn = (site.vm("host01", "qcow2") for _ in range(4))
    host.run(["rm", f"{site.directory(missing)}/disk.0"])
    make_disk(host, f"{DATASTORES}/elsewhere", "qcow2")
    host.run(["ln", "-sf", f"{DATASTORES}/elsewhere", f"{site.directory(linked)}/disk.0"])
    add_snapshot(site, torn, 0)
    host.run(["rm", f"{site.directory(torn)}/disk.0.snap/0"])
    busy = site.vm("host01", "qcow2", state=objects.ACTIVE)
    cloud.set_state(busy, objects.ACTIVE, objects.PROLOG)
    foreign = site.vm("host01", "qcow2")
    foreign.disks[0].attributes["TM_MAD"] = "qcow2"
    cloud.save(foreign)
    away = site.vm("host02", "qcow2")
    bed.hosts[1].cut()
    said = site.adopt(status=1)
    bed.hosts[1].heal()
    assert f"ok: VM {good.id} on host01" in said
    path = f"{site.directory(missing)}/disk.0"
    assert f"problem: VM {missing.id} on host01: look at the disk host01:{path}: no such" in said
    assert f"problem: VM {linked.id} on host01" in said and "outside of" in said
    assert f"problem: VM {torn.id} on host01: look at the snapshot" in said
    assert f"problem: VM {busy.id} on host01: an action is going on" in said
    assert f"problem: VM {foreign.id} on host01: disk.0 is of qcow2" in said
    assert f"VMs there: {away.id}" in said
    assert "install.sh: adopt: datastore 112: 6 problems, nothing was changed" in said
    assert site.system.tm_mad == "ssh"
