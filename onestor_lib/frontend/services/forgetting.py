"""Recovery copies of what is deleted, or goes back to its image: replicas forget them."""

from __future__ import annotations

import time

from onestor_lib.agent.errors import OnedUnavailable, OnestorError
from onestor_lib.frontend import oned, xml
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import recovered, recovery, replicas, tombstones, vms

_TRIES, _PAUSE = 4, 3.0  # seconds: to ask oned what a VM is deleted for


def forget(request: Request, target: VmPath) -> None:
    """Let the replicas forget the copies of a disk, or of all disks where ``target`` is no disk.

    They are kept while a VM is being recreated. A replica that does not answer in time is told
    later (known failure G2); nothing of this is an error.
    """
    settings = request.settings
    try:
        client = oned.Client()
        vm = _asked(client, target.vm_id)
        if recovered.is_recreating(vm) or not _asks(vm, target.name):
            return
        over, _ = vms.settings_of(request.settings, client, target)
        names, root, settings = list(recovery.replicas_of(over)), recovery.root(over), over
    except OnestorError as error:
        # Not to know is no reason to let a copy boot old data one day (known failure G21).
        request.log.warn(f"recovery copies of VM {target.vm_id}: {error}")
        names, root = replicas.known(request), recovery.root(request.settings)
    facts = {"root": root, "vm": target.vm_id, "disk": target.name}
    failed = replicas.ask(request, settings, names, "recovery.forget", **facts)
    for host, warning in failed.items():
        request.log.warn(f"recovery copies on {host} go later: {warning}")
        try:
            tombstones.for_copies(host, root, target.vm_id, target.name)
        except OSError as error:
            request.log.warn(f"that could not be noted: {error}")


def _asked(client: oned.Client, vm_id: int) -> xml.Element:
    """The VM, insistently: an oned that has much to do just now may be recreating it."""
    for _ in range(_TRIES - 1):
        try:
            return client.vm(vm_id)
        except OnedUnavailable:
            time.sleep(_PAUSE)
    return client.vm(vm_id)


def _asks(vm: xml.Element, name: str) -> bool:
    """Whether a disk of the VM, or the disk ``name``, asks for recovery copies."""
    return any(
        recovery.asks(disk)
        for disk in vm.all("TEMPLATE/DISK")
        if not name or name == f"disk.{disk.text('DISK_ID')}"
    )
