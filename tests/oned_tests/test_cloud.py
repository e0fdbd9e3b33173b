"""The XML of the model, held against the recordings."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.oned.cloud import Cloud
from tests.oned.markup import Value
from tests.oned.objects import ACTIVE, LOCKED, RUNNING, Vm
from tests.oned_tests.conftest import RECORDINGS, lifecycle
from tests.oned_tests.scenario import Recorded, snapshots


def names(element: ElementTree.Element) -> list[Any]:
    """An element's name and those below it, in order."""
    return [element.tag, *(names(child) for child in element)]


def recorded(name: str) -> ElementTree.Element:
    return ElementTree.parse(RECORDINGS / name).getroot()


def rendered(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def recorded_call(version: str, action: str) -> str:
    message = next(
        call["stdin_xml"]
        for call in lifecycle(version)
        if call["action"] == action and call.get("stdin_xml") and call["step"] != "before"
    )
    assert isinstance(message, str)
    return message


def test_datastores_have_the_recorded_elements(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.images.images = [19, 20, 21, 23, 24, 25]
    world.cloud.save(world.images)
    assert names(rendered(tmp_path / "datastore/101.xml")) == names(recorded("datastore-image.xml"))
    assert names(rendered(tmp_path / "datastore/102.xml")) == names(
        recorded("datastore-system.xml")
    )


def test_image_has_the_recorded_elements(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.cloud.add_vm(id=12, disks=[world.cloud.image_disk(world.os)])
    assert names(rendered(tmp_path / "image/19.xml")) == names(recorded("image.xml"))


def test_host_has_the_recorded_elements(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    plain: dict[str, Value] = {"FREE_MB": 52149, "ID": 100, "TOTAL_MB": 258020, "USED_MB": 51750}
    cache: dict[str, Value] = {
        **plain,
        "REPLICA_CACHE": "YES",
        "REPLICA_CACHE_SIZE": "1.1G",
        "REPLICA_IMAGES": 2,
    }
    host = world.hosts[0]
    host.datastores = [{**cache, "ID": 1}, plain, {**cache, "ID": 101}]
    world.cloud.save(host)
    assert names(rendered(tmp_path / "host/0.xml")) == names(recorded("host.xml"))


def test_vm_has_the_recorded_elements(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    vm = world.cloud.add_vm(id=12, disks=[world.cloud.image_disk(world.os)])
    for host in ("host02", "host02", "host03"):
        world.cloud.place(vm, host, world.system)
    vm.monitoring = {
        **dict.fromkeys(("CPU", "ID", "MEMORY", "NETRX", "NETTX", "TIMESTAMP"), "0"),
        **{f"DISK{name}": "0" for name in ("RDBYTES", "RDIOPS", "WRBYTES", "WRIOPS")},
        "DISK_SIZE": [{"ID": 0, "SIZE": 1025}],
        "VM_QEMU_PING": "QEMU Guest Agent monitoring disabled",
    }
    world.cloud.save(vm)
    assert names(rendered(tmp_path / "vm/12.xml")) == names(recorded("vm.xml"))


@pytest.mark.parametrize(("version", "number"), [("6.10.0.1", 10), ("7.4.1", 1)])
def test_vm_is_the_recorded_one_to_the_byte(tmp_path: Path, version: str, number: int) -> None:
    """The VM as premigrate got it: one history record, no monitoring."""
    short = "7.4" if version.startswith("7") else "6.10"
    world = Recorded(tmp_path, version)
    vm = world.add_vm(number)
    expected = recorded_call(short, "premigrate")
    tree = ElementTree.fromstring(expected)
    as_recorded(world, vm, tree)
    assert vm.driver_xml(version) == expected


def as_recorded(world: Recorded, vm: Vm, tree: ElementTree.Element) -> None:
    """Give the VM what differs from run to run: names, times, ids."""
    vm.name = tree.findtext("NAME", "")
    vm.stime = int(tree.findtext("STIME", ""))
    vm.deploy_id = tree.findtext("DEPLOY_ID", "")
    for name in ("TEMPLATE_ID", "AUTOMATIC_REQUIREMENTS"):
        vm.template[name] = tree.findtext(f"TEMPLATE/{name}", "")
    for name in ("OS", "FEATURES"):
        section = tree.find(f"TEMPLATE/{name}")
        assert section is not None
        vm.template[name] = {element.tag: element.text or "" for element in section}
    vm.context["TARGET"] = tree.findtext("TEMPLATE/CONTEXT/TARGET", "")
    dates = [int(element.text or "") for element in tree.findall("SNAPSHOTS/SNAPSHOT/DATE")]
    vm.snapshots = [snapshots(0, 4096, dates[0]), snapshots(1, 64, dates[1])]
    for disk, size in ((0, "4096"), (1, "64")):
        vm.disk(disk).attributes["DISK_SNAPSHOT_TOTAL_SIZE"] = size
    record = world.cloud.place(vm, "host03", world.system)
    record.seq = 3
    record.stime = int(tree.findtext("HISTORY_RECORDS/HISTORY/STIME", ""))
    record.hid = int(tree.findtext("HISTORY_RECORDS/HISTORY/HID", ""))
    world.cloud.set_state(vm, ACTIVE, 4)


@pytest.mark.parametrize("version", ["6.10.0.1", "7.4.1"])
def test_image_message_is_the_recorded_one_to_the_byte(tmp_path: Path, version: str) -> None:
    short = "7.4" if version.startswith("7") else "6.10"
    world = Recorded(tmp_path, version)
    expected = recorded_call(short, "mkfs")
    image, datastore = world.raw, world.images
    tree = ElementTree.fromstring(expected)
    image.regtime = int(tree.findtext("IMAGE/REGTIME", ""))
    image.source, image.state, image.prev_state = "", LOCKED, 0
    for name in ("total_mb", "free_mb", "used_mb"):
        setattr(datastore, name, int(tree.findtext(f"DATASTORE/{name.upper()}", "")))
    datastore.images = [int(element.text or "") for element in tree.findall("DATASTORE/IMAGES/ID")]
    inner = image.xml(version) + datastore.xml(version)
    assert f"<DS_DRIVER_ACTION_DATA>{inner}</DS_DRIVER_ACTION_DATA>" == expected


def test_any_characters_survive(cloud: Cloud) -> None:
    value = "a < b & c > d ]]> \"quoted\" 'single'\n\ttab ümläut 你好 <![CDATA["
    vm = cloud.add_vm(name=value, user_template={"NOTE": value})
    tree = rendered(cloud.root / f"vm/{vm.id}.xml")
    assert tree.findtext("NAME") == value
    assert tree.findtext("USER_TEMPLATE/NOTE") == value


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("5.12.0.5", {"ALLOW_ORPHANS"}),
        ("6.6.0", {"ALLOW_ORPHANS"}),
        ("6.8.0", {"ALLOW_ORPHANS", "QCOW2_STANDALONE"}),
        ("6.10.0.1", {"ALLOW_ORPHANS", "QCOW2_STANDALONE", "SPARSE"}),
        ("7.0.1", {"ALLOW_ORPHANS", "QCOW2_STANDALONE", "SPARSE", "PERSISTENT_SNAPSHOTS"}),
    ],
)
def test_disks_inherit_by_version(tmp_path: Path, version: str, expected: set[str]) -> None:
    cloud = Cloud(tmp_path, version)
    images = cloud.add_image_datastore(SPARSE="NO", QCOW2_STANDALONE="YES")
    disk = cloud.image_disk(cloud.add_image(images, format="qcow2", size=1))
    optional = {"ALLOW_ORPHANS", "QCOW2_STANDALONE", "SPARSE", "PERSISTENT_SNAPSHOTS"}
    assert optional & set(disk.attributes) == expected


def test_the_users_attribute_is_not_overridden(cloud: Cloud) -> None:
    images = cloud.add_image_datastore(SPARSE="NO")
    image = cloud.add_image(images, format="qcow2", size=1)
    disk = cloud.image_disk(image, SPARSE="YES", RECOVERY_SNAPSHOT_FREQ="60")
    assert disk.attributes["SPARSE"] == "YES"
    assert disk.attributes["RECOVERY_SNAPSHOT_FREQ"] == "60"


def test_old_images_have_no_format(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, "5.12.0.5")
    cloud.add_image(cloud.add_image_datastore(), format="qcow2", fs="ext4")
    tree = rendered(tmp_path / "image/0.xml")
    assert tree.find("FORMAT") is None
    assert tree.findtext("FSTYPE") == "ext4"


def test_delete_forgets(cloud: Cloud) -> None:
    vm = cloud.add_vm()
    cloud.set_state(vm, ACTIVE, RUNNING)
    cloud.delete(vm)
    assert not list((cloud.root / "vm").iterdir())
    assert cloud.vms == {}
