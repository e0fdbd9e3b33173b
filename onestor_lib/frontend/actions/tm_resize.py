"""tm resize: make a disk larger (contract section 2.4)."""

from __future__ import annotations

import dataclasses
import socket

from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import kept, vms
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> None:
    """``resize host:DIR/disk.i size vmid dsid``; the size is in MB.

    The hypervisor resizes the disk of a VM that runs (trap 21). oned names the last host of a VM
    that is undeployed, whose files are on the front-end (trap 17).
    """
    words = arguments.words(request.argv, "host:DIR/disk.i size vmid dsid")
    target = vms.disk_path(words[0], words[2])
    size = arguments.number(words[1], "the size") * MB
    client = oned.Client()
    vm = client.vm(target.vm_id)
    if vm.text("LCM_STATE") == vms.DISK_RESIZE:
        request.log.info(f"VM {target.vm_id} runs: its hypervisor makes {target.name} larger")
        return
    disk = vms.describe(vm, target)
    datastore = arguments.number(words[3], "the datastore's id")
    settings, _ = vms.settings_of(
        request.settings, client, target, image_datastore=vms.image_datastore(disk, datastore),
        disk=disk,
    )  # fmt: skip
    hosts = Hosts(settings, request.log)
    if vm.text("LCM_STATE") == vms.DISK_RESIZE_UNDEPLOYED:
        target = kept.located(hosts, dataclasses.replace(target, host=socket.gethostname()))
    with hosts.agent(target.host) as host:
        grown = host.call(
            "disk.resize",
            path=target.path,
            image_format=disk.image_format,
            size=size,
            sparse=settings.yes("SPARSE"),
            check_space=settings.yes("CHECK_FREE_SPACE"),
            lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
        )["grown"]
    what = f"has {size // MB} MB now" if grown else f"had {size // MB} MB or more already"
    request.log.info(f"VM {target.vm_id} {target.name} on {target.host} {what}")
