"""Whether a volume that should be mounted is: without it a path lies on the root file system.

That has the wrong size, and what is written there vanishes below the mount (known failure I10).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent.errors import Missing

FSTAB = Path("/etc/fstab")
MOUNTED = Path("/proc/self/mountinfo")

_ON_DEMAND = {"noauto", "x-systemd.automount", "comment=systemd.automount"}


def require(path: str, *, required: bool, step: str, fstab: Path | None = None) -> None:
    """Raise :class:`Missing` when the volume that ``path`` belongs to is not mounted.

    That is one which fstab(5) mounts at start at ``path`` or above it; with ``required`` (the
    setting REQUIRE_MOUNT) ``path`` or its parent must be a mount point in any case.
    """
    place, table = os.path.realpath(path), fstab or FSTAB
    there = set(_mounted())
    for point in _expected(table):
        if f"{place}/".startswith(f"{point}/") and point not in there:
            raise Missing(step, f"{point} is in {table}, but not mounted", path=path)
    if required and not (os.path.ismount(place) or os.path.ismount(os.path.dirname(place))):
        cause = "neither it nor its parent is a mount point (REQUIRE_MOUNT)"
        raise Missing(step, cause, path=path)


def _expected(fstab: Path) -> Iterator[str]:
    """Mount points of what is mounted at start, but for the root, with their links resolved."""
    for words in _lines(fstab):
        if len(words) < 3 or words[0].startswith("#"):
            continue
        point = os.path.realpath(_plain(words[1])) if words[1].startswith("/") else "/"
        options = set(words[3].split(",")) if len(words) > 3 else set()
        if point != "/" and not options & _ON_DEMAND:
            yield point


def _mounted() -> Iterator[str]:
    """Where something is mounted just now (proc(5), mountinfo: the fifth field)."""
    for words in _lines(MOUNTED):
        if len(words) > 4:
            yield _plain(words[4])


def _lines(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in os.fsdecode(file.read_bytes()).splitlines()]
    except OSError:
        return []


def _plain(field: str) -> str:
    """A field with its octal escapes (``\\040`` for a blank) resolved."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
