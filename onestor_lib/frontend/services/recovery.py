"""Recovery copies: which disks ask for one, and where theirs lie.

A disk asks by RECOVERY_SNAPSHOT_FREQ in its template, in seconds; copies lie on the REPLICA_HOSTs
of its system datastore. What is kept there is all the state there is: when a disk was copied
last, and what it had written by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onestor_lib.agent.errors import Missing, OnestorError
from onestor_lib.agent.recovery import AGE_UNKNOWN
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, oned, state, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import domains, systems, vms
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts

ATTRIBUTE = "RECOVERY_SNAPSHOT_FREQ"
_AHEAD = 60.0  # seconds; a clock may be set right while copies are made
_NOTHING_TO_LOSE = ("CDROM", "SWAP")  # types of disks
_OWN_HOST = "the only REPLICA_HOST is the VM's own host"
_NO_REPLICA = "its system datastore has no REPLICA_HOST"


def is_ahead(point: int, now: float) -> bool:
    """Whether a copy's moment (milliseconds) is in the future: the clock was set back meanwhile.

    ``now`` is in seconds since 1970.
    """
    return point / 1000 > now + _AHEAD


def youth(point: int, now: float) -> tuple[bool, int]:
    """What copies are ordered by, all by one ``now``: what is younger is larger.

    Whatever was copied since the clock was set back is younger than what is "in the future", or was
    until its name said that its age is not known.
    """
    return point != AGE_UNKNOWN and not is_ahead(point, now), point


@dataclass(frozen=True)
class Wanted:
    """A disk that asks for a copy, of a VM that runs."""

    vm: xml.Element
    place: arguments.VmPath
    disk: vms.Disk
    frequency: int  # seconds
    replicas: tuple[str, ...]  # in the order of REPLICA_HOST, without the VM's own host
    why_not: str  # when there is none
    settings: Settings

    @property
    def key(self) -> tuple[int, str]:
        return self.place.vm_id, self.place.name


class Cloud:
    """All that oned knows of recovery copies, in one look."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.client = oned.Client()
        self.vms = {int(vm.text("ID")): vm for vm in self.client.vms().all("VM")}
        self.systems = {
            datastore.text("ID"): datastore
            # Other drivers' replicas are none of ours.
            for datastore in systems.of_onestor(self.client.datastores().all("DATASTORE"))
        }

    def settings_of(self, datastore: xml.Element) -> Settings:
        return systems.settings_over(self._request.settings, datastore)

    def replicas(self) -> dict[str, Settings]:
        """All replica hosts, each with the settings of a datastore that names it.

        One that no datastore names any more is among them as long as it may have copies.
        """
        found: dict[str, Settings] = {}
        for datastore in self.systems.values():
            with contextlib.suppress(OnestorError):
                settings = self.settings_of(datastore)
                for replica in replicas_of(settings):
                    found.setdefault(replica, settings)
        for replica in state.replicas():
            with contextlib.suppress(OnestorError):
                found.setdefault(arguments.host(replica), self._request.settings)
        return found

    def wanted(self) -> Iterator[Wanted]:
        """Every disk that asks for copies and can be copied now."""
        for vm in self.vms.values():
            record = "HISTORY_RECORDS/HISTORY[last()]"
            if not can_be_copied(vm, vm.text(f"{record}/HOSTNAME")):
                continue
            system = self.systems.get(vm.text(f"{record}/DS_ID"))
            if system is None or vm.text(f"{record}/TM_MAD") != DRIVER:
                continue
            for disk in vm.all("TEMPLATE/DISK"):
                if asks(disk):
                    yield from self._wanted(vm, disk, system, vm.text(f"{record}/HOSTNAME"))

    def _wanted(
        self, vm: xml.Element, disk: xml.Element, system: xml.Element, host: str
    ) -> Iterator[Wanted]:
        vm_id = int(vm.text("ID"))
        name = f"disk.{disk.text('DISK_ID')}"
        try:
            frequency = frequency_of(disk)
            if not frequency:
                return
            settings = self.settings_of(system)
            replicas, why_not = usable(settings, host)
            directory = f"{system.text('BASE_PATH')}/{vm_id}"
            place = arguments.vm_path(f"{host}:{directory}/{name}", vm_id)
            described = vms.describe(vm, place)
            yield Wanted(vm, place, described, frequency, replicas, why_not, settings)
        except OnestorError as error:
            self._request.log.warn(f"VM {vm_id} {name} gets no recovery copies: {error}")

    def still_asks(self, vm_id: int, disk: str, record: dict[str, Any]) -> bool:
        """Whether a copy on a replica may still be of use, whatever state its VM is in."""
        vm = self.vms.get(vm_id)
        if vm is None:
            try:
                vm = self.client.vm(vm_id)
            except Missing:
                return False
            if vm.text("STATE") == vms.DONE:
                return False
        system = self.systems.get(vm.text("HISTORY_RECORDS/HISTORY[last()]/DS_ID"))
        # Switched off; a datastore with other replicas gets its own copies first, see the pass.
        if system is not None and not replicas_of(self.settings_of(system)):
            return False
        for each in vm.all("TEMPLATE/DISK"):
            if f"disk.{each.text('DISK_ID')}" == disk:
                return bool(frequency_of(each)) and each.text("IMAGE_ID") == record.get("image", "")
        return False


def asks(disk: xml.Element) -> bool:
    """Whether a disk shall have copies; what cannot be written to, and swap space, need none."""
    if disk.text("TYPE").upper() in _NOTHING_TO_LOSE or disk.text("READONLY").upper() == "YES":
        return False
    return disk.text(ATTRIBUTE).strip() not in ("", "0")


def frequency_of(disk: xml.Element) -> int:
    """How old its copy may be, in seconds, 0 for no copy; raises :class:`InvalidInput`."""
    return arguments.number(disk.text(ATTRIBUTE).strip(), ATTRIBUTE) if asks(disk) else 0


def replicas_of(settings: Settings) -> tuple[str, ...]:
    """The hosts in REPLICA_HOST; raises :class:`InvalidInput`."""
    return tuple(arguments.host(word) for word in dict.fromkeys(settings.words("REPLICA_HOST")))


def can_be_copied(vm: xml.Element, host: str) -> bool:
    """Whether a VM runs on ``host``, and nothing else is done with it."""
    there = vm.text("HISTORY_RECORDS/HISTORY[last()]/HOSTNAME")
    running = (vm.text("STATE"), vm.text("LCM_STATE")) == (vms.ACTIVE, vms.RUNNING)
    return running and there == host


def all_replicas(client: oned.Client, settings: Settings) -> list[str]:
    """All hosts that may have copies, those that ``settings`` name first."""
    names = list(replicas_of(settings))
    for datastore in systems.of_onestor(client.datastores().all("DATASTORE")):
        names += datastore.text("TEMPLATE/REPLICA_HOST").replace(",", " ").split()
    names += state.replicas()
    return [arguments.host(name) for name in dict.fromkeys(names)]


def usable(settings: Settings, host: str) -> tuple[tuple[str, ...], str]:
    """The replicas for the disks of a VM on ``host``; when there is none, why."""
    replicas = replicas_of(settings)
    found = tuple(replica for replica in replicas if replica != host)
    if found:
        return found, ""
    return found, _OWN_HOST if replicas else _NO_REPLICA


def copies_on(replica: str, settings: Settings, log: Log) -> list[dict[str, Any]]:
    """All copies there, as ``recovery.copies`` says; raises :class:`OnestorError`."""
    with Hosts(settings, log, patience=PATIENCE).agent(replica) as agent:
        found: list[dict[str, Any]] = agent.call("recovery.copies", root=root(settings))
    return found


def warn_of_no_copies(
    vm: xml.Element, disk: vms.Disk, target: arguments.VmPath, settings: Settings, log: Log
) -> None:
    """Say once, when the disk is made, that it will have no copies though it asks (failure G17)."""
    if disk.template is None or not asks(disk.template):
        return
    try:
        frequency_of(disk.template)
        _, why = usable(settings, target.host)
    except OnestorError as error:
        why = str(error)
    if vm.text("HISTORY_RECORDS/HISTORY[last()]/VM_MAD") not in ("", *domains.LIBVIRT):
        why = "no libvirt runs it"
    if why:
        log.warn(f"VM {target.vm_id} {target.name} gets no recovery copies: {why}")


def root(settings: Settings) -> str:
    """Where copies lie on replica hosts."""
    return str(settings.path("REPLICA_RECOVERY_SNAPS_DIR"))
