"""tm snap_delete: remove a snapshot of a disk (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disk_snapshots import DiskSnapshot


def run(request: Request) -> None:
    """``snap_delete host:DIR/disk.i snapid vmid dsid``; the VM may run."""
    DiskSnapshot(request).delete()
