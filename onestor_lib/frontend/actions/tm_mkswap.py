"""tm mkswap: a volatile disk with swap space (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import filesystems, volatile


def run(request: Request) -> None:
    """``mkswap size host:DIR/disk.i vmid dsid``; the size is in MB."""
    words = arguments.words(request.argv, "size host:DIR/disk.i vmid dsid")
    volatile.make(
        request, size=words[0], image_format=filesystems.SWAP, place=words[1], vm=words[2]
    )
