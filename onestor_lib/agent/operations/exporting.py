"""What has to be known of an image that goes to a marketplace."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from onestor_lib.agent import companions, extents, origin, paths, publish, transfer
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import TransferFailed
from onestor_lib.agent.server import Call
from onestor_lib.agent.version import Version

_STEP = "export image"


def identify(call: Call, *, path: str, base: str, image_format: str) -> dict[str, Any]:
    """The MD5 of the image's file and the ``size`` in bytes that a guest sees.

    The digest is kept beside the image and believed as long as the image has the same version
    (known failure H26). Raises :class:`TransferFailed` when it changes while it is read.
    """
    image = paths.inside(path, base, step=_STEP)
    facts = origin.describe(image, image_format, snapshots=False)
    version = Version.from_json(facts["version"])
    digest = _known(image, version)
    if not digest:
        digest = _md5(call, image, version)
        _keep(image, version, digest)
    return {"md5": digest, "size": facts["virtual_size"]}


def _md5(call: Call, image: Path, version: Version) -> str:
    found = hashlib.new("md5", usedforsecurity=False)
    fd = transfer.open_source(image)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        offset = 0
        while block := extents.read_exactly(fd, CHUNK, offset):
            found.update(block)
            offset += len(block)
            call.progress(offset, version.size)
        if not version == Version.of(os.fstat(fd)) == Version.of(image.stat()):
            raise TransferFailed(_STEP, transfer.CHANGED, path=str(image))
    finally:
        os.close(fd)
    return found.hexdigest()


def _known(image: Path, version: Version) -> str:
    """The digest that is written down for this version; "" without one."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        note = json.loads(companions.digest(image).read_bytes())
        if isinstance(note, dict) and Version.from_json(note.get("version")) == version:
            digest = str(note.get("md5"))
            return digest if re.fullmatch(r"[0-9a-f]{32}", digest) else ""
    return ""


def _keep(image: Path, version: Version, digest: str) -> None:
    """Write the digest down; where that is not possible it is made again next time."""
    note = {"version": version.to_json(), "md5": digest}
    with contextlib.suppress(OSError):
        publish.write_file(companions.digest(image), json.dumps(note).encode("ascii") + b"\n")
