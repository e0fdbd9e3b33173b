"""datastore snap_flatten: one snapshot of an image becomes the image (contract section 1.8)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import image_snapshots


def run(request: Request) -> None:
    """oned has dropped all snapshots of the image then."""
    image_snapshots.change(request, "snapshot.flatten")
