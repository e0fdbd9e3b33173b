"""datastore snap_delete: remove one snapshot of an image (contract section 1.8)."""

from __future__ import annotations

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import image_snapshots


def run(request: Request) -> None:
    """One that is not there is removed already: that is success, with a warning."""
    image_snapshots.change(request, "snapshot.delete")
