"""tm premigrate: before a live migration, make the target ready (contract section 2.6)."""

from __future__ import annotations

from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import migrations
from onestor_lib.frontend.services.moving import Move, described


def run(request: Request) -> None:
    """``premigrate src_host dst_host DIR vmid dsid [driver]``, the VM on stdin."""
    step = migrations.read(request)
    if not step.is_secondary and step.source_host != step.target_host:
        source, target = (
            arguments.vm_path(f"{host}:{step.directory}", step.vm_id)
            for host in (step.source_host, step.target_host)
        )
        done = Move(request, step.vm, source, target, oned.Client()).prepare(step.text)
        request.log.info(f"VM {step.vm_id} to {step.target_host}: {described(done)}")
    for call in migrations.others(request, step):
        call()
