"""What oned knows of a VM and its disk, and putting an image in place as that disk."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    OnedUnavailable,
    Superseded,
)
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, qcow2_options, xml
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import bridges
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.origin import Origin
from onestor_lib.frontend.services.supply import Supply

# States of a VM (contract section 2.5): numbers are part of the contract (known failure L4).
DONE = "6"
PROLOG, CLEANUP_RESUBMIT, CLEANUP_DELETE = "1", "15", "23"
STOPPED, UNDEPLOYED = "4", "9"


@dataclass(frozen=True)
class Disk:
    """One disk of a VM as oned describes it."""

    image_id: str  # "" for what is no image disk: kernel, initrd
    image_format: str
    grow_to: int  # bytes, 0: as large as the image
    template: xml.Element | None = None


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
    image_format = (disk.text("FORMAT") or disk.text("DRIVER") or "raw").lower()
    if disk.text("TYPE").upper() == "CDROM":
        image_format = "raw"
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


class Placement:
    """One ``clone`` or ``ln``: an image becomes ``disk.N`` of a VM on a host."""

    def __init__(self, action: str, argv: list[str], settings: Settings, log: Log) -> None:
        words = arguments.words(argv, "fe:SOURCE host:DIR/disk.i vmid dsid")
        self.action = action
        self.vm_id = arguments.number(words[2], "the VM's id")
        self.datastore_id = arguments.number(words[3], "the datastore's id")
        self.source = arguments.location(words[0])
        self.target = arguments.vm_path(words[1], self.vm_id)
        if not self.target.name:
            raise InvalidInput("read the arguments", f"{words[1]!r} is no disk")
        self.oned = oned.Client()
        self.configured = settings
        self.log = log

    def run(self, *, persistent: bool) -> None:
        """Do it; a ``persistent`` image comes with its snapshots and goes past every cache.

        It is used by one VM and has other content afterwards (known failure A15).
        """
        begin = time.monotonic()
        vm = self.oned.vm(self.vm_id)
        disk = describe(vm, self.target)
        settings, bridge_hosts = self._settings(disk)
        hosts = Hosts(settings, self.log)
        sequence = _sequence(vm)
        crashpoints.reach("frontend.decided")
        with Origin(hosts, self.source, bridge_hosts) as origin:
            facts = origin.describe(disk.image_format, snapshots=persistent)
            supply = Supply(
                hosts,
                self.oned,
                origin,
                self.target,
                facts,
                purpose=f"{self.action} of {self._image(disk)} for VM {self.vm_id}",
                use_replica=not persistent,
            )

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                if question["ask"] != "wanted":
                    return supply.answer(question)
                self._require_wanted(sequence)
                return {}

            shape = _shape(disk, settings, standalone=persistent, bulk=hosts.bulk_priority())
            with hosts.agent(self.target.host) as host:
                placed = host.call(
                    "disk.place",
                    on_ask=answer,
                    path=self.target.path,
                    shape=shape,
                    source=facts,
                    image=None if persistent else supply.cached(),
                    check_space=settings.yes("CHECK_FREE_SPACE"),
                    record={
                        "action": self.action,
                        "vm": self.vm_id,
                        "image": disk.image_id,
                        "sequence": sequence,
                    },
                    retry=vm.text("LCM_STATE") == PROLOG,
                    lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
                )
                crashpoints.reach("frontend.placed")
        way = f" from {', '.join(supply.way)}" if supply.way else ""
        self.log.info(
            f"VM {self.vm_id} {self.target.name} on {self.target.host} of {self._image(disk)}: "
            f"cache {placed['cache']}, {supply.sent / MB:.1f} MB sent{way}, "
            f"{time.monotonic() - begin:.2f} s"
        )

    def _image(self, disk: Disk) -> str:
        return f"image {disk.image_id}" if disk.image_id else self.source.path

    def _settings(self, disk: Disk) -> tuple[Settings, list[str]]:
        """The settings with what the templates say, and the bridge hosts of the image datastore.

        The disk's template goes before the image datastore's, that before the system datastore's.
        """
        system_id = os.path.basename(self.target.datastore)
        system = self.oned.datastore(int(system_id))
        image = self.oned.datastore(self.datastore_id)
        settings = self.configured.over(
            "system", lambda name: system.text(f"TEMPLATE/{name}"), f"datastore {system_id}"
        ).over(
            "image", lambda name: image.text(f"TEMPLATE/{name}"), f"datastore {self.datastore_id}"
        )
        if disk.template is not None:
            settings = settings.over(
                "disk", disk.template.text, f"{self.target.name} of VM {self.vm_id}"
            )
        return settings, bridges.parse(image.text("TEMPLATE/BRIDGE_LIST"))

    def _require_wanted(self, sequence: str) -> None:
        """Raise :class:`Superseded` when oned has given this VM up or placed it anew.

        A cancelled action is not killed, and the delete that follows may find nothing yet to
        delete (contract section 8, trap 8). When oned cannot be asked the disk is kept.
        """
        step = "put the disk in place"
        try:
            vm = self.oned.vm(self.vm_id)
        except Missing as error:
            raise Superseded(step, error.cause) from error
        except OnedUnavailable as error:
            self.log.warn(f"{error}; the disk is kept")
            return
        if vm.text("STATE") == DONE or vm.text("LCM_STATE") in (CLEANUP_DELETE, CLEANUP_RESUBMIT):
            raise Superseded(step, f"VM {self.vm_id} is being deleted")
        if _sequence(vm) != sequence:
            raise Superseded(step, f"VM {self.vm_id} was deployed anew meanwhile")


def _shape(
    disk: Disk, settings: Settings, *, standalone: bool, bulk: dict[str, Any]
) -> dict[str, Any]:
    """How the disk shall be, see :class:`onestor_lib.agent.operations.disk.Shape`."""
    sparse = settings.yes("SPARSE")
    is_qcow2 = disk.image_format == "qcow2"
    thin = is_qcow2 and sparse and not standalone and not settings.yes("QCOW2_STANDALONE")
    return {
        "image_format": disk.image_format,
        "thin": thin,
        "qcow2_options": qcow2_options.effective(settings) if is_qcow2 else [],
        "grow_to": disk.grow_to,
        "sparse": sparse,
        "convert_timeout": settings.seconds("CONVERT_TIMEOUT"),
        "bulk": bulk,
    }


def _sequence(vm: xml.Element) -> str:
    return vm.text("HISTORY_RECORDS/HISTORY[last()]/SEQ")


def is_given_up(vm: xml.Element) -> bool:
    """Whether nobody will want a copy of this VM's files on the front-end any more."""
    if vm.text("STATE") in (DONE, STOPPED, UNDEPLOYED):
        return True
    return vm.text("LCM_STATE") in (CLEANUP_DELETE, CLEANUP_RESUBMIT)
