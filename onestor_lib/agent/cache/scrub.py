"""Reading an entry again and comparing it with its manifest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from onestor_lib.agent import locks, transfer
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.chunks import CHUNK

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def damage(entry: Entry, on_progress: Progress = lambda done, total: None) -> str:
    """What is wrong with the entry; "" when it is just as it was filled.

    The caller holds its lock.
    """
    known = record.read(entry.sidecar)
    if known is None:
        return "its sidecar is damaged"
    manifest = record.read_manifest(entry.sidecar, known)
    if manifest is None:
        return "its manifest is damaged"
    try:
        fd = os.open(entry.image, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return "its file is gone"
    try:
        if os.fstat(fd).st_size != known.version.size:
            return "its file has another size"
        size = known.version.size
        found = transfer.digests_of(fd, size, lambda done: on_progress(done, size))
    finally:
        os.close(fd)
    if found.digest() != known.digest:
        wrong = [index for index in range(len(found)) if found[index] != manifest[index]]
        return f"{len(wrong)} of its chunks differ, the first at byte {wrong[0] * CHUNK}"
    if not known.describes(entry.image):
        return "its file was replaced or touched"
    return ""


def verify(
    path: Path, *, timeout: float, on_progress: Progress = lambda done, total: None
) -> str | None:
    """Check the entry ``path`` and drop it when it is damaged, so that the next clone fills anew.

    Returns what was wrong, "" if nothing was, and None when there is no such entry: it was evicted
    meanwhile, or its image removed. VMs whose disks are based on a damaged entry keep it: the
    answer says how many they are.
    """
    lock, purpose = Entry(path).lock, f"verify {path.name}"
    with locks.shared(lock, purpose=purpose, timeout=timeout):
        wrong = damage(Entry(path), on_progress)
    with locks.exclusive(lock, purpose=purpose, timeout=timeout):
        entry = Entry(path)
        if not os.path.lexists(entry.sidecar):
            return None
        if not wrong:
            _note_verified(entry)
            return ""
        if not (wrong := damage(entry, on_progress)):
            return ""  # it has been filled anew meanwhile
        links = entry.image.lstat().st_nlink - 1 if os.path.lexists(entry.image) else 0
        entry.drop()
        return f"{wrong}; {links} disks of VMs have it as their base" if links else wrong


def _note_verified(entry: Entry) -> None:
    """Write down that the entry was found intact just now; that is no use of it."""
    known = record.read(entry.sidecar)
    manifest = record.read_manifest(entry.sidecar, known) if known else None
    if known and manifest:
        used = entry.sidecar.stat().st_mtime_ns
        known._replace(verified=int(time.time())).write(entry.sidecar, manifest)
        os.utime(entry.sidecar, ns=(used, used))
