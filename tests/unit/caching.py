"""Entries of a cache, filled without a transfer."""

from __future__ import annotations

import os
import time
from pathlib import Path

from onestor_lib.agent import transfer
from onestor_lib.agent.cache.entry import Entry, chunks_of
from onestor_lib.agent.version import Version

VERSION = Version(5, 1, 1)


def version_of(content: bytes, *, mtime_ns: int = 1) -> Version:
    """The version an origin with this content might have."""
    return Version(len(content), mtime_ns, 1)


def write_part(part: Path, content: bytes) -> str:
    """Put content and manifest where a receiver would; the digest."""
    part.write_bytes(content)
    with part.open("rb") as file:
        manifest = transfer.digests_of(file.fileno(), len(content))
    chunks_of(part).write_bytes(manifest.to_bytes())
    return manifest.digest()


def written(part: Path) -> dict[str, int]:
    """What a receiver that has just filled the part would say (`Receiver.written`)."""
    return Version.of(part.stat()).to_json()


def fill(
    path: Path, content: bytes = b"image", *, mtime_ns: int = 1, idle: float | None = None
) -> Entry:
    """Make the entry `path`, last used `idle` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = Entry(path)
    part, _ = entry.new_part(seed=True)
    digest = write_part(part, content)
    with transfer.claimed(part, written(part), timeout=0):
        entry.publish(part, version_of(content, mtime_ns=mtime_ns), digest, "fe")
    if idle is not None:
        age(entry.sidecar, idle)
    return Entry(path)


def age(path: Path, seconds: float) -> None:
    """Let a file look as if it had been touched so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
