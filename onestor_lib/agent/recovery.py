"""Recovery copies: what a replica host keeps of the disks of VMs on other hosts.

In the directory of the VM, below REPLICA_RECOVERY_SNAPS_DIR, a directory for each copy::

    <vm>/disk.N.<point>/disk.N         the copy: an overlay on disk.N.base, or a complete file
                        disk.N.base    a hard link to the cached image, if it is an overlay
                        record         what it is a copy of (JSON)
                        digests        of its blocks, for the next one (``delta``)

``point`` is the moment that it shows, in milliseconds since 1970. A copy gets its name when it is
complete and on the disk, in one rename; then the older ones go. So there is a whole one at any
time, and a disk that has not been written to is younger by another rename.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import publish

AGE_UNKNOWN = 1  # the moment of a copy that was made before the clock was set back
RECORD, DIGESTS = "record", "digests"
_LOCK = re.compile(r"\.disk\.[0-9]+\.lock")
_NAME = re.compile(r"(?P<disk>disk\.[0-9]+)\.(?P<point>[0-9]{13})")


class Copy(NamedTuple):
    """One complete copy of a disk."""

    directory: Path
    disk: str  # "disk.0"
    point: int  # milliseconds since 1970

    @property
    def file(self) -> Path:
        return self.directory / self.disk

    @property
    def base(self) -> Path:
        return self.directory / f"{self.disk}.base"

    def record(self) -> dict[str, Any]:
        """What it is a copy of; nothing when that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.directory / RECORD).read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def digests(self) -> bytes:
        """Of its blocks; empty when they cannot be read."""
        with contextlib.suppress(OSError):
            return (self.directory / DIGESTS).read_bytes()
        return b""


def of_vm(directory: Path) -> list[Copy]:
    """All copies in the directory of one VM, the youngest first."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for each in directory.iterdir():
            if match := _NAME.fullmatch(each.name):
                found.append(Copy(each, match["disk"], int(match["point"])))
    return sorted(found, key=lambda copy: -copy.point)


def is_bare(directory: Path) -> bool:
    """Whether a VM's directory has nothing but locks of ours."""
    try:
        return all(_LOCK.fullmatch(each.name) for each in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def newest(directory: Path, disk: str) -> Copy | None:
    """The youngest copy of a disk that can be used: its record is there."""
    for copy in of_vm(directory):
        if copy.disk == disk and copy.record():
            return copy
    return None


def remove_unfinished(directory: Path, disk: str) -> None:
    """Remove the copies of a disk that are being made; whoever makes one finds it gone."""
    with contextlib.suppress(FileNotFoundError):
        for each in directory.iterdir():
            final = publish.final_name(each.name)
            if (match := _NAME.fullmatch(final)) and match["disk"] == disk:
                publish.take_away(each)


def new(directory: Path, disk: str, point: int) -> Copy:
    """The name of a copy that is being made."""
    return Copy(directory / f"{disk}.{point:013d}", disk, point)
