"""datastore snap_revert: let an image be what one of its snapshots is (contract section 1.8)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import image_snapshots


def run(request: Request) -> None:
    """The snapshots stay, and the image is what it was until the copy is complete."""
    image_snapshots.change(request, "snapshot.revert")
