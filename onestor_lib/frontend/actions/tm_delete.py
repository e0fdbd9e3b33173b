"""tm delete: remove a disk, or a VM's whole directory (contract section 2.4)."""

from __future__ import annotations

import os

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import kept
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.vms import is_given_up


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
    with hosts.agent(target.host) as host:
        operation = "disk.delete" if target.name else "directory.delete"
        removed = host.call(operation, path=target.path)["removed"]
    if told != target and not target.name:
        kept.forget(told)
    what = target.name or "directory"
    done = "deleted" if removed else "was not there"
    request.log.info(f"VM {vm_id} {what} on {target.host} {done}")


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
