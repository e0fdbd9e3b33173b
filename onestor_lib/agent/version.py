"""What tells one content of a file from another without reading it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Version(NamedTuple):
    """Size in bytes, time of the last change, and which file it is (known failure A10)."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Version:
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ino)

    @classmethod
    def from_json(cls, facts: Any) -> Version:
        """Raises ``ValueError`` for anything but three numbers."""
        try:
            version = cls(facts["size"], facts["mtime_ns"], facts["inode"])
        except (KeyError, TypeError):
            raise ValueError("no version") from None
        if not all(type(value) is int for value in (version.size, version.mtime_ns, version.inode)):
            raise ValueError("no version")
        return version

    def to_json(self) -> dict[str, int]:
        return {"size": self.size, "mtime_ns": self.mtime_ns, "inode": self.inode}
