"""tm ln: bring a persistent image to its VM, with its snapshots (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disks import Placement


def run(request: Request) -> None:
    """``ln fe:SOURCE host:DIR/disk.i vmid dsid``: "link" in name only, the file is copied."""
    Placement("ln", request.argv, request.settings, request.log).run(persistent=True)
