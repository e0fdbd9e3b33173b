"""What has to be deleted on a machine that could not be reached: notes, and doing it later.

The host of a VM has died, and oned deletes the VM or places it anew; what the host has of it goes
when it is back (known failure G1). The same for what a replica keeps (G2).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from typing import Any

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable, Missing, NotAllowed, OnestorError
from onestor_lib.frontend import arguments, oned, state, xml
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import domains, vms
from onestor_lib.frontend.services.hosts import Hosts

_KIND = "tombstones"
DIRECTORY, DISK, COPIES = "directory", "disk", "copies"
# Of a host, as oned knows it (OpenNebula's host states): it does not count on it.
_ERROR, _MONITORING_ERROR, _OFFLINE = "3", "5", "8"
GIVEN_UP = (_ERROR, _MONITORING_ERROR, _OFFLINE)


def is_given_up(client: oned.Client, host: str) -> bool:
    """Whether oned itself counts a host as dead or off; what it does not say is no."""
    try:
        for each in client.hosts().all("HOST"):
            if each.text("NAME") == host:
                return each.text("STATE") in GIVEN_UP
    except OnestorError:
        return False
    return False


def for_place(place: VmPath, sequence: str) -> None:
    """Note that a VM's directory, or a disk, has to go; raises ``OSError``.

    ``sequence`` is the VM's placement so far (``vms.sequence``): a later one's disks are not meant.
    """
    what = DISK if place.name else DIRECTORY
    placement = int(sequence) if sequence.isdecimal() else sys.maxsize  # no VM: of any
    facts = {"what": what, "host": place.host, "path": place.path, "vm": place.vm_id}
    facts |= {"placement": placement, "at": time.time()}
    state.write(_name(place.host, place.path), facts)


def noted(place: VmPath) -> int | None:
    """Up to which placement of the VM it is that has to go there; None when nothing has to."""
    for known, facts in state.every(_KIND):
        if known == _name(place.host, place.path):
            return _placement(facts)
    return None


def forget(place: VmPath) -> None:
    """What is there is no more what was to go, a disk below it neither.

    Raises :class:`OnestorError`.
    """
    for known, facts in state.every(_KIND):
        is_below = f"{facts.get('path')}/".startswith(f"{place.path}/")
        if is_below and facts.get("host") == place.host and facts.get("what") != COPIES:
            state.remove(known)
    if noted(place) is not None:
        cause = "its note cannot be removed"
        raise OnestorError("forget what was to go", cause, host=place.host, path=place.path)


def clear(request: Request, client: oned.Client, vm: xml.Element, place: VmPath) -> None:
    """Delete now what has to go there: the VM is about to be started with what is found."""
    if (placement := noted(place)) is None:
        return
    settings = _settings(request, client, place)
    with Hosts(settings, request.log).agent(place.host) as agent:
        found = _examined(agent, vm, place, domains.of(vm, settings))
        if found["placement"] <= placement:
            if found["open"]:
                cause = "the VM still runs there"
                raise NotAllowed("clear the place", cause, host=place.host, path=place.path)
            agent.call("directory.delete", path=place.path)
    forget(place)


def for_copies(replica: str, root: str, vm_id: int, disk: str) -> None:
    """Note that recovery copies have to go; raises ``OSError``."""
    facts = {"what": COPIES, "host": replica, "path": root, "vm": vm_id, "disk": disk}
    state.write(_name_of_copies(replica, root, vm_id, disk), {**facts, "at": time.time()})


def drop_copies(replica: str, root: str, vm_id: int, disk: str, *, before: float) -> bool:
    """Forget that note, if it is older than ``before`` (time.time()): those copies are gone.

    False when there is a younger one: what was copied since is of a disk that is not wanted.
    """
    name = _name_of_copies(replica, root, vm_id, disk)
    for known, facts in state.every(_KIND):
        if known == name and float(facts.get("at", 0)) >= before:
            return False
    state.remove(name)
    return True


def of_copies() -> set[tuple[str, int, str]]:
    """The copies that have to go, and must not be used: replica, VM and disk."""
    found = set()
    for _, facts in state.every(_KIND):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if facts["what"] == COPIES:
                found.add((str(facts["host"]), int(facts["vm"]), str(facts["disk"])))
    return found


def sweep(request: Request) -> None:
    """Do what can be done now; the rest stays."""
    unreachable: set[str] = set()
    for name, facts in state.every(_KIND):
        host = str(facts.get("host"))
        if host in unreachable:
            continue
        try:
            if _settle(request, facts):
                state.remove(name)
        except HostUnreachable as error:
            unreachable.add(host)
            request.log.line("DEBUG", f"{name} stays: {error}")
        except OnestorError as error:
            request.log.warn(f"{name} stays: {error}")
        except (KeyError, TypeError, ValueError):
            request.log.warn(f"{state.file(name)} is damaged, and stays: look at it, and remove it")


def _settle(request: Request, facts: dict[str, Any]) -> bool:
    """Whether a note is of no use any more."""
    vm_id, path = int(facts["vm"]), str(facts["path"])
    host = arguments.host(str(facts["host"]))
    with Hosts(request.settings, request.log).agent(host) as agent:
        if facts["what"] == COPIES:
            agent.call("recovery.forget", root=path, vm=vm_id, disk=str(facts["disk"]))
            return True
        place = arguments.vm_path(f"{host}:{path}", vm_id)
        client = oned.Client()
        settled = _is_settled(request, agent, client, place, _placement(facts))
        if settled is None:
            return False
        if settled:
            return True
        agent.call("disk.delete" if place.name else "directory.delete", path=place.path)
    what = place.name or "directory"
    request.log.info(f"VM {vm_id} {what} on {host}, which was not reachable then, deleted")
    return True


def _is_settled(
    request: Request, agent: AgentClient, client: oned.Client, place: VmPath, placement: int
) -> bool | None:
    """Whether nothing has to go any more; None as long as that cannot be said.

    oned is asked again at the very end: the VM may come back there any time.
    """
    for last in (False, True):
        try:
            vm = client.vm(place.vm_id)
        except Missing:
            return False
        if vm.text("STATE") in vms.UNPLACED or _is_changing(vm):
            return None  # it may come from there, or be placed there the next moment
        lives = _lives_there(vm, place)
        if not last:
            settings = _settings(request, client, place)
            found = _examined(agent, vm, place, None if lives else domains.of(vm, settings))
            if found["placement"] > placement:
                return True  # made anew since, be it under another name of the machine
        if noted(place) is None:
            return True
        if _is_in_use(vm, place):
            if place.name or not 0 <= found["first"] <= placement:
                return True
            where = f"VM {place.vm_id} directory on {place.host}"
            request.log.warn(f"{where} is older than the VM, though oned has it there")
            return None
        if not last and not lives and found["open"]:
            request.log.warn(
                f"VM {place.vm_id} still runs on {place.host}, which oned had given up"
            )
            return None
    return False


def _settings(request: Request, client: oned.Client, place: VmPath) -> Settings:
    try:
        return vms.settings_of(request.settings, client, place)[0]
    except Missing:
        return request.settings  # its datastore is gone


def _examined(
    agent: AgentClient, vm: xml.Element, place: VmPath, domain: dict[str, str] | None
) -> dict[str, Any]:
    """See ``onestor_lib.agent.operations.directory.examine``."""
    disks = [] if place.name else vms.own_disks(vm)
    found: dict[str, Any] = agent.call(
        "directory.examine", path=place.path, marker="", disks=disks, domain=domain
    )
    return found


def _placement(facts: dict[str, Any]) -> int:
    return int(facts.get("placement", sys.maxsize))


def _lives_there(vm: xml.Element, place: VmPath) -> bool:
    record = "HISTORY_RECORDS/HISTORY[last()]"
    there = (vm.text(f"{record}/HOSTNAME"), vm.text(f"{record}/DS_ID"))
    same = there == (place.host, os.path.basename(place.datastore))
    return same and vm.text("STATE") != vms.DONE


def _is_in_use(vm: xml.Element, place: VmPath) -> bool:
    """Whether the VM lives there again, or has a disk of this name again."""
    ids = [disk.text("DISK_ID") for disk in vm.all("TEMPLATE/DISK")]
    return _lives_there(vm, place) and (not place.name or str(place.disk_id) in ids)


def _is_changing(vm: xml.Element) -> bool:
    """Whether an action on the VM is under way, or has failed: it may be on its way."""
    at_rest = (vms.RUNNING, vms.UNKNOWN)
    return vm.text("STATE") == vms.ACTIVE and vm.text("LCM_STATE") not in at_rest


def _name_of_copies(replica: str, root: str, vm_id: int, disk: str) -> str:
    return _name(replica, f"{root}/{vm_id}/{disk}")


def _name(host: str, path: str) -> str:
    return f"{_KIND}/" + re.sub(r"[^\w.-]", "_", f"{host}{path}")
