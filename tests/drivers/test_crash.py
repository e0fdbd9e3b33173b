"""Killed at each enumerated crash point: whatever has a final name is complete, a repeat succeeds.

The list of points is the list of tests (onestor_lib/agent/crashpoints.py).
"""

from __future__ import annotations

import os

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    QCOW2,
    RAW,
    cached_names,
    digest,
    points,
    same_content,
    unfinished,
    vm_files,
)
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.crash]


def persistent_image(bed: Testbed) -> Image:
    image = bed.image(RAW, persistent=True)
    bed.frontend.run(["mkdir", f"{image.source}.snap"])
    bed.frontend.write(f"{image.source}.snap/0", "snapshot 0")
    return image


def crash(bed: Testbed, point: str) -> None:
    bed.environment(**{crashpoints.VARIABLE: point})


def assert_whole_files(bed: Testbed, vm: Vm) -> None:
    """Final names are complete or absent, on the host as on the front-end."""
    host, disk = bed.hosts[0], bed.disk_path(vm)
    if host.exists(disk):
        assert digest(host, disk) == digest(bed.frontend, RAW)
        assert host.read(f"{DATASTORES}/102/.monitor") == b"onestor\n"
    if host.exists(f"{disk}.snap"):
        assert host.read(f"{disk}.snap/0") == b"snapshot 0"


def assert_whole_entry(bed: Testbed, node: Node, image: Image, source: str) -> None:
    """The entry in a cache is complete or absent, whatever was killed."""
    entry = image.source.replace("//", "/")
    if node.exists(entry):
        assert digest(node, entry) == digest(bed.frontend, source)


def assert_died_there(bed: Testbed, point: str) -> None:
    assert bed.crashed_at(), "never a point that nobody passes"
    assert set(bed.crashed_at()) == {point}


# A replica fills its cache as a host does: what is passed on the way through two caches.
ON_THE_WAY = [
    point
    for point in crashpoints.names("tm.clone thin")
    if point.startswith(("room.", "fill.", "send.", "receive."))
]


def assert_repeat_cleans_up(bed: Testbed, vm: Vm) -> None:
    """The repeat succeeds, and takes away what the killed one has left wherever it was at work."""
    bed.environment()
    reply = bed.oned.retry_prolog(vm)
    assert reply.success, reply.error
    bed.assert_at_rest()
    assert unfinished(bed) == []


@pytest.mark.parametrize("point", points("tm.clone", "tm.clone thin"))
def test_A3_A6_B13_clone_after_a_crash(bed: Testbed, point: str) -> None:
    image = bed.image(RAW)
    vm = bed.vm(image)
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    assert_whole_files(bed, vm)
    assert_whole_entry(bed, bed.hosts[0], image, RAW)
    assert_repeat_cleans_up(bed, vm)
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, RAW)
    name = os.path.basename(image.source)
    expected = {"disk.0", ".disk.0.lock", ".disk.0.record", "vm.xml", "ds.xml"}
    assert set(bed.files(bed.hosts[0])) == {
        "102/.monitor",
        *(f"102/{vm.id}/{name}" for name in expected),
        *(f"101/{entry}" for entry in (name, f".{name}.sidecar", f".{name}.lock")),
        ".onestor-cache.lock",
    }


# tests/tool kills it at all of them, on one machine.
THIN = one_of(9, crashpoints.names("tm.clone thin"))


@pytest.mark.parametrize("point", THIN)
def test_A3_A6_C10_thin_clone_after_a_crash(bed: Testbed, point: str) -> None:
    image = bed.image(QCOW2)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100")])
    host, disk = bed.hosts[0], bed.disk_path(vm)
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    if host.exists(disk):
        assert same_content(bed, host, disk, "qcow2", QCOW2)
    assert_whole_entry(bed, host, image, QCOW2)
    assert_repeat_cleans_up(bed, vm)
    assert same_content(bed, host, disk, "qcow2", QCOW2)


@pytest.mark.parametrize("point", one_of(9, ON_THE_WAY))
def test_A3_A6_clone_by_way_of_the_replica_after_a_crash(bed: Testbed, point: str) -> None:
    bed.system.template["REPLICA_HOST"] = "host03"
    bed.cloud.save(bed.system)
    image = bed.image(QCOW2)
    vm = bed.vm(image)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    if host.exists(disk):
        assert same_content(bed, host, disk, "qcow2", QCOW2)
    for node in (host, bed.hosts[2]):
        assert_whole_entry(bed, node, image, QCOW2)
    bed.environment()
    if vm.lcm_state != objects.RUNNING:  # a replica that dies costs a warning, not the VM
        assert bed.oned.retry_prolog(vm).success
    assert same_content(bed, host, disk, "qcow2", QCOW2)
    later = bed.vm(image)
    assert bed.oned.instantiate(later, "host02", bed.system).success  # uses the replica again
    assert same_content(bed, bed.hosts[1], bed.disk_path(later), "qcow2", QCOW2)
    bed.assert_at_rest()
    assert unfinished(bed) == []


# What comes before is the same for every disk.
IN_PLACE = [
    point
    for point in crashpoints.names("tm.clone")
    if point.startswith(("place.", "publish.", "frontend."))
]


@pytest.mark.parametrize("point", one_of(9, IN_PLACE))
def test_C3_A6_clone_with_all_steps_after_a_crash(bed: Testbed, point: str) -> None:
    """qcow2, grown, SPARSE=NO, and an unknown file in the disk's place."""
    image = bed.image(QCOW2)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100", SPARSE="NO")])
    host, disk = bed.hosts[0], bed.disk_path(vm)
    host.write(disk, "somebody's only copy")
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    check = ["qemu-img", "check", "-q", "-f", "qcow2", disk]
    if host.exists(disk) and host.read(disk) != b"somebody's only copy":
        host.run(check)
    assert_repeat_cleans_up(bed, vm)
    assert same_content(bed, host, disk, "qcow2", QCOW2)
    unknown = [name for name in bed.files(host) if ".unknown/" in name]
    assert [host.read(f"{DATASTORES}/{name}") for name in unknown] == [b"somebody's only copy"]


@pytest.mark.parametrize("point", one_of(2, crashpoints.names("eviction")))
def test_B13_clone_that_evicts_after_a_crash(bed: Testbed, point: str) -> None:
    """What the kill has left of the old entry is a hit or a miss, and goes with the repeat."""
    bed.system.template["HOST_CACHE_MAX_SIZE_MB"] = "6"
    bed.cloud.save(bed.system)
    host = bed.hosts[0]
    old, new = bed.image(RAW), bed.image(QCOW2)
    first = bed.vm(old)
    assert bed.oned.instantiate(first, "host01", bed.system).success
    assert cached_names(bed, host) == {os.path.basename(old.source)}
    vm = bed.vm(new)
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    assert digest(host, bed.disk_path(first)) == digest(bed.frontend, RAW)
    assert_repeat_cleans_up(bed, vm)
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
    assert cached_names(bed, host) == {os.path.basename(new.source)}
    kept = [name for name in bed.files(host) if os.path.basename(old.source) in name]
    assert [name for name in kept if not name.endswith(".lock")] == []
    again = bed.vm(old)
    assert bed.oned.instantiate(again, "host01", bed.system).success
    assert digest(host, bed.disk_path(again)) == digest(bed.frontend, RAW)


@pytest.mark.parametrize("point", points("tm.ln", "tm.clone thin"))
def test_A3_A6_ln_after_a_crash(bed: Testbed, point: str) -> None:
    vm = bed.vm(persistent_image(bed))
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    assert_whole_files(bed, vm)
    bed.environment()
    assert bed.oned.retry_prolog(vm).success
    disk = bed.disk_path(vm)
    assert digest(bed.hosts[0], disk) == digest(bed.frontend, RAW)
    assert bed.hosts[0].read(f"{disk}.snap/0") == b"snapshot 0"
    bed.assert_at_rest()


@pytest.mark.parametrize("point", points("datastore.cp", "tm.clone"))
def test_K18_cp_after_a_crash(bed: Testbed, point: str) -> None:
    crash(bed, point)
    image = bed.oned.create_image(RAW, bed.images)
    assert_died_there(bed, point)
    assert not image.source
    final = [name for name in bed.files(bed.frontend) if "/." not in name]
    for name in final:
        assert digest(bed.frontend, f"{DATASTORES}/{name}") == digest(bed.frontend, RAW)
    bed.environment()
    again = bed.import_image(RAW)
    assert digest(bed.frontend, again.source) == digest(bed.frontend, RAW)
    bed.assert_at_rest()


@pytest.mark.parametrize("point", crashpoints.names("tm.delete"))
def test_K18_delete_after_a_crash(bed: Testbed, point: str) -> None:
    vm = bed.vm(bed.image(RAW))
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    crash(bed, point)
    assert not bed.oned.terminate(vm).success
    assert_died_there(bed, point)
    assert_whole_files(bed, vm)
    bed.environment()
    assert bed.oned.terminate(vm).success
    assert vm_files(bed, bed.hosts[0]) == {"102/.monitor": 8}


@pytest.mark.parametrize("point", crashpoints.names("datastore.rm"))
def test_K18_rm_after_a_crash(bed: Testbed, point: str) -> None:
    image = persistent_image(bed)
    bed.frontend.write(f"{image.source}.md5sum", "an old record")
    crash(bed, point)
    assert not bed.oned.image_action("rm", image).success
    assert_died_there(bed, point)
    bed.environment()
    assert bed.oned.image_action("rm", image).success
    assert bed.files(bed.frontend) == {}
