"""tm clone: give a VM its own disk, made from a non-persistent image (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disks import Placement


def run(request: Request) -> None:
    """``clone fe:SOURCE host:DIR/disk.i vmid dsid``; the target may be kernel or initrd, too."""
    Placement("clone", request.argv, request.settings, request.log).run(persistent=False)
