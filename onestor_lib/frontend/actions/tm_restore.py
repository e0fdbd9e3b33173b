"""tm restore: bring back the disks of a VM from a backup (contract section 6.4)."""

from __future__ import annotations

from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.message import MAX_SIZE
from onestor_lib.frontend.services import backups, scripts, vms
from onestor_lib.frontend.services.hosts import Hosts

_ALL = "-1"


def run(request: Request) -> None:
    """``restore host:DIR vmid img_id inc_id disk_id``; disk -1 is all of them.

    OpenNebula's own script leaves plain files; what our disks had beside them goes behind it.
    """
    words = arguments.words(request.argv, "host:DIR vmid img_id inc_id disk_id")
    vm_id = arguments.number(words[1], "the VM's id")
    target = arguments.vm_path(words[0], vm_id)
    step = f"hand over to {backups.KNOWN_DRIVER}/restore"
    script = scripts.find(backups.KNOWN_DRIVER, "restore", step)
    client = oned.Client()
    settings, _ = vms.settings_of(request.settings, client, target)
    stdin = request.stdin.read(MAX_SIZE)
    scripts.run(script, request.argv, stdin, step, timeout=settings.seconds("SCRIPT_TIMEOUT"))
    disks = vms.own_disks(client.vm(vm_id))
    if words[4] != _ALL:
        disks = [f"disk.{arguments.number(words[4], 'the disk')}"]
    with Hosts(settings, request.log).agent(target.host) as host:
        host.call("directory.tidy", path=target.path, disks=disks)
    request.log.info(f"VM {vm_id} on {target.host}: {' '.join(disks)} restored")
