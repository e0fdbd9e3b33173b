"""Room on a file system, asked for before anything is written there (known failure C8)."""

from __future__ import annotations

import os
from pathlib import Path

from onestor_lib.agent.errors import NoSpace

MB = 1 << 20


def require(directory: Path, needed: int) -> None:
    """Raise :class:`NoSpace` when ``directory`` has not ``needed`` bytes for us."""
    figures = os.statvfs(directory)
    available = figures.f_bavail * figures.f_frsize
    if needed > available:
        cause = f"{-(-needed // MB)} MB needed, {available // MB} MB available"
        raise NoSpace("check space", cause, path=str(directory))
