"""tm delete: remove a disk, or a VM's whole directory (contract section 2.4)."""

from __future__ import annotations

import os

from onestor_lib.agent.errors import HostUnreachable, Missing, OnestorError
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import forgetting, kept, recovered, tombstones, vms
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.vms import GOING, is_given_up


def run(request: Request) -> None:
    """``delete host:DIR[/disk.i] vmid dsid``; what is not there is deleted already."""
    words = arguments.words(request.argv, "host:DIR[/disk.i] vmid dsid")
    vm_id = arguments.number(words[1], "the VM's id")
    arguments.number(words[2], "the datastore's id")
    target = arguments.vm_path(words[0], vm_id)
    hosts = Hosts(request.settings, request.log)
    told, target = target, kept.located(hosts, target)
    if not target.name and not hosts.is_here(target.host):
        _delete_copy_here(request, hosts, target)  # first: the host may be dead
    _delete(request, hosts, target)
    # Behind it: whoever has copied the disk until now finds that it is gone (known failure G3).
    forgetting.forget(request, target)
    if told != target and not target.name:
        kept.forget(told)


def _delete(request: Request, hosts: Hosts, target: arguments.VmPath) -> None:
    client = oned.Client()
    if target.name and _is_going(client, target) and tombstones.is_given_up(client, target.host):
        request.log.warn(f"{target.host} is given up: what is there goes when it is back")
        return  # the line for the directory, the last one, looks whether it answers
    try:
        with hosts.agent(target.host) as host:
            operation = "disk.delete" if target.name else "directory.delete"
            removed = host.call(operation, path=target.path)["removed"]
    except HostUnreachable as error:
        _leave_note(request, client, target, error)
        return
    what = target.name or "directory"
    done = "deleted" if removed else "was not there"
    request.log.info(f"VM {target.vm_id} {what} on {target.host} {done}")


def _is_going(client: oned.Client, target: arguments.VmPath) -> bool:
    """Whether all of the VM is being deleted, not one disk detached."""
    try:
        return client.vm(target.vm_id).text("LCM_STATE") in GOING
    except OnestorError:
        return False


def _is_recreating(client: oned.Client, target: arguments.VmPath) -> bool:
    try:
        return recovered.is_recreating(client.vm(target.vm_id))
    except OnestorError:
        return False


def _delete_copy_here(request: Request, hosts: Hosts, target: arguments.VmPath) -> None:
    """Remove the front-end's copy of a stopped or undeployed VM that is deleted.

    oned names the last host then, though the files are here (contract section 8, trap 17).
    """
    if not os.path.isdir(target.path):
        return
    try:
        if not is_given_up(oned.Client().vm(target.vm_id)):
            return
    except OnestorError as error:
        request.log.warn(f"{target.path} on the front-end is kept: {error}")
        return
    with hosts.local_agent() as here:
        here.call("directory.delete", path=target.path)
    request.log.info(f"VM {target.vm_id} directory on the front-end deleted")


def _leave_note(
    request: Request, client: oned.Client, target: arguments.VmPath, error: HostUnreachable
) -> None:
    """Succeed where oned itself has given the host up: it may never come back (failure G1).

    What is there goes when it does (``onestor recovery run``). Otherwise raises ``error``.
    """
    if not tombstones.is_given_up(client, target.host) and not _is_recreating(client, target):
        raise error
    try:
        sequence = vms.sequence(client.vm(target.vm_id))
    except Missing:
        sequence = ""
    tombstones.for_place(target, sequence)
    request.log.warn(f"{error}; what is there goes when {target.host} is back")
