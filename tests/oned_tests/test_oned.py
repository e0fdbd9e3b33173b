"""The sequences of calls, held against the recordings."""

from __future__ import annotations

import base64
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.oned import transfer
from tests.oned.life import Life
from tests.oned.objects import (
    ACTIVE,
    BOOT_FAILURE,
    CLEANUP_DELETE,
    DONE,
    EPILOG_FAILURE,
    IMAGE_ERROR,
    KERNEL,
    LCM_INIT,
    PENDING,
    POWEROFF,
    PROLOG,
    PROLOG_FAILURE,
    RAMDISK,
    READY,
    RUNNING,
    STOPPED,
    USED,
    USED_PERSISTENT,
    Vm,
)
from tests.oned.oned import Oned, RequestFailed
from tests.oned.runner import Cancelled, LocalRunner
from tests.oned_tests.conftest import RECORDINGS, Machine, lifecycle
from tests.oned_tests.scenario import Recorded

TM_ACTIONS = ("clone", "ln", "mkimage", "mkswap", "context", "delete", "mvds")


class Front:
    """A front-end with the recorded cloud, and drivers that note how they are called."""

    def __init__(self, machine: Machine, version: str = "6.10.0.1") -> None:
        self.machine = machine
        self.world = Recorded(machine.root / "oned", version)
        self.oned = Oned(
            self.world.cloud,
            LocalRunner(),
            remotes=str(machine.remotes),
            home=str(machine.home),
        )
        for action in TM_ACTIONS:
            machine.recorder(f"tm/onestor/{action}")

    def calls(self) -> list[tuple[str, list[str]]]:
        """The calls so far, with the paths of a real front-end."""
        home = str(self.machine.home)
        return [
            (call["action"], [word.replace(home, "/var/lib/one") for word in call["argv"]])
            for call in self.machine.calls()
        ]

    def running_vm(self, id: int, host: str = "host02") -> Vm:
        vm = self.world.add_vm(id)
        assert self.oned.instantiate(vm, host, self.world.system).success
        (self.machine.root / "calls").unlink()
        return vm

    def fail(self, action: str) -> None:
        self.machine.script(f"tm/onestor/{action}", "echo broken >&2; exit 1")


@pytest.fixture
def front(machine: Machine) -> Front:
    return Front(machine)


def recorded(version: str, *steps: str) -> list[tuple[str, list[str]]]:
    calls = lifecycle(version)
    return [(call["action"], call["argv"]) for call in calls if call["step"] in steps]


def scripts() -> list[str]:
    return (RECORDINGS / "transfer-scripts.txt").read_text().splitlines()


@pytest.mark.parametrize(("version", "number"), [("6.10", 10), ("7.4", 1)])
def test_instantiate(machine: Machine, version: str, number: int) -> None:
    front = Front(machine, f"{version}.1")
    vm = front.world.add_vm(number)
    assert front.oned.instantiate(vm, "host02", front.world.system).success
    assert front.calls() == recorded(version, "instantiate on host02")
    assert (vm.state, vm.lcm_state) == (ACTIVE, RUNNING)
    context = (machine.home / f"vms/{number}/context.sh").read_text()
    assert "SET_HOSTNAME='x'\n" in context
    assert front.world.os.state == USED
    assert front.world.raw.state == USED_PERSISTENT


@pytest.mark.parametrize(("version", "number"), [("6.10", 10), ("7.4", 1)])
def test_attach_and_detach(machine: Machine, version: str, number: int) -> None:
    front = Front(machine, f"{version}.1")
    vm = front.running_vm(number)
    front.world.cloud.set_state(vm, POWEROFF)
    disk = front.world.cloud.image_disk(front.world.clone)
    assert front.oned.attach_disk(vm, disk).success
    assert front.oned.detach_disk(vm, disk).success
    assert front.calls() == recorded(version, "attach disk", "detach disk")
    assert (vm.state, vm.lcm_state) == (POWEROFF, LCM_INIT)
    assert len(vm.disks) == 5


@pytest.mark.parametrize(("version", "number"), [("6.10", 10), ("7.4", 1)])
def test_terminate(machine: Machine, version: str, number: int) -> None:
    front = Front(machine, f"{version}.1")
    vm = front.running_vm(number, "host03")
    assert front.oned.terminate(vm).success
    assert front.calls() == recorded(version, "terminate")
    assert (vm.state, vm.lcm_state) == (DONE, LCM_INIT)
    assert front.world.raw.state == READY
    assert vm.history[-1].action == 28


@pytest.mark.parametrize(("version", "number"), [("6.10", 11), ("7.4", 2)])
def test_recreate_on_another_host(machine: Machine, version: str, number: int) -> None:
    front = Front(machine, f"{version}.1")
    vm = front.world.add_vm(number)
    front.oned.instantiate(vm, "host02", front.world.system)
    front.oned.recover_recreate(vm)
    assert (vm.state, vm.history[-1].action) == (PENDING, 14)
    front.oned.instantiate(vm, "host03", front.world.system)
    assert front.calls() == recorded(version, "recover --recreate on another host")
    assert [record.seq for record in vm.history] == [0, 1]


def test_lines_are_those_oned_wrote(front: Front) -> None:
    vm = front.world.add_vm(10)
    front.world.cloud.place(vm, "host02", front.world.system)
    assert transfer.prolog(vm, "fe") == scripts()[:5]
    disk = front.world.cloud.image_disk(front.world.clone)
    front.world.cloud.add_disk(vm, disk)
    assert transfer.prolog_attach(vm, disk, "fe") == scripts()[6:7]
    assert transfer.epilog_detach(vm, disk) == scripts()[7:8]
    front.world.cloud.remove_disk(vm, disk)
    front.world.cloud.place(vm, "host03", front.world.system)
    assert transfer.epilog(vm) == scripts()[14:20]


def test_kernel_and_ramdisk(front: Front) -> None:
    cloud = front.world.cloud
    files = cloud.add_file_datastore(id=103)
    kernel = cloud.add_image(files, type=KERNEL, source="/var/lib/one//datastores/103/k")
    ramdisk = cloud.add_image(files, type=RAMDISK, source="ceph:pool/r")
    vm = cloud.add_vm(kernel=kernel, ramdisk=ramdisk)
    cloud.place(vm, "host02", front.world.system)
    directory = "host02:/var/lib/one//datastores/102/0"
    assert transfer.prolog(vm, "fe") == [
        f"CLONE onestor fe:/var/lib/one//datastores/103/k {directory}/kernel 0 103",
        f"CLONE onestor ceph:pool/r {directory}/initrd 0 103",
    ]


def test_prolog_failure_and_retry(front: Front) -> None:
    front.fail("ln")
    vm = front.world.add_vm(10)
    assert not front.oned.instantiate(vm, "host02", front.world.system).success
    assert vm.lcm_state == PROLOG_FAILURE
    message = "Error executing image transfer script: broken"
    assert vm.user_template["ERROR"] == message
    assert [action for action, _ in front.calls()] == ["clone"]
    front.machine.recorder("tm/onestor/ln")
    assert front.oned.retry_prolog(vm).success
    assert vm.lcm_state == RUNNING
    assert front.calls()[1:] == recorded("6.10", "instantiate on host02")
    assert len(vm.history) == 1


def test_boot_failure(front: Front) -> None:
    front.fail("context")
    vm = front.world.add_vm(10)
    assert not front.oned.instantiate(vm, "host02", front.world.system).success
    assert vm.lcm_state == BOOT_FAILURE


def test_epilog_failure_and_retry(front: Front) -> None:
    vm = front.running_vm(10)
    front.fail("mvds")
    assert not front.oned.terminate(vm).success
    assert vm.lcm_state == EPILOG_FAILURE
    front.machine.recorder("tm/onestor/mvds")
    assert front.oned.terminate(vm).success
    actions = [action for action, _ in front.calls()]
    assert actions == ["delete", "delete", "mvds", "mvds", "delete", "delete", "delete"]
    assert vm.state == DONE


def test_failed_attach_leaves_no_disk(front: Front) -> None:
    vm = front.running_vm(10)
    front.world.cloud.set_state(vm, POWEROFF)
    front.fail("clone")
    disk = front.world.cloud.image_disk(front.world.clone)
    assert not front.oned.attach_disk(vm, disk).success
    assert len(vm.disks) == 5
    assert front.world.clone.state == READY
    assert vm.state == POWEROFF


def test_attach_persistent_and_volatile(front: Front) -> None:
    vm = front.running_vm(10)
    cloud = front.world.cloud
    cloud.set_state(vm, POWEROFF)
    image = cloud.add_image(front.world.images, persistent=True, source="/s", format="raw", size=1)
    for disk in (cloud.image_disk(image), cloud.volatile_disk(8)):
        assert front.oned.attach_disk(vm, disk).success
        assert front.oned.detach_disk(vm, disk).success
    target = "host02:/var/lib/one//datastores/102/10/disk.6"
    assert front.calls() == [
        ("ln", ["fe:/s", target, "10", "101"]),
        ("mvds", [target, "/s", "10", "101"]),
        ("mkimage", ["8", "raw", target, "10", "102"]),
        ("delete", [target, "10", "102"]),
    ]


def test_snapshots_come_with_a_persistent_image_and_go_back_with_its_disk(front: Front) -> None:
    for action in ("snap_create", "snap_delete", "snap_flatten"):
        front.machine.recorder(f"tm/onestor/{action}")
        front.machine.recorder(f"datastore/onestor/{action}")
    vm, cloud, life = front.running_vm(10), front.world.cloud, Life(front.oned)
    life.power_off(vm)
    image = cloud.add_image(front.world.images, persistent=True, source="/s", format="raw", size=1)
    disk = cloud.image_disk(image)
    assert front.oned.attach_disk(vm, disk).success
    for _ in range(2):
        assert life.snapshot(vm, disk).success
    assert not image.snapshots.snapshots, "as long as the VM has the disk"
    assert front.oned.detach_disk(vm, disk).success
    assert not [each for each in vm.snapshots if each.disk_id == disk.id]
    assert [each["ID"] for each in image.snapshots.snapshots] == [0, 1]

    assert front.oned.snapshot_action("snap_delete", image, 0).success
    again = cloud.image_disk(image)
    assert front.oned.attach_disk(vm, again).success
    (kept,) = [each for each in vm.snapshots if each.disk_id == again.id]
    assert [each["ID"] for each in kept.snapshots] == [1]
    assert life.snapshot(vm, again).success
    assert kept.snapshots[-1]["ID"] == 2, "numbers are not used again"
    front.oned.recover_delete(vm)
    assert [each["ID"] for each in image.snapshots.snapshots] == [1, 2], "whatever its files are"
    assert front.oned.snapshot_action("snap_flatten", image, 1).success
    assert not image.snapshots.snapshots


def test_a_move_to_another_datastore_is_repeated_from_the_old_one(front: Front) -> None:
    front.fail("mv")
    vm, life = front.running_vm(10), Life(front.oned)
    life.power_off(vm)
    other = front.world.cloud.add_system_datastore("other", id=110)
    assert not life.migrate(vm, "host03", other).success
    front.machine.recorder("tm/onestor/mv")
    assert life.retry_move(vm, "host02", POWEROFF).success
    assert vm.state == POWEROFF
    old, new = (f"/var/lib/one//datastores/{number}/10" for number in (102, 110))
    assert front.calls()[-1] == ("mv", [f"host02:{old}", f"host03:{new}", "10", "110"])


def test_a_stop_that_fails_is_repeated_as_a_stop(front: Front) -> None:
    front.fail("mv")
    vm, life = front.running_vm(10), Life(front.oned)
    assert not life.stop(vm).success
    front.machine.recorder("tm/onestor/mv")
    assert life.retry_epilog(vm).success
    assert vm.state == STOPPED


def test_snapshots_begin_at_0_again_when_there_is_none(front: Front) -> None:
    for action in ("snap_create", "snap_delete"):
        front.machine.recorder(f"tm/onestor/{action}")
    vm, life = front.running_vm(10), Life(front.oned)
    life.power_off(vm)
    for _ in range(2):
        assert life.snapshot(vm, vm.disks[0]).success
        assert [each["ID"] for each in vm.snapshots[-1].snapshots] == [0]
        assert life.delete_snapshot(vm, vm.disks[0], 0).success
    front.fail("snap_create")
    assert not life.snapshot(vm, vm.disks[0]).success
    assert not vm.snapshots


def test_a_running_disk_is_resized_by_its_hypervisor_behind_the_action(front: Front) -> None:
    vm, hypervisor = front.running_vm(10), Mock()
    life = Life(front.oned, hypervisor)
    front.fail("resize")
    assert not life.resize(vm, vm.disks[0], 98).success
    assert not hypervisor.mock_calls
    front.machine.recorder("tm/onestor/resize")
    assert life.resize(vm, vm.disks[0], 99).success
    ((action, argv),) = front.calls()
    assert (action, argv[1]) == ("resize", "99")
    hypervisor.resize.assert_called_once_with(vm, vm.disks[0], 99)


def test_recover_delete_of_a_running_vm_goes_on_after_failures(front: Front) -> None:
    vm = front.running_vm(10)
    front.fail("delete")
    answers = front.oned.recover_delete(vm)
    assert [answer.success for answer in answers] == [False] * 6
    assert vm.state == DONE
    assert front.world.raw.state == READY


def test_recover_delete_during_prolog(front: Front) -> None:
    """The clone keeps running while the delete script runs (contract 2.1, DRIVER_CANCEL)."""
    root = front.machine.root
    front.machine.script(
        "tm/onestor/clone", f"touch {root}/started; sleep 1; touch {root}/clone-ended"
    )
    seen: list[Any] = []
    vm = front.world.add_vm(10)

    def instantiate() -> None:
        try:
            seen.append(front.oned.instantiate(vm, "host02", front.world.system))
        except Cancelled:
            seen.append("cancelled")

    user = threading.Thread(target=instantiate)
    user.start()
    wait_for(root / "started")
    assert vm.lcm_state == PROLOG
    front.machine.script(
        "tm/onestor/delete",
        f"grep -o '<LCM_STATE>[0-9]*' {root}/oned/vm/10.xml > {root}/state",
    )
    front.oned.recover_delete(vm)
    user.join()
    assert seen == ["cancelled"]
    assert not (root / "clone-ended").exists()
    assert (root / "state").read_text().strip() == f"<LCM_STATE>{CLEANUP_DELETE}"
    assert (vm.state, vm.history[-1].action) == (DONE, 13)
    wait_for(root / "clone-ended")
    assert front.calls() == []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)


def test_deployment_leaves_vm_and_datastore_on_the_host(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.oned.oned.DATASTORES", str(machine.root / "datastores"))
    front = Front(machine)
    front.oned.hosts = {"host02": LocalRunner()}
    vm = front.world.add_vm(10)
    front.oned.instantiate(vm, "host02", front.world.system)
    directory = machine.root / "datastores/102/10"
    assert ElementTree.fromstring((directory / "vm.xml").read_text()).findtext("ID") == "10"
    assert ElementTree.fromstring((directory / "ds.xml").read_text()).findtext("ID") == "102"


def datastore_drivers(machine: Machine) -> None:
    machine.recorder("datastore/onestor/stat", "4096\n")
    machine.recorder("datastore/onestor/cp", "/var/lib/one//datastores/101/abc qcow2\n")
    machine.recorder("datastore/onestor/rm")
    figures = "USED_MB=34311\nFREE_MB=69588\nTOTAL_MB=258020\n"
    machine.recorder("datastore/onestor/monitor", figures)


@pytest.mark.parametrize("version", ["6.10", "7.4"])
def test_create_image(machine: Machine, version: str) -> None:
    datastore_drivers(machine)
    front = Front(machine, f"{version}.1")
    datastore = front.world.images
    image = front.oned.create_image("/var/tmp/base.qcow2", datastore, MD5="abc")
    assert (image.source, image.format) == ("/var/lib/one//datastores/101/abc", "qcow2")
    assert (image.state, image.size) == (READY, 4096)
    assert datastore.used_mb == 34311
    stat, cp, monitor = front.machine.calls()
    assert (stat["action"], stat["argv"]) == ("stat", ["0"])
    assert (cp["action"], cp["argv"]) == ("cp", [str(image.id)])
    assert (monitor["action"], monitor["argv"]) == ("monitor", [str(datastore.id)])
    for call in (stat, cp, monitor):
        same = shape(base64.b64decode(call["stdin"]).decode())
        assert same - {"MD5"} == shape(recorded_message(version, call["action"]))
    assert f"<ID>{image.id}</ID></IMAGES>" not in base64.b64decode(cp["stdin"]).decode()


def shape(message: str) -> set[str]:
    return {element.tag for element in ElementTree.fromstring(message).iter()}


def recorded_message(version: str, action: str) -> str:
    calls = [call for call in lifecycle(version) if call["action"] == action]
    message = calls[-1]["stdin_xml"]
    assert isinstance(message, str)
    return message


def test_create_image_that_cannot_be_sized(front: Front) -> None:
    front.machine.script("datastore/onestor/stat", "echo not here >&2; exit 1")
    before = dict(front.world.cloud.images)
    with pytest.raises(RequestFailed, match=r"Cannot determine Image SIZE\. not here"):
        front.oned.create_image("/nowhere", front.world.images)
    assert front.world.cloud.images == before


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo disk full >&2; exit 1", "Error copying image in the datastore: disk full"),
        (
            "echo /path",
            "Error copying image in the datastore: "
            "CP operation succeeded but image FORMAT was not returned.",
        ),
    ],
)
def test_create_image_fails(front: Front, script: str, message: str) -> None:
    datastore_drivers(front.machine)
    front.machine.script("datastore/onestor/cp", script)
    image = front.oned.create_image("/var/tmp/base.qcow2", front.world.images)
    assert image.state == IMAGE_ERROR
    assert image.template["ERROR"] == message


def test_delete_image(front: Front) -> None:
    datastore_drivers(front.machine)
    assert front.oned.delete_image(front.world.clone).success
    assert [action for action, _ in front.calls()] == ["rm", "monitor"]
    assert front.world.clone.id not in front.world.cloud.images
    assert front.world.clone.id not in front.world.images.images


@pytest.mark.parametrize(("version", "kept"), [("6.4.0", False), ("6.6.0", True)])
def test_failed_rm_by_version(machine: Machine, version: str, kept: bool) -> None:
    front = Front(machine, version)
    datastore_drivers(machine)
    machine.script("datastore/onestor/rm", "echo busy >&2; exit 1")
    assert not front.oned.delete_image(front.world.clone).success
    assert (front.world.clone.id in front.world.cloud.images) == kept
    assert (front.world.clone.state == IMAGE_ERROR) == kept


def test_monitor_of_system_datastores(front: Front) -> None:
    front.machine.recorder("tm/onestor/monitor", "USED_MB=1\nTOTAL_MB=3\nFREE_MB=2\n")
    assert front.oned.monitor_datastore(front.world.system) is None
    front.world.system.template["SHARED"] = "YES"
    assert front.oned.monitor_datastore(front.world.system)
    assert front.world.system.total_mb == 3
    assert b"<DATASTORE_LOCATION>" in base64.b64decode(front.machine.calls()[0]["stdin"])
