"""Backups: OpenNebula's own scripts do the work, told of us in words they know (contract 6.4)."""

from __future__ import annotations

from typing import NoReturn

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.message import MAX_SIZE
from onestor_lib.frontend.services import scripts

KNOWN_DRIVER = "ssh"  # the driver whose layout of directories is ours for these scripts

_STEP = "read the VM"
_FEWEST = 4  # words of 6.6, less an empty one in the middle, lost on the way (trap 18)


def hand_over(request: Request) -> NoReturn:
    """Become OpenNebula's script of this name; the VM is on stdin, as plain XML.

    It must be the script's own process: OpenNebula cancels a backup by looking for that.
    """
    step = f"hand over to {KNOWN_DRIVER}/{request.action}"
    if len(request.argv) < _FEWEST:
        raise InvalidInput(
            "read the arguments", "expected host:DIR disks deploy_id [job] vmid dsid"
        )
    text = request.stdin.read(MAX_SIZE + 1)
    vm = xml.parse(text, "the VM")
    if request.action.startswith("pre"):
        _require_possible(vm, _disks(request.argv))
    script = scripts.find(KNOWN_DRIVER, request.action, step)
    scripts.become(script, request.argv, renamed(vm), step)


def renamed(vm: xml.Element) -> bytes:
    """The VM with our disks under the name of a driver that the scripts know."""
    for disk in vm.all("TEMPLATE/DISK"):
        if disk.text("TM_MAD") == DRIVER:
            disk.set_text("TM_MAD", KNOWN_DRIVER)
    for record in vm.all("HISTORY_RECORDS/HISTORY"):
        if record.text("TM_MAD") == DRIVER:
            record.set_text("TM_MAD", KNOWN_DRIVER)
    return vm.to_text().encode("utf-8", "surrogateescape")


def _disks(argv: list[str]) -> list[str]:
    """The ids of the disks to back up; the list may end with a colon."""
    return [str(arguments.number(word, "a disk's id")) for word in argv[1].split(":") if word]


def _require_possible(vm: xml.Element, disks: list[str]) -> None:
    """Refuse increments of raw disks, which oned lets pass for drivers it does not know."""
    if vm.text("BACKUPS/BACKUP_CONFIG/MODE").upper() != "INCREMENT":
        return
    for disk in vm.all("TEMPLATE/DISK"):
        number = disk.text("DISK_ID")
        image_format = (disk.text("FORMAT") or disk.text("DRIVER")).lower()
        is_disk = disk.text("TYPE").upper() != "CDROM"  # lists before 7.4 have those, too
        if number in disks and is_disk and image_format == "raw":
            cause = f"disk {number} is raw: increments need qcow2, a full backup does not"
            raise InvalidInput("back up the VM", cause)
