"""An image where it rests: its version, and the manifest that is kept beside it.

The manifest is made when the image is first read in full, by ``datastore cp`` or by the first
transfer, and believed as long as size, time and inode of the image are what they were then.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    companions,
    extents,
    publish,
    replacement,
    transfer,
    vm_directory,
)
from onestor_lib.agent import image_format as formats
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.record import Record
from onestor_lib.agent.chunks import CHUNK, Manifest
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    OnestorError,
    TransferFailed,
    from_os_error,
)
from onestor_lib.agent.version import Version


class Origin:
    """The image ``path`` of this machine, in the version ``wanted`` if one is given.

    Raises :class:`TransferFailed` when it has another version by now, :class:`Missing` without it.
    """

    def __init__(self, path: Path, wanted: Version | None = None) -> None:
        self.path = path
        try:
            self.version = Version.of(path.stat())
        except OSError as error:
            raise from_os_error("read image", error, path=str(path)) from error
        if wanted not in (None, self.version):
            raise TransferFailed("read image", transfer.CHANGED, path=str(path))

    def require(self, fd: int) -> None:
        """Raise :class:`TransferFailed` unless ``fd`` is open on this version."""
        if Version.of(os.fstat(fd)) != self.version:
            raise TransferFailed("read image", transfer.CHANGED, path=str(self.path))

    def differs_from(self, manifest: Manifest) -> bool:
        """Whether reading the image anew gives other digests."""
        fd = transfer.open_source(self.path)
        try:
            return transfer.digests_of(fd, self.version.size).digest() != manifest.digest()
        finally:
            os.close(fd)

    def damaged(self) -> OnestorError:
        """The error for content that is not what the manifest says."""
        cause = (
            "it differs from what it was when its digests were taken; if the change is wanted,"
            f" remove {companions.manifest(self.path)}"
        )
        return OnestorError("read image", cause, path=str(self.path))

    def manifest(self) -> Manifest | None:
        """The manifest of this version; None when there is none."""
        path = companions.manifest(self.path)
        kept = record.read(path)
        if kept is None or kept.version != self.version:
            return None
        return record.read_manifest(path, kept)

    def keep(self, manifest: Manifest) -> None:
        """Write the manifest down; where that is not possible it is made again next time."""
        with contextlib.suppress(OSError):
            found = Record.now(self.version, manifest.digest(), self.version)
            found.write(companions.manifest(self.path), manifest)


def describe(path: Path, image_format: str, *, snapshots: bool) -> dict[str, Any]:
    """What has to be known of a registered image before it is copied.

    Its version, the digest of its content if that is on record ("" else), sizes and allocated space
    in bytes, and with ``snapshots`` the size of each snapshot by id: of ``<image>.snap/`` the files
    with a number for a name and nothing else (known failure A14). Raises :class:`Missing` and
    :class:`InvalidInput`.
    """
    replacement.finish(path)
    if snapshots:  # it is given to a VM, which may change it: who brought it back last is history
        with contextlib.suppress(OSError):
            publish.remove(companions.returned(path))
    version, allocated, virtual = _facts(path, image_format)
    found: dict[str, int] = {}
    snapshots_allocated = 0
    directory = companions.snapshots(path)
    if snapshots and directory.is_dir():
        for file in sorted(directory.iterdir()):
            if vm_directory.is_snapshot(file.name):
                snapshot, blocks, _ = _facts(file, image_format)
                found[file.name] = snapshot.size
                snapshots_allocated += blocks
    return {
        "version": version.to_json(),
        "digest": _digest(path, version),
        "size": version.size,
        "allocated": allocated + snapshots_allocated,
        "virtual_size": virtual,
        "snapshots": found,
        "snapshots_allocated": snapshots_allocated,
    }


def missing(directory: Path, names: Sequence[str]) -> list[str]:
    """Which of the images ``names`` are not in ``directory``; none when that is missing itself."""
    if not directory.is_dir():
        return []
    return [name for name in names if not os.path.lexists(directory / os.path.basename(name))]


def _digest(path: Path, version: Version) -> str:
    kept = record.read(companions.manifest(path))
    return kept.digest if kept and kept.version == version else ""


def _facts(path: Path, image_format_name: str) -> tuple[Version, int, int]:
    """Version, allocated and virtual size (bytes) of an image in the format that is on record."""
    step = "read image"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hold us
    except FileNotFoundError:
        raise Missing(step, "no such file", path=str(path)) from None
    except OSError as error:
        raise from_os_error(step, error, path=str(path)) from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidInput(step, "not a regular file", path=str(path))
        head = extents.read_exactly(fd, formats.HEAD, 0) if image_format_name == "qcow2" else b""
    finally:
        os.close(fd)
    virtual = facts.st_size
    if image_format_name == "qcow2":
        virtual = formats.describe_qcow2(head, step=step, path=str(path)).virtual_size
    # Preallocated blocks behind the end are not copied; the last chunk may be allocated whole.
    return Version.of(facts), min(facts.st_blocks * 512, facts.st_size + CHUNK), virtual
