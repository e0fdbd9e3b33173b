"""tm snap_revert: let a disk be what it was at a snapshot (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disk_snapshots import DiskSnapshot


def run(request: Request) -> None:
    """``snap_revert host:DIR/disk.i snapid vmid dsid``; the VM is powered off."""
    DiskSnapshot(request).revert()
