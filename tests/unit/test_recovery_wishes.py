"""frontend.services.recovery: which copies are of use still, and why a disk will have none."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from onestor_lib.agent.errors import InvalidInput, Missing
from onestor_lib.frontend import arguments, config, xml
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import recovery_pass, vms
from onestor_lib.frontend.services.recovery import Cloud, warn_of_no_copies

COPY = {"image": "5"}
FREQUENCY = "<RECOVERY_SNAPSHOT_FREQ>60</RECOVERY_SNAPSHOT_FREQ>"
ASKS = f"<DISK><DISK_ID>0</DISK_ID><IMAGE_ID>5</IMAGE_ID>{FREQUENCY}</DISK>"


def still_asks(
    disk: str = ASKS, state: str = "3", *, replicas: str = "r1", is_listed: bool = False
) -> bool:
    """Of disk.0 of VM 7; oned lists it, tells of it when it is asked, or ("") knows no such VM."""
    text = f"<VM><STATE>{state}</STATE><TEMPLATE>{disk}</TEMPLATE>"
    text += "<HISTORY_RECORDS><HISTORY><DS_ID>102</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
    vm = xml.parse(text.encode(), "VM 7")

    def ask(vm_id: int) -> xml.Element:
        if not state:
            raise Missing("ask oned", "no such VM")
        return vm

    settings = config.Settings(config.TM_ATTRIBUTES, {"REPLICA_HOST": replicas})
    cloud: Any = SimpleNamespace(
        vms={7: vm} if is_listed else {},
        client=SimpleNamespace(vm=ask),
        systems={"102": object()},
        settings_of=lambda system: settings,
    )
    return Cloud.still_asks(cloud, 7, "disk.0", COPY)


@pytest.mark.parametrize("is_listed", [True, False])
def test_of_a_vm_that_there_is(is_listed: bool) -> None:
    assert still_asks(is_listed=is_listed)


def test_of_a_vm_that_is_gone() -> None:
    assert not still_asks(state="")
    assert not still_asks(state="6")  # DONE


@pytest.mark.parametrize(
    "disk",
    [
        "",
        ASKS.replace("<DISK_ID>0", "<DISK_ID>1"),
        ASKS.replace("<IMAGE_ID>5", "<IMAGE_ID>6"),
        ASKS.replace(FREQUENCY, ""),
    ],
)
def test_of_another_disk(disk: str) -> None:
    assert not still_asks(disk, is_listed=True)


def test_of_a_datastore_without_replicas() -> None:
    """It was switched off there."""
    assert not still_asks(replicas="", is_listed=True)


@pytest.mark.parametrize("told", ["10", "0", ""])
def test_the_size_that_a_host_tells_of_a_copy_is_compared_with_oned_s(told: str) -> None:
    disk = xml.parse(f"<DISK><SIZE>{told}</SIZE></DISK>".encode(), "the disk")
    place = SimpleNamespace(host="host01")
    wanted: Any = SimpleNamespace(disk=SimpleNamespace(template=disk), place=place)
    recovery_pass._require_size(wanted, 11 << 20)
    if told == "10":
        with pytest.raises(InvalidInput, match="it has 1073741824 bytes, the disk 10485760"):
            recovery_pass._require_size(wanted, 1 << 30)


def warned(disk: str = ASKS, *, vm_mad: str = "kvm", replicas: str = "r1") -> str:
    """What is said when disk.0 of VM 7 is made on host01."""
    history = f"<HISTORY_RECORDS><HISTORY><VM_MAD>{vm_mad}</VM_MAD></HISTORY></HISTORY_RECORDS>"
    vm = xml.parse(f"<VM><TEMPLATE>{disk}</TEMPLATE>{history}</VM>".encode(), "VM 7")
    target = arguments.vm_path("host01:/var/lib/one/datastores/102/7/disk.0", 7)
    settings = config.Settings(config.TM_ATTRIBUTES, {"REPLICA_HOST": replicas})
    stderr = io.StringIO()
    log = Log("clone", stderr=stderr)
    warn_of_no_copies(vm, vms.template_of(vm, target), target, settings, log)
    return stderr.getvalue()


@pytest.mark.parametrize("vm_mad", ["kvm", "qemu", ""])
def test_G17_nothing_is_said_of_a_disk_that_will_have_copies(vm_mad: str) -> None:
    assert warned(vm_mad=vm_mad) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"disk": ASKS.replace("60", "hourly")},
            "RECOVERY_SNAPSHOT_FREQ is 'hourly', not a number",
        ),
        ({"replicas": "r1 -oProxyCommand=x"}, "'-oProxyCommand=x' is no host"),
        ({"replicas": ""}, "its system datastore has no REPLICA_HOST"),
        ({"replicas": "host01"}, "the only REPLICA_HOST is the VM's own host"),
        ({"vm_mad": "lxc"}, "no libvirt runs it"),
        ({"vm_mad": "lxc", "replicas": ""}, "no libvirt runs it"),
    ],
)
def test_G17_why_a_disk_will_have_no_copies(changed: dict[str, str], reason: str) -> None:
    said = warned(**changed)
    assert said.startswith("WARN: clone: VM 7 disk.0 gets no recovery copies: ")
    assert said.endswith(f"{reason}\n")


@pytest.mark.parametrize(
    "disk",
    [
        ASKS.replace(FREQUENCY, ""),
        ASKS.replace("60", "0"),
        ASKS.replace(FREQUENCY, f"{FREQUENCY}<READONLY>yes</READONLY>"),
        ASKS.replace(FREQUENCY, f"{FREQUENCY}<TYPE>swap</TYPE>"),
    ],
)
def test_nothing_is_said_of_a_disk_that_asks_for_none(disk: str) -> None:
    assert warned(disk, replicas="", vm_mad="lxc") == ""
