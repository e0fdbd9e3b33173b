"""Recovery copies of what is deleted, or goes back to its image: replicas forget them."""

from __future__ import annotations

import threading
import time

from onestor_lib.agent.errors import OnedUnavailable, OnestorError
from onestor_lib.frontend import oned, xml
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import recovered, recovery, replicas, tombstones, vms
from onestor_lib.frontend.services.hosts import Hosts

_TRIES, _PAUSE = 4, 3.0  # seconds: to ask oned what a VM is deleted for


def forget(request: Request, target: VmPath) -> None:
    """Let the replicas forget the copies of a disk, or of all disks where ``target`` is no disk.

    They are kept while a VM is being recreated. A replica that does not answer in time is told
    later (known failure G2); nothing of this is an error.
    """
    hosts = Hosts(request.settings, request.log)
    try:
        client = oned.Client()
        vm = _asked(client, target.vm_id)
        if recovered.is_recreating(vm) or not _asks(vm, target.name):
            return
        settings, _ = vms.settings_of(request.settings, client, target)
        names, root = list(recovery.replicas_of(settings)), recovery.root(settings)
        hosts = Hosts(settings, request.log)
    except OnestorError as error:
        # Not to know is no reason to let a copy boot old data one day (known failure G21).
        request.log.warn(f"recovery copies of VM {target.vm_id}: {error}")
        names, root = replicas.known(request), recovery.root(request.settings)
    asked = [_Asked(hosts, name, root, target) for name in names]
    deadline = time.monotonic() + request.settings.seconds("CONNECT_TIMEOUT")
    for each in asked:
        each.join(max(0.0, deadline - time.monotonic()))
        if warning := each.warning:
            request.log.warn(f"recovery copies on {each.host} go later: {warning}")
            try:
                tombstones.for_copies(each.host, root, target.vm_id, target.name)
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


class _Asked(threading.Thread):
    """One replica that is asked; a thread of its own, with connections nobody shares."""

    def __init__(self, hosts: Hosts, host: str, root: str, target: VmPath) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.warning = "no answer in time"
        self._hosts, self._root, self._target = Hosts(hosts.settings, hosts.log), root, target
        self.start()

    def run(self) -> None:
        try:
            with self._hosts.agent(self.host) as agent:
                vm, disk = self._target.vm_id, self._target.name
                agent.call("recovery.forget", root=self._root, vm=vm, disk=disk)
            self.warning = ""
        except Exception as error:  # noqa: BLE001 - a thread's traceback would go to oned
            self.warning = str(error)
