"""A fill seen by somebody who sends it on while it runs.

The receiver tells how far it is in a small file and leaves the manifest in another one; both go
when the part becomes the entry, which may be between two looks at them. The file itself stays the
same, so the entry's sidecar tells then.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from onestor_lib.agent import transfer
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry, progress_of
from onestor_lib.agent.cache.record import Record
from onestor_lib.agent.chunks import Manifest

_PAUSE = 0.02  # seconds between two looks


class Fill:
    """The fill of the entry ``path`` with ``size`` bytes, whose part is open as ``fd``."""

    def __init__(self, path: Path, fd: int, size: int, manifest: Path) -> None:
        self._path, self._fd, self._size, self._manifest = path, fd, size, manifest

    def complete(self, done: int) -> int:
        """How many bytes from the begin are there for good; at least the ``done`` known so far."""
        position = transfer.completed(progress_of(self._manifest))
        if position <= done and self._entry():
            return self._size
        return max(done, position)

    def digest(self, timeout: float) -> str:
        """The digest of the whole; ``TimeoutError`` when nobody has found it in so many seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return Manifest(self._size, self._manifest.read_bytes()).digest()
            if entry := self._entry():
                return entry.digest
            time.sleep(_PAUSE)
        raise TimeoutError

    def _entry(self) -> Record | None:
        """The record of the entry that the part has become; None as long as it has not."""
        found = record.read(Entry(self._path).sidecar)
        if found and found.local.inode == os.fstat(self._fd).st_ino:
            return found
        return None
