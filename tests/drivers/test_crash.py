"""Killed at each enumerated crash point: whatever has a final name is complete, a repeat succeeds.

The list of points is the list of tests (onestor_lib/agent/crashpoints.py).
"""

from __future__ import annotations

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import wait_until
from tests.drivers.conftest import SOURCES, digest, same_content
from tests.oned.objects import Image, Vm
from tests.testbed import DATASTORES, Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.crash]

RAW = f"{SOURCES}/raw.img"


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


def assert_died_there(bed: Testbed, point: str) -> None:
    assert bed.crashed_at(), "never a point that nobody passes"
    assert set(bed.crashed_at()) == {point}


@pytest.mark.parametrize("point", crashpoints.names("tm.clone"))
def test_A3_A6_clone_after_a_crash(bed: Testbed, point: str) -> None:
    vm = bed.vm(bed.image(RAW))
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    assert_whole_files(bed, vm)
    bed.environment()
    assert bed.oned.retry_prolog(vm).success
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, RAW)
    wait_until(lambda: bed.leftovers() == [], "nothing is left")
    names = set(bed.files(bed.hosts[0]))
    expected = {"disk.0", ".disk.0.lock", ".disk.0.record", "vm.xml", "ds.xml"}
    assert names == {"102/.monitor", *(f"102/{vm.id}/{name}" for name in expected)}


@pytest.mark.parametrize("point", crashpoints.names("tm.clone"))
def test_C3_A6_clone_with_all_steps_after_a_crash(bed: Testbed, point: str) -> None:
    """qcow2, grown, SPARSE=NO, and an unknown file in the disk's place."""
    image = bed.image(f"{SOURCES}/disk.qcow2")
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100", SPARSE="NO")])
    host, disk = bed.hosts[0], bed.disk_path(vm)
    host.write(disk, "somebody's only copy")
    crash(bed, point)
    bed.oned.instantiate(vm, "host01", bed.system)
    assert_died_there(bed, point)
    check = ["qemu-img", "check", "-q", "-f", "qcow2", disk]
    if host.exists(disk) and host.read(disk) != b"somebody's only copy":
        host.run(check)
    bed.environment()
    assert bed.oned.retry_prolog(vm).success
    assert same_content(bed, host, disk, "qcow2", f"{SOURCES}/disk.qcow2")
    unknown = [name for name in bed.files(host) if name.endswith(".unknown")]
    assert [host.read(f"{DATASTORES}/{name}") for name in unknown] == [b"somebody's only copy"]
    wait_until(lambda: bed.leftovers() == [], "nothing is left")


@pytest.mark.parametrize("point", crashpoints.names("tm.ln"))
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
    wait_until(lambda: bed.leftovers() == [], "nothing is left")


@pytest.mark.parametrize("point", crashpoints.names("datastore.cp"))
def test_K18_cp_after_a_crash(bed: Testbed, point: str) -> None:
    crash(bed, point)
    image = bed.oned.create_image(RAW, bed.images)
    assert_died_there(bed, point)
    assert not image.source
    final = [name for name in bed.files(bed.frontend) if "/." not in name]
    for name in final:
        assert digest(bed.frontend, f"{DATASTORES}/{name}") == digest(bed.frontend, RAW)
    bed.environment()
    again = bed.image(RAW)
    assert digest(bed.frontend, again.source) == digest(bed.frontend, RAW)
    wait_until(lambda: bed.leftovers() == [], "nothing is left")


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
    assert bed.files(bed.hosts[0]) == {"102/.monitor": 8}


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
