"""tm failmigrate: after a live migration that has failed, clean up the target (contract 2.6)."""

from __future__ import annotations

from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import migrations
from onestor_lib.frontend.services.moving import Move


def run(request: Request) -> None:
    """``failmigrate src_host dst_host DIR vmid dsid [driver]``, the VM on stdin.

    The other drivers are called whatever becomes of the target.
    """
    step = migrations.read(request)
    works = migrations.others(request, step)
    if not step.is_secondary and step.source_host != step.target_host:
        works.insert(0, lambda: _abandon(request, step))
    migrations.do_all(request, works)


def _abandon(request: Request, step: migrations.Step) -> None:
    source, target = (
        arguments.vm_path(f"{host}:{step.directory}", step.vm_id)
        for host in (step.source_host, step.target_host)
    )
    done = Move(request, step.vm, source, target, oned.Client()).abandon()
    what = "is the same directory" if done["same"] else "is gone" if done["removed"] else "was not"
    request.log.info(f"VM {step.vm_id} {target.path} on {target.host} {what}")
