"""tm mkimage: a volatile disk, empty or with a file system (contract section 2.4)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import volatile


def run(request: Request) -> None:
    """``mkimage size format host:DIR/disk.i vmid dsid``; the size is in MB."""
    words = arguments.words(request.argv, "size format host:DIR/disk.i vmid dsid")
    volatile.make(
        request, size=words[0], image_format=words[1].lower(), place=words[2], vm=words[3]
    )
