"""A cloud whose hosts have libvirt, for the whole life of a VM."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import guest
from tests.cluster import Node
from tests.hypervisor import Kvm
from tests.oned.life import Life
from tests.oned.objects import Image, Vm
from tests.testbed import DATASTORES, Testbed, running_testbed
from tests.waiting import wait_until

MB = 1 << 20
SIZE = 64 * MB  # of the guests' disks
SOURCES = "/var/tmp"


@dataclass
class World:
    """The cloud, its hypervisor, and what a user may ask of both."""

    bed: Testbed
    kvm: Kvm
    life: Life

    @property
    def one(self) -> Node:
        return self.bed.hosts[0]

    @property
    def two(self) -> Node:
        return self.bed.hosts[1]

    def directory(self, vm: Vm) -> str:
        return f"{DATASTORES}/{vm.history[-1].ds_id}/{vm.id}"

    def disk(self, vm: Vm, number: int = 0) -> str:
        return f"{self.directory(vm)}/disk.{number}"

    def content(self, node: Node, path: str, image_format: str) -> bytes:
        """What a guest sees on a disk, chain and all."""
        copy = f"{SOURCES}/content"
        node.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, copy])
        content = node.read(copy)
        node.run(["rm", copy])
        return content

    def count(self, node: Node, path: str, image_format: str = "qcow2") -> guest.Count:
        """How far the guest is by what is on its disk."""
        return guest.on(node, path, image_format)

    def names(self, node: Node, vm: Vm) -> set[str]:
        """The files in the VM's directory on a node, but for notes and locks of ours."""
        prefix = f"{vm.history[-1].ds_id}/{vm.id}/"
        found = {name[len(prefix) :] for name in self.bed.files(node) if name.startswith(prefix)}
        return {name for name in found if not name.startswith(".")}

    def domain_xml(self, vm: Vm) -> str:
        """What libvirt says of a VM; nothing where it does not run."""
        host = vm.history[-1].hostname
        return self.kvm.virsh(host, "dumpxml", vm.deploy_id, check=False)

    def probe(self, host: str, vm: Vm) -> str:
        """What the host's probe says of the VM's disks."""
        directory = f"{DATASTORES}/{vm.history[-1].ds_id}"
        argv = ["/var/tmp/one/tm/onestor/monitor_ds", directory]
        said = self.bed.cluster.node(host).run(argv).stdout
        (line,) = [line for line in said.splitlines() if f"ID = {vm.id}," in line]
        return base64.b64decode(line.split('"')[1]).decode().replace("[ ", "[").replace(" ]", "]")

    def backup(self, vm: Vm, name: str, since: str = "") -> None:
        """A backup of the first disk, as OpenNebula's utility has libvirt make it; its end."""
        others = [f"vd{chr(ord('a') + disk.id)}" for disk in vm.disks[1:]]
        incremental = f"<incremental>{since}</incremental>" if since else ""
        target = f"{SOURCES}/{name}.qcow2"
        self.one.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE)])
        disks = "".join(f'<disk name="{each}" backup="no"/>' for each in others)
        self.one.write(
            f"{SOURCES}/backup.xml",
            f'<domainbackup mode="push">{incremental}<disks>'
            f'<disk name="vda" type="file" backup="yes"><target file="{target}"/>'
            f'<driver type="qcow2"/></disk>{disks}</disks></domainbackup>',
        )
        points = "".join(f'<disk name="{each}" checkpoint="no"/>' for each in others)
        self.one.write(
            f"{SOURCES}/point.xml",
            f"<domaincheckpoint><name>{name}</name><disks>"
            f'<disk name="vda" checkpoint="bitmap"/>{points}</disks></domaincheckpoint>',
        )
        files = [f"{SOURCES}/backup.xml", f"{SOURCES}/point.xml"]
        self.kvm.virsh("host01", "backup-begin", vm.deploy_id, *files, "--reuse-external")
        wait_until(
            lambda: "None" in self.kvm.virsh("host01", "domjobinfo", vm.deploy_id), "backup", 60
        )

    def restored(self, *names: str) -> bytes:
        """What a full backup and its increments, in their order, say was on the disk."""
        files = [f"{SOURCES}/{name}.qcow2" for name in names]
        for below, file in zip(files, files[1:]):
            rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", file]
            self.one.run(rebase)
        return self.content(self.one, files[-1], "qcow2")

    def image(self, **options: Any) -> Image:
        return self.bed.image(f"{SOURCES}/guest.qcow2", **options)


@pytest.fixture(scope="session")
def running_world() -> Iterator[World]:
    with running_testbed(hosts=3) as bed:  # the last one is a replica in some tests
        kvm = Kvm(bed.frontend, {node.name: node for node in bed.hosts[:2]})
        kvm.start()
        make_sources(bed.frontend)
        yield World(bed, kvm, Life(bed.oned, kvm))


@pytest.fixture
def world(running_world: World) -> Iterator[World]:
    bed, kvm = running_world.bed, running_world.kvm
    bed.clean()
    kvm.failing = False
    yield running_world
    kvm.end_all()
    for node in bed.hosts:
        node.mend_link()
    bed.assert_at_rest()


@pytest.fixture
def vm(world: World) -> Iterator[Vm]:
    """A VM that runs on host01 and writes to its thin disk."""
    yield from at_work(world)


@pytest.fixture
def with_raw(world: World) -> Iterator[Vm]:
    """The same with a persistent disk that is raw."""
    yield from at_work(world, world.bed.image(f"{SOURCES}/guest.raw", persistent=True))


def at_work(world: World, *more: Image) -> Iterator[Vm]:
    vm = world.bed.vm(world.image(), *more)
    reply = world.life.instantiate(vm, "host01", world.bed.system)
    assert reply.success, reply.error
    world.kvm.guest_at_work(vm, "host01")
    yield vm
    assert "mirror" not in world.domain_xml(vm)


@pytest.fixture
def replica(world: World) -> Node:
    world.bed.system.template["REPLICA_HOST"] = "host03"
    world.bed.cloud.save(world.bed.system)
    return world.bed.hosts[2]


def make_sources(frontend: Node) -> None:
    """A disk with the guest in its first sector and data here and there, in both formats."""
    script = """
import random, sys
noise = random.Random(1).randbytes
with open("/var/tmp/guest.raw", "wb") as image:
    image.write(sys.stdin.buffer.read())
    for offset in (4, 30, 60):
        image.seek(offset << 20)
        image.write(noise(1 << 20))
    image.truncate(64 << 20)
"""
    frontend.run(["/usr/bin/python3", "-c", script], input=guest.boot_sector())
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    frontend.run([*argv, f"{SOURCES}/guest.raw", f"{SOURCES}/guest.qcow2"])
