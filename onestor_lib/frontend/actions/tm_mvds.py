"""tm mvds: bring a persistent disk, with its snapshots, back to its image (contract 2.4)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.saving import Saving


def run(request: Request) -> None:
    """``mvds host:DIR/disk.i SOURCE vmid dsid``; a repeated one finds its work done."""
    words = arguments.words(request.argv, "host:DIR/disk.i SOURCE vmid dsid")
    Saving(request, place=words[0], source=words[1], vm=words[2], datastore=words[3]).bring_back()
