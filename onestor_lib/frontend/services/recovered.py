"""The recovery copy that the disk of a VM is made from when its host has died.

Only during a real recreate (``onevm recover --recreate``) of the same VM, and only a copy of the
same disk with the same image; whatever else asks for a disk does not look for copies (failure G3).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable, Missing, OnestorError
from onestor_lib.agent.recovery import AGE_UNKNOWN
from onestor_lib.frontend import oned, xml
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.services import recovery, tombstones, transfer, vms
from onestor_lib.frontend.services.hosts import Hosts

ITEMS = ("recovered", "recovered base")
_DELETE_RECREATE = "14"  # what ended the placement before (contract section 2.5)
_STEP = "look for a recovery copy"


def is_recreated(vm: xml.Element) -> bool:
    """Whether the VM is being placed anew after ``onevm recover --recreate``.

    What comes later in this placement, such as a disk that is attached, is no recreate.
    """
    ended = vm.text("HISTORY_RECORDS/HISTORY[last()-1]/ACTION")
    return ended == _DELETE_RECREATE and vm.text("LCM_STATE") == vms.PROLOG


def is_recreating(vm: xml.Element) -> bool:
    """Whether the VM is being deleted for that."""
    return vm.text("HISTORY_RECORDS/HISTORY[last()]/ACTION") == _DELETE_RECREATE


@dataclass
class Recovered:
    """A copy that is held on its replica."""

    agent: AgentClient
    held: dict[str, Any]
    copy: dict[str, Any]  # as ``recovery.describe`` says

    def facts(self) -> dict[str, Any]:
        """What the host is told, see ``onestor_lib.agent.new_disk.NewDisk.recover``."""
        return {
            "size": self.held["size"],
            "allocated": self.copy["allocated"],
            "base": self.copy["record"].get("base"),
        }

    def bring(self, hosts: Hosts, target: VmPath, question: dict[str, Any]) -> dict[str, Any]:
        """Send what the host asks for, the copy or its base."""
        path = self.held.get("path" if question["item"] == ITEMS[0] else "base_path")
        if path is None:
            raise Missing(_STEP, "it has lost its base", path=self.held["path"])
        return transfer.bring(
            hosts, self.agent, path, host=target.host, version=None,
            temporary=vms.require_temporary(str(question["temporary"]), target),
            manifest="", reuse=False,
        )  # fmt: skip


@contextlib.contextmanager
def held(
    hosts: Hosts,
    client: oned.Client,
    vm: xml.Element,
    target: VmPath,
    disk: vms.Disk,
    version: dict[str, int] | None,
) -> Iterator[Recovered | None]:
    """The youngest copy of the disk on any replica, for the block; None when there is none.

    ``version`` is that of the disk's image now, None where there is no image. Raises
    :class:`HostUnreachable` when none is found and not every replica can be asked: a disk made from
    the image would lack what the guest has written, and nobody would notice.
    """
    if disk.template is None or not recovery.asks(disk.template) or not is_recreated(vm):
        yield None
        return
    found, failed = _copies(hosts, client, target)
    usable = [each for each in found if _is_of(each.copy, disk, version)]
    name = f"VM {target.vm_id} {target.name}"
    if failed and not usable:
        raise HostUnreachable(_STEP, "; ".join(failed), path=target.path)
    for failure in failed:
        hosts.log.warn(f"{failure}; it may have a younger recovery copy")
    if not usable:
        why = "of another image, or another version of it" if found else ""
        lack = f"the recovery copy is {why}" if why else "there is no recovery copy"
        hosts.log.warn(f"{name} does not come from a recovery copy: {lack}")
        yield None
        return
    now = time.time()
    youngest = max(usable, key=lambda each: recovery.youth(each.point, now))
    with hosts.agent(youngest.replica, sends=True) as agent:
        kept = agent.call(
            "recovery.hold",
            root=recovery.root(hosts.settings),
            vm=target.vm_id,
            disk=target.name,
        )
        copy = kept["copy"]
        if not _is_of(copy, disk, version):
            raise OnestorError(_STEP, "the copy was replaced by another disk's", path=target.path)
        point = int(copy["point"])
        age = "of unknown age" if point == AGE_UNKNOWN else f"{now - point / 1000:.0f} s old"
        hosts.log.info(f"{name} comes from the recovery copy on {youngest.replica}, {age}")
        yield Recovered(agent, kept, copy)


class _Found(NamedTuple):
    """A copy on a replica."""

    point: int
    replica: str
    copy: dict[str, Any]


def _copies(hosts: Hosts, client: oned.Client, target: VmPath) -> tuple[list[_Found], list[str]]:
    """The youngest copy of the disk on each replica, and why others do not answer.

    All replicas count, not only those of the datastore where the VM is now: its host has died, and
    so it may have come from another cluster.
    """
    root, doomed = recovery.root(hosts.settings), tombstones.of_copies()
    found, failed = [], []
    for replica in recovery.all_replicas(client, hosts.settings):
        if {(replica, target.vm_id, ""), (replica, target.vm_id, target.name)} & doomed:
            continue  # of an earlier disk of this name
        try:
            with hosts.agent(replica) as agent:
                copy = agent.call("recovery.describe", root=root, vm=target.vm_id, disk=target.name)
        except OnestorError as error:
            failed.append(str(error))
            continue
        if copy:
            found.append(_Found(int(copy["point"]), replica, copy))
    return found, failed


def _is_of(copy: dict[str, Any], disk: vms.Disk, version: dict[str, int] | None) -> bool:
    """Whether a copy is one of this disk, made from this version of its image.

    The version is not known of a disk that another driver has made. Which file it is does not
    count: the datastore may have been restored meanwhile.
    """
    record = copy["record"]
    if (record.get("image"), record.get("format")) != (disk.image_id, disk.image_format):
        return False
    known = record.get("version")
    if not known or not version:
        return True
    return all(known.get(what) == version[what] for what in ("size", "mtime_ns"))
