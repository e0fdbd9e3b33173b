"""tm snap_create_live: keep the disk of a VM while that runs (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.disk_snapshots import DiskSnapshot


def run(request: Request) -> None:
    """``snap_create_live host:DIR/disk.i snapid vmid dsid``; freezing and thawing is ours, too."""
    DiskSnapshot(request).create_live()
