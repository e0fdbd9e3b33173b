"""A system datastore of OpenNebula's ssh driver becomes onestor's, with the VMs that are on it.

oned has the name of the driver in three places. The datastore's is what the next history record of
a VM begins with: at a deployment, a resumption after stop or undeploy, a migration to another
host. The last record's is the driver of the VM's directory. Each disk's is that of its image
datastore when the disk was made, and stays for the disk's whole life. At a deployment oned wants
each disk's driver to be the datastore's, unless the disk's own datastore (of a volatile disk the
system datastore) says how its disks get along with that: see ``MODE``. Without it, no VM that is
stopped now could be resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from onestor_lib.agent import errors
from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed, OnestorError
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, oned, parallel, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import recovery, vms
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts

FORMER = "ssh"  # the driver whose datastores can be adopted


def mode(driver: str) -> dict[str, str]:
    """What a datastore says of its disks, of another driver, on a datastore of ``driver``."""
    names = {"CLONE_TARGET": "SYSTEM", "LN_TARGET": "SYSTEM", "DISK_TYPE": "FILE"}
    return {f"{name}_{driver.upper()}": value for name, value in names.items()}


MODE = mode(DRIVER)
_IMAGES, _SYSTEM = "0", "1"  # types of datastores
_STEP = "adopt datastore"
_STATES = {
    vms.ACTIVE: "running",
    vms.STOPPED: "stopped",
    "5": "suspended",
    "8": "powered off",
    vms.UNDEPLOYED: "undeployed",
}


@dataclass(frozen=True)
class Placed:
    """A VM that has files in the datastore, and where: "" is the front-end."""

    vm: xml.Element
    vm_id: int
    host: str
    path: str
    state: str

    def __str__(self) -> str:
        return f"VM {self.vm_id} on {self.host or 'the front-end'}"


@dataclass
class Report:
    """What is said on the way."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def ok(self, text: str) -> None:
        self.lines.append(errors.one_line(f"ok: {text}"))

    def problem(self, text: str) -> None:
        self.lines.append(errors.one_line(f"problem: {text}"))
        self.problems += 1


class Adoption:
    """One datastore, by id or name; :meth:`run` is all of it."""

    def __init__(self, request: Request, word: str) -> None:
        self._request = request
        self._client = oned.Client()
        self._datastores = self._client.datastores().all("DATASTORE")
        self._datastore = self._find(word)
        self._id = self._datastore.text("ID")
        self._name = _named(self._datastore)
        self.report = Report()

    def run(self, dry_run: bool) -> Report:
        """Look at everything, and change the datastore unless there is a problem.

        Raises :class:`OnestorError` when it is none that could be adopted, or oned refuses.
        """
        is_ours = self._require_adoptable()
        placed = [*self._placed()]
        if is_ours:
            self.report.ok(f"{self._name} has TM_MAD={DRIVER} already")
        else:
            self.report.ok(f"{self._name} is a system datastore with TM_MAD={FORMER}, not shared")
            self._check_states(placed)
            self._check_modes(placed)
            self._check_disks(placed)
        if self.report.problems:
            return self.report
        self._change(dry_run)
        self.report.lines += [*self._left(placed)]
        return self.report

    # -- what there is

    def _find(self, word: str) -> xml.Element:
        key = "ID" if word.isascii() and word.isdigit() else "NAME"
        found = [each for each in self._datastores if each.text(key) == word]
        if not found:
            raise Missing(_STEP, f"oned knows no datastore {word!r}")
        if len(found) > 1:  # of different owners
            ids = ", ".join(each.text("ID") for each in found)
            raise InvalidInput(_STEP, f"{word!r} is the name of {ids}; give the id")
        return found[0]

    def _require_adoptable(self) -> bool:
        """Whether it is ours already; raises :class:`NotAllowed`."""
        driver = self._datastore.text("TM_MAD")
        if self._datastore.text("TYPE") != _SYSTEM:
            raise NotAllowed(_STEP, f"{self._name} is no system datastore")
        if driver not in (FORMER, DRIVER):
            raise NotAllowed(_STEP, f"{self._name} has TM_MAD={driver}, not {FORMER}")
        shared = self._datastore.text("TEMPLATE/SHARED")
        if shared.upper() != "NO":
            raise NotAllowed(_STEP, f"{self._name} has SHARED={shared or 'unset'}, not NO")
        return driver == DRIVER

    def _placed(self) -> Iterator[Placed]:
        for vm in self._client.vms().all("VM"):
            record = "HISTORY_RECORDS/HISTORY[last()]"
            state = vm.text("STATE")
            if vm.text(f"{record}/DS_ID") != self._id or state in vms.UNPLACED:
                continue
            vm_id = arguments.number(vm.text("ID"), "the VM's id")
            is_here = state in (vms.STOPPED, vms.UNDEPLOYED)
            host = "" if is_here else arguments.host(vm.text(f"{record}/HOSTNAME"))
            base = self._datastore.text("BASE_PATH")
            path = arguments.checked_path(f"{base}/{vm_id}")
            yield Placed(vm, vm_id, host, path, _STATES.get(state, f"in state {state}"))

    # -- what must be right

    def _check_states(self, placed: list[Placed]) -> None:
        """What is going on was begun with the one driver and would end with the other."""
        for each in placed:
            lcm_state = each.vm.text("LCM_STATE")
            active = each.vm.text("STATE") == vms.ACTIVE
            if active and lcm_state not in (vms.RUNNING, vms.UNKNOWN):
                cause = f"an action is going on or has failed (LCM_STATE {lcm_state})"
                self.report.problem(f"{each}: {cause}; mend: wait for it, or onevm recover")

    def _check_modes(self, placed: list[Placed]) -> None:
        """Disks of other drivers go on as they do only where these know of us."""
        for each in placed:
            for disk in each.vm.all("TEMPLATE/DISK"):
                driver = disk.text("TM_MAD")
                if driver in ("", FORMER, DRIVER):
                    continue
                datastore = self._by_id(disk.text("DATASTORE_ID"))
                if datastore is None or not has_mode(datastore):
                    cause = f"disk.{disk.text('DISK_ID')} is of {driver}, whose datastore"
                    mend = f"{' '.join(MODE)} in its template, TM_MAD_SYSTEM in oned.conf"
                    self.report.problem(f"{each}: {cause} does not know {DRIVER}; mend: {mend}")

    def _check_disks(self, placed: list[Placed]) -> None:
        by_host: dict[str, list[Placed]] = {}
        for each in placed:
            by_host.setdefault(each.host, []).append(each)
        settings = self._settings()
        answers, failed = parallel.ask(
            list(by_host), lambda host: self._look(settings, host, by_host[host])
        )
        for host, here in by_host.items():
            for is_good, text in answers.get(host, ()):
                (self.report.ok if is_good else self.report.problem)(text)
            if host in failed:
                names = ", ".join(str(each.vm_id) for each in here)
                mend = "mend: onestor must reach the host"
                self.report.problem(f"{failed[host]}; VMs there: {names}; {mend}")

    def _look(self, settings: Settings, host: str, placed: list[Placed]) -> list[tuple[bool, str]]:
        """A line for each VM of a host, and whether it is a good one."""
        hosts = Hosts(settings, copy.copy(self._request.log), patience=PATIENCE)
        found: list[tuple[bool, str]] = []
        with hosts.agent(host) if host else hosts.local_agent() as agent:
            for each in placed:
                disks = [*_disks(each.vm)]
                said = agent.call("directory.layouts", path=each.path, disks=disks)
                found += _judged(each, disks, said, agent.host)
        return found

    # -- what changes

    def _change(self, dry_run: bool) -> None:
        missing = {} if has_mode(self._datastore) else dict(MODE)
        if self._datastore.text("TM_MAD") != DRIVER:
            missing = {"TM_MAD": DRIVER, **missing}
        if not missing:
            return
        text = ", ".join(f"{name}={value}" for name, value in missing.items())
        if dry_run:
            self.report.lines.append(f"would be changed: {self._name}: {text}")
            return
        self._client.update_datastore(int(self._id), missing)
        now = self._datastore = self._client.datastore(int(self._id))
        if now.text("TM_MAD") != DRIVER or now.text("TEMPLATE/SHARED") != "NO":
            have = f"TM_MAD={now.text('TM_MAD')}, SHARED={now.text('TEMPLATE/SHARED')}"
            raise OnestorError(_STEP, f"oned has made {have} of {self._name}; look at oned.conf")
        self.report.lines.append(f"changed: {self._name}: {text}")

    # -- what is left to people

    def _left(self, placed: list[Placed]) -> Iterator[str]:
        for datastore in self._datastores:
            if attributes := self._missing_in(datastore, placed):
                yield f"left to do: image {_named(datastore)}, as oneadmin:"
                yield f"  {_update(datastore.text('ID'), attributes)}"
        former = [each for each in placed if _record_driver(each.vm) == FORMER]
        if former:
            numbers = " ".join(str(each.vm_id) for each in former)
            yield f"left to do: VMs {numbers} stay with {FORMER} until they are placed anew"
            yield (
                "  by onevm migrate [--live] to another host, without naming a datastore, or by"
                " stop or undeploy and resume; until then all that concerns their directories is"
                f" done by {FORMER}"
            )
        if any(disk.text("TM_MAD") == FORMER for each in placed for disk in _all_disks(each)):
            yield (
                f"note: disks that are there now stay with {FORMER} as long as they exist: their"
                f" snapshots, saves and sizes are its work, so {FORMER} must stay in oned.conf"
            )
        asking = [each for each in former if any(map(recovery.asks, _all_disks(each)))]
        if asking:
            numbers = " ".join(str(each.vm_id) for each in asking)
            yield (
                f"note: VMs {numbers} ask for recovery copies ({recovery.ATTRIBUTE}): those of"
                f" {FORMER} end on a host when {DRIVER} has placed the first VM there, those of"
                f" {DRIVER} begin when the VM is placed anew"
            )
        yield "left to do: onehost sync -f, as oneadmin, if the hosts have not got onestor yet"
        yield f"to go back, as long as {DRIVER} has made no disk there, as oneadmin:"
        yield f"  {_update(self._id, {'TM_MAD': FORMER, **mode(FORMER)})}"

    def _missing_in(self, datastore: xml.Element, placed: list[Placed]) -> dict[str, str]:
        """What an image datastore of the same clusters lacks for VMs to be deployed here."""
        number = datastore.text("ID")
        drivers = {
            disk.text("TM_MAD")
            for each in placed
            for disk in _all_disks(each)
            if disk.text("DATASTORE_ID") == number
        }
        clusters = {each.text(".") for each in datastore.all("CLUSTERS/ID")}
        near = clusters & {each.text(".") for each in self._datastore.all("CLUSTERS/ID")}
        driver = datastore.text("TM_MAD")
        if datastore.text("TYPE") != _IMAGES or not (near or drivers):
            return {}
        lacks = {} if has_mode(datastore) else MODE
        if driver == FORMER:
            source = {"DS_MAD": DRIVER} if datastore.text("DS_MAD") == "fs" else {}
            return {**source, "TM_MAD": DRIVER, **lacks}
        return lacks if driver == DRIVER and FORMER in drivers else {}

    def _settings(self) -> Settings:
        datastore = self._datastore
        return self._request.settings.over(
            "system", lambda name: datastore.text(f"TEMPLATE/{name}"), self._name
        )

    def _by_id(self, number: str) -> xml.Element | None:
        return next((each for each in self._datastores if each.text("ID") == number), None)


def has_mode(datastore: xml.Element) -> bool:
    """Whether oned deploys disks of this datastore that were made by another driver."""
    return all(datastore.text(f"TEMPLATE/{name}") for name in MODE)


def _named(datastore: xml.Element) -> str:
    return errors.one_line(f"datastore {datastore.text('ID')} ({datastore.text('NAME')})")


def _update(number: str, attributes: dict[str, str]) -> str:
    """The command that sets attributes of a datastore and leaves the others."""
    lines = "".join(f"{name}={value}\\n" for name, value in attributes.items())
    return f"printf '{lines}' >{number}.ds && onedatastore update {number} {number}.ds --append"


def _record_driver(vm: xml.Element) -> str:
    return vm.text("HISTORY_RECORDS/HISTORY[last()]/TM_MAD")


def _all_disks(placed: Placed) -> list[xml.Element]:
    return placed.vm.all("TEMPLATE/DISK")


def _disks(vm: xml.Element) -> Iterator[dict[str, Any]]:
    """The disks in the VM's directory as ``directory.layouts`` is asked for them."""
    own = vms.own_disks(vm)
    for disk in vm.all("TEMPLATE/DISK"):
        number = disk.text("DISK_ID")
        if f"disk.{number}" not in own:
            continue
        snapshots = [
            arguments.number(snapshot.text("ID"), "the snapshot's id")
            for of_disk in vm.all("SNAPSHOTS")
            if of_disk.text("DISK_ID") == number
            for snapshot in of_disk.all("SNAPSHOT")
        ]
        yield {
            "name": f"disk.{number}",
            "format": "qcow2" if vms.format_of(disk) == "qcow2" else "raw",
            "snapshots": snapshots,
        }


def _judged(
    placed: Placed, disks: list[dict[str, Any]], said: list[dict[str, Any]], host: str
) -> Iterator[tuple[bool, str]]:
    if [answer.get("name") for answer in said] != [disk["name"] for disk in disks]:
        raise OnestorError("look at the disks", "the answer is not about them", host=host)
    good = []
    for disk, answer in zip(disks, said):
        if "error" in answer:
            error = errors.from_json(answer["error"], host=host)
            yield False, f"{placed}: {error}; mend: look at the disk, its layout is not known"
            continue
        count = len(disk["snapshots"])
        more = f" with {count} snapshot{'s' if count > 1 else ''}" if count else ""
        good.append(f"{disk['name']} {answer['layout']}{more}")
    if len(good) == len(disks):
        yield True, f"{placed}, {placed.state}: {', '.join(good) or 'no disk here'}"
