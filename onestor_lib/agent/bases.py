"""The base of an overlay from what this machine has: its cache, or the image datastore itself."""

from __future__ import annotations

import os
from pathlib import Path

from onestor_lib.agent import companions, extents, locks, transfer
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.version import Version

_STEP = "take the base"
_LOCK_WAIT = 10.0  # seconds for a cache entry that is just being filled


def take(image: Path, digest: str, base: Path) -> bool:
    """Another name for the cached ``image``, or a copy of the origin, if it has this digest."""
    entry = Entry(image)
    known = record.read(entry.sidecar)
    if known and known.digest == digest:
        with locks.shared(entry.lock, purpose=_STEP, timeout=_LOCK_WAIT):
            if known.describes(entry.image) and _link(entry.image, base):
                entry.mark_used()
                return True
            if known.describes(entry.image):
                return _copy(entry.image, base, digest)
    origin = record.read(companions.manifest(image))
    if origin and origin.digest == digest and origin.version == Version.of(image.stat()):
        return _copy(image, base, digest)
    return False


def _link(entry: Path, base: Path) -> bool:
    try:
        os.link(entry, base, follow_symlinks=False)
    except OSError:
        return False
    return True


def _copy(source: Path, base: Path, digest: str) -> bool:
    """Copy a file of this machine; an origin's name must never lead a VM to the origin itself."""
    os.close(os.open(base, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    is_right = False
    try:
        size = extents.copy_path(source, base, sparse=True, step=_STEP)
        with extents.opened(base) as copied:
            is_right = transfer.digests_of(copied, size).digest() == digest
    finally:
        if not is_right:
            base.unlink()
    return is_right
