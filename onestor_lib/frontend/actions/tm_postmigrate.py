"""tm postmigrate: after a live migration, clean up the source (contract section 2.6)."""

from __future__ import annotations

import os

from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import migrations
from onestor_lib.frontend.services.moving import Move


def run(request: Request) -> None:
    """``postmigrate src_host dst_host DIR vmid dsid [driver]``, the VM on stdin.

    The other drivers are called whatever becomes of the source: they have no part in that.
    """
    step = migrations.read(request)
    works = migrations.others(request, step)
    if not step.is_secondary:
        works.insert(0, lambda: _retire(request, step))
    migrations.do_all(request, works)


def _retire(request: Request, step: migrations.Step) -> None:
    target = arguments.vm_path(f"{step.target_host}:{step.directory}", step.vm_id)
    client = oned.Client()
    old = _old_directory(client, step, target)
    source = arguments.vm_path(f"{step.source_host}:{old}", step.vm_id)
    if (source.host, source.path) == (target.host, target.path):
        return
    done = Move(request, step.vm, source, target, client).retire()
    what = "is the same directory" if done["same"] else "is gone" if done["removed"] else "was not"
    request.log.info(f"VM {step.vm_id} {source.path} on {source.host} {what}")


def _old_directory(client: oned.Client, step: migrations.Step, target: arguments.VmPath) -> str:
    """Where the VM was: from 7.2 on a live migration may change the datastore instead of the host.

    Then the history record before the last tells the old one; on stdin there is only the last.
    """
    if step.source_host != step.target_host:
        return target.path
    vm = client.vm(step.vm_id)
    current = vm.text("HISTORY_RECORDS/HISTORY[last()]/DS_ID")
    old = vm.text("HISTORY_RECORDS/HISTORY[last()-1]/DS_ID")
    if not old or old == current:
        return target.path
    return f"{os.path.dirname(target.datastore)}/{arguments.number(old, 'DS_ID')}/{step.vm_id}"
