"""tm snap_create: keep the disk of a VM that does not run as it is now (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disk_snapshots import DiskSnapshot


def run(request: Request) -> None:
    """``snap_create host:DIR/disk.i snapid vmid dsid``; the VM is powered off or suspended."""
    DiskSnapshot(request).create()
