"""tm cpds: save a disk, or one of its snapshots, as a new image (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.saving import Saving

_CURRENT = "-1"


def run(request: Request) -> None:
    """``cpds host:DIR/disk.i SOURCE snapid vmid dsid``; -1 is the disk as it is now."""
    words = arguments.words(request.argv, "host:DIR/disk.i SOURCE snapid vmid dsid")
    snapshot = None if words[2] == _CURRENT else arguments.number(words[2], "the snapshot's id")
    Saving(request, place=words[0], source=words[1], vm=words[3], datastore=words[4]).copy(snapshot)
