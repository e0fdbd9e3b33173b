"""What oned knows of a VM, its disks and its datastores, and what that means for an action."""

from __future__ import annotations

import os
from dataclasses import dataclass

from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    NotAllowed,
    OnedUnavailable,
    Superseded,
)
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.publish import is_temporary
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import systems

# States of a VM (contract section 2.5): numbers are part of the contract (known failure L4).
ACTIVE, DONE = "3", "6"
UNPLACED = ("0", "1", "2", "10", "11")  # init, pending, hold, cloning and its failure
RUNNING, UNKNOWN = "3", "16"
PROLOG, EPILOG, CLEANUP_RESUBMIT, CLEANUP_DELETE = "1", "11", "15", "23"
GOING = (EPILOG, CLEANUP_RESUBMIT, CLEANUP_DELETE)
STOPPED, POWEROFF, UNDEPLOYED = "4", "8", "9"
HOTPLUG_SAVEAS = "26"
EPILOG_STOP, EPILOG_UNDEPLOY = "10", "30"
PROLOG_MIGRATE_UNKNOWN = ("60", "61")
DISK_RESIZE, DISK_RESIZE_UNDEPLOYED = "62", "64"
_SYSTEM = "SYSTEM"  # CLONE_TARGET, LN_TARGET: the disk lies in the system datastore


@dataclass(frozen=True)
class Disk:
    """One disk of a VM as oned describes it."""

    image_id: str  # "" for what is no image disk: kernel, initrd
    image_format: str
    grow_to: int  # bytes, 0: as large as the image
    template: xml.Element | None = None


def disk_path(word: str, vm_id: str) -> arguments.VmPath:
    """``word`` ("host:DIR/disk.i") when it is a file of the VM; raises :class:`InvalidInput`."""
    target = arguments.vm_path(word, arguments.number(vm_id, "the VM's id"))
    if not target.name:
        raise InvalidInput("read the arguments", f"{word!r} is no disk")
    return target


def template_of(vm: xml.Element, target: arguments.VmPath) -> Disk:
    """What the VM's template says of a disk that comes from no image."""
    for disk in vm.all("TEMPLATE/DISK"):
        if disk.text("DISK_ID") == str(target.disk_id):
            return Disk("", "raw", 0, disk)
    return Disk("", "raw", 0)


def record_of(
    action: str, vm: xml.Element, target: arguments.VmPath, image: str = ""
) -> dict[str, str | int]:
    """What is kept beside a disk of what put it there, see ``onestor_lib.agent.vm_directory``."""
    return {"action": action, "vm": target.vm_id, "image": image, "sequence": sequence(vm)}


def require_temporary(path: str, target: arguments.VmPath) -> str:
    """``path`` when it is a temporary beside ``target``; a host may ask for nothing else."""
    directory, name = os.path.split(path)
    if directory != os.path.dirname(target.path) or not is_temporary(name):
        cause = "the host asks for what it must not have"
        raise NotAllowed("bring content", cause, host=target.host, path=path)
    return path


def image_datastore(disk: Disk, given: int) -> int | None:
    """``given`` if the disk is of an image; oned gives the system datastore's id for others."""
    return given if disk.image_id else None


def describe(vm: xml.Element, target: arguments.VmPath) -> Disk:
    """The disk that ``target`` is, from the VM's template; raises :class:`InvalidInput`."""
    step = "read the VM's template"
    if target.disk_id is None:
        return Disk("", "raw", 0)
    for disk in vm.all("TEMPLATE/DISK"):
        if disk.text("DISK_ID") == str(target.disk_id):
            break
    else:
        raise Missing(step, f"VM {target.vm_id} has no disk {target.disk_id}")
    image_format = format_of(disk)
    if image_format not in FORMATS:
        raise InvalidInput(step, f"the disk's format is {image_format!r}, not raw or qcow2")
    size = arguments.number(disk.text("SIZE", "0"), "SIZE of the disk")
    original = arguments.number(disk.text("ORIGINAL_SIZE", "0"), "ORIGINAL_SIZE of the disk")
    return Disk(
        disk.text("IMAGE_ID"),
        image_format,
        size * MB if size > original > 0 else 0,
        disk,
    )


def format_of(disk: xml.Element) -> str:
    """The format of a disk by its template, whether or not it is one that we know."""
    if disk.text("TYPE").upper() == "CDROM":
        return "raw"
    return (disk.text("FORMAT") or disk.text("DRIVER") or "raw").lower()


def settings_of(
    configured: Settings,
    client: oned.Client,
    target: arguments.VmPath,
    *,
    image_datastore: int | None = None,
    disk: Disk | None = None,
) -> tuple[Settings, xml.Element | None]:
    """The settings with what the templates say, and the image datastore if there is one.

    The disk's template goes before the image datastore's, that before the system datastore's.
    """
    system_id = os.path.basename(target.datastore)
    system = client.datastore(int(system_id))
    settings = systems.settings_over(configured, system)
    image = None
    if image_datastore is not None:
        image = found = client.datastore(image_datastore)
        settings = settings.over(
            "image", lambda name: found.text(f"TEMPLATE/{name}"), f"datastore {image_datastore}"
        )
    if disk is not None and disk.template is not None:
        settings = settings.over("disk", disk.template.text, f"{target.name} of VM {target.vm_id}")
    return settings, image


def own_disks(vm: xml.Element) -> list[str]:
    """The files that must be in the VM's directory: disks that lie in the system datastore.

    The context is made anew at every start.
    """
    found = []
    for disk in vm.all("TEMPLATE/DISK"):
        if disk.text("TYPE").upper() == "FILESYSTEM":
            continue
        is_copy = disk.text("CLONE", "YES").upper() != "NO"
        target = disk.text("CLONE_TARGET" if is_copy else "LN_TARGET", _SYSTEM)
        if target.upper() == _SYSTEM or not disk.text("IMAGE_ID"):
            found.append(f"disk.{arguments.number(disk.text('DISK_ID'), 'DISK_ID')}")
    return found


def sequence(vm: xml.Element) -> str:
    """Which placement of the VM this is: another one has another number."""
    return vm.text("HISTORY_RECORDS/HISTORY[last()]/SEQ")


def require_wanted(
    client: oned.Client,
    vm_id: int,
    known_sequence: str,
    log: Log,
    *,
    step: str = "put the disk in place",
) -> None:
    """Raise :class:`Superseded` when oned has given this VM up or placed it anew.

    A cancelled action is not killed, and the delete that follows may find nothing yet to
    delete (contract section 8, trap 8). When oned cannot be asked the disk is kept.
    """
    try:
        vm = client.vm(vm_id)
    except Missing as error:
        raise Superseded(step, error.cause) from error
    except OnedUnavailable as error:
        log.warn(f"{error}; the VM counts as wanted still")
        return
    if vm.text("STATE") == DONE or vm.text("LCM_STATE") in (CLEANUP_DELETE, CLEANUP_RESUBMIT):
        raise Superseded(step, f"VM {vm_id} is being deleted")
    if sequence(vm) != known_sequence:
        raise Superseded(step, f"VM {vm_id} was deployed anew meanwhile")


def is_given_up(vm: xml.Element) -> bool:
    """Whether nobody will want a copy of this VM's files on the front-end any more."""
    if vm.text("STATE") in (DONE, STOPPED, UNDEPLOYED):
        return True
    return vm.text("LCM_STATE") in (CLEANUP_DELETE, CLEANUP_RESUBMIT)
