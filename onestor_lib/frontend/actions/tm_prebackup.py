"""tm prebackup: before the backup of a VM that does not run (contract section 6.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import backups


def run(request: Request) -> None:
    """``prebackup host:DIR disks deploy_id [job] vmid dsid``, the VM on stdin."""
    backups.hand_over(request)
