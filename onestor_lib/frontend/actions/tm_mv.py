"""tm mv: move a VM's directory to another machine or datastore (contract section 2.4)."""

from __future__ import annotations

import time

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import kept, tombstones, vms
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.moving import Move, described


def run(request: Request) -> None:
    """``mv src:DIR[/disk.i] dst:DIR[/disk.i] vmid dsid``.

    A disk alone does not move: the line for the directory, the last one, takes all of it.
    """
    words = arguments.words(request.argv, "src:DIR[/disk.i] dst:DIR[/disk.i] vmid dsid")
    vm_id = arguments.number(words[2], "the VM's id")
    arguments.number(words[3], "the datastore's id")
    source, target = (arguments.vm_path(word, vm_id) for word in words[:2])
    if source.name != target.name:
        raise InvalidInput("read the arguments", f"{words[0]!r} cannot become {words[1]!r}")
    if source.name:
        return
    begin = time.monotonic()
    client = oned.Client()
    vm = client.vm(vm_id)
    if vm.text("LCM_STATE") in vms.PROLOG_MIGRATE_UNKNOWN:
        # The source is dead: it must not even be asked (known failure D9).
        tombstones.clear(request, client, vm, target)
        request.log.info(f"VM {vm_id} leaves {source.host} behind: nothing to move")
        return
    settings, _ = vms.settings_of(request.settings, client, target)
    hosts = Hosts(settings, request.log)
    leaving = vm.text("LCM_STATE") in (vms.EPILOG_STOP, vms.EPILOG_UNDEPLOY)
    if leaving and hosts.is_here(target.host) and settings.yes("KEEP_ON_HOST"):
        kept.keep(source, target)
        request.log.info(f"VM {vm_id} stays on {source.host} (KEEP_ON_HOST)")
        return
    told, source = source, kept.located(hosts, source)
    done = {"done": "same", "sent": 0}
    if (source.host, source.path) != (target.host, target.path):
        done = Move(request, vm, source, target, client).run()
    if source != told:
        kept.forget(told)
    request.log.info(
        f"VM {vm_id} from {source.host} to {target.host}: {described(done)}, "
        f"{time.monotonic() - begin:.2f} s"
    )
