"""What oned knows of a VM and its disk, and putting an image in place as that disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    OnedUnavailable,
    Superseded,
)
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import transfer
from onestor_lib.frontend.services.hosts import Hosts

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
    attributes: dict[str, str]


def describe(vm: xml.Element, target: arguments.VmPath) -> Disk:
    """The disk that ``target`` is, from the VM's template; raises :class:`InvalidInput`."""
    step = "read the VM's template"
    if target.disk_id is None:
        return Disk("", "raw", 0, {})
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
        {name: disk.text(name) for name in ("SPARSE",)},
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

    def run(self, *, snapshots: bool) -> None:
        """Do it; ``snapshots`` brings the image's snapshots, too."""
        begin = time.monotonic()
        vm = self.oned.vm(self.vm_id)
        disk = describe(vm, self.target)
        settings = self._settings(disk)
        hosts = Hosts(settings, self.log)
        sequence = _sequence(vm)
        sparse = settings.yes("SPARSE")
        crashpoints.reach("frontend.decided")
        sent = 0

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            nonlocal sent
            if question["ask"] == "wanted":
                self._require_wanted(sequence)
                return {}
            item = str(question["item"])
            sent += transfer.bring(
                hosts,
                origin,
                self.source.path if item == "disk" else f"{self.source.path}.snap/{item}",
                host=host.host,
                temporary=str(question["temporary"]),
                sparse=sparse,
            )
            crashpoints.reach("frontend.sent")
            return {}

        with hosts.agent(self.source.host, sends=True) as origin:
            facts = self._facts(origin, disk, snapshots)
            with hosts.agent(self.target.host) as host:
                host.call(
                    "disk.place",
                    on_ask=answer,
                    path=self.target.path,
                    image_format=disk.image_format,
                    source=facts,
                    grow_to=disk.grow_to,
                    sparse=sparse,
                    check_space=settings.yes("CHECK_FREE_SPACE"),
                    record={
                        "action": self.action,
                        "vm": self.vm_id,
                        "image": disk.image_id,
                        "sequence": sequence,
                    },
                    retry=vm.text("LCM_STATE") == PROLOG,
                    lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
                    convert_timeout=settings.seconds("CONVERT_TIMEOUT"),
                )
                crashpoints.reach("frontend.placed")
        image = f"image {disk.image_id}" if disk.image_id else self.source.path
        self.log.info(
            f"VM {self.vm_id} {self.target.name} on {self.target.host} from {image}: "
            f"{sent / MB:.1f} MB sent, {time.monotonic() - begin:.2f} s"
        )

    def _settings(self, disk: Disk) -> Settings:
        """The disk's attributes over the image datastore's over the configuration file."""
        template = self.oned.datastore(self.datastore_id)
        names = self.configured.template_names()
        values = {name: template.text(f"TEMPLATE/{name}") for name in names}
        if template.text("TEMPLATE/BRIDGE_LIST"):
            raise InvalidInput(
                "read the datastore's template",
                f"BRIDGE_LIST of datastore {self.datastore_id} is not supported yet",
            )
        settings = self.configured.over(values, f"datastore {self.datastore_id}")
        return settings.over(disk.attributes, f"{self.target.name} of VM {self.vm_id}")

    def _facts(self, origin: AgentClient, disk: Disk, snapshots: bool) -> dict[str, Any]:
        facts: dict[str, Any] = origin.call(
            "image.describe",
            path=self.source.path,
            image_format=disk.image_format,
            snapshots=snapshots,
        )
        return facts

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


def _sequence(vm: xml.Element) -> str:
    return vm.text("HISTORY_RECORDS/HISTORY[last()]/SEQ")


def is_given_up(vm: xml.Element) -> bool:
    """Whether nobody will want a copy of this VM's files on the front-end any more."""
    if vm.text("STATE") in (DONE, STOPPED, UNDEPLOYED):
        return True
    return vm.text("LCM_STATE") in (CLEANUP_DELETE, CLEANUP_RESUBMIT)
