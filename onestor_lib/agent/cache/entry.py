"""One entry of the cache: its files, and the steps in which they change.

For the image ``<name>`` lie in the directory of its image datastore::

    <name>                  the entry: read-only, its other hard links are bases of VMs
    .<name>.sidecar         what it is (``record``); its time stamp is when it was last used
    .<name>.lock            exclusive while it changes, shared while it is read or linked
    .<name>.fill            a fill under way: the space it has reserved, the name of its part
    .<name>.<random>.part   what has come so far, kept for the next try when a fill breaks off
    ...part.chunks          the manifest of it, once it is complete
    ...part.progress        how far it is complete, for those who send it on meanwhile

A file without a sidecar, or one that can be written to, is not ours: an origin, on a machine that
has the image datastore itself, or another driver's. The entry's file is then called
``.<name>.image`` and the other one is never touched. It keeps that name when the other file goes,
so that what a cache has is found, counted and evicted all the same.

The sidecar is bound to inode and time of the file it speaks of and is written first: until the
rename that follows, or when that never happens, it fits no file, and a file it does not fit is no
hit. So the two need no common step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, extents, publish, transfer
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.record import Record
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.errors import CacheFailed
from onestor_lib.agent.version import Version

_IMAGE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}")
_HIDDEN = ".image"
CHUNKS = ".chunks"  # how the name of a part's manifest ends
_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.part(\.(chunks|progress))?")
_NOTE = re.compile(r"\.(?P<name>.+)\.(?P<kind>sidecar|fill)")


class Entry:
    """The entry of the image ``path``, whether or not it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = path.parent
        own, hidden = path.name, f"{path.name}{_HIDDEN}"
        if os.path.lexists(self._directory / f".{hidden}.sidecar") or _is_foreign(
            path, self._beside("sidecar")
        ):
            own = hidden
        self.is_hidden = own == hidden
        self.image = self._directory / (f".{own}" if self.is_hidden else own)
        self.sidecar = self._directory / f".{own}.sidecar"
        self.lock = self._beside("lock")
        self.journal = self._beside("fill")

    def find(self, version: Version) -> Record | None:
        """The record of the entry if it is complete and of this version: a hit.

        Nothing is read but the record (known failure A16).
        """
        found = record.read(self.sidecar)
        if found is None or found.version != version or not found.describes(self.image):
            return None
        return found

    def mark_used(self) -> None:
        """Record the use; file access times cannot be relied upon (known failure B3)."""
        with contextlib.suppress(OSError):
            os.utime(self.sidecar)

    def reserve(self, size: int) -> None:
        """Note that a fill for ``size`` bytes begins; a part that lies here stays known."""
        note = {**self.read_journal(), "reserved": size}
        publish.write_file(self.journal, json.dumps(note).encode("ascii") + b"\n")

    def read_journal(self) -> dict[str, Any]:
        """What the journal says; nothing when there is no fill or the note is damaged."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            note = json.loads(self.journal.read_bytes())
            if isinstance(note, dict):
                return note
        return {}

    def part(self) -> Path | None:
        """The unfinished file of a fill; None when there is none."""
        name = str(self.read_journal().get("part", ""))
        match = _PART.fullmatch(name)
        if match and match["name"] == self.path.name and os.path.lexists(self._directory / name):
            return self._directory / name
        return None

    def useful(self, most: int) -> int:
        """Bytes that an earlier try or the entry's older version has on the disk, at ``most``.

        What has more has other content or lacks the holes: to be rid of it costs more than it
        saves. An earlier try that is of no use is removed.
        """
        for path in (self.part(), self.image):
            if path and path.exists():
                size = path.stat().st_blocks * 512
                if size <= most:
                    return size
                if path != self.image:
                    self._remove_parts()
        return 0

    def new_part(self, *, seed: bool) -> tuple[Path, bool]:
        """The file to fill, and whether content is in it that may be of use.

        That is what an earlier try has left or, failing that and with ``seed``, a copy of the
        entry's older version: what is the same needs not come again. The name is new each time, so
        that a writer of an earlier try finds nothing to write to (``locks.become_writer``).
        """
        old = self.part()
        new = self._directory / f".{self.path.name}.{os.urandom(8).hex()}.part"
        note = {**self.read_journal(), "part": new.name}
        publish.write_file(self.journal, json.dumps(note).encode("ascii") + b"\n")
        crashpoints.reach("fill.noted")
        if old:
            for companion in (chunks_of(old), progress_of(chunks_of(old))):
                publish.remove(companion)
            old.chmod(0o600)  # it may have been complete when its fill was killed
            old.rename(new)
            return new, True
        target = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            return new, seed and self._seed(target)
        finally:
            os.close(target)

    def _seed(self, target: int) -> bool:
        """Copy what the entry holds so far into ``target``; whether there was anything."""
        try:
            source = os.open(self.image, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            extents.copy(source, target, os.fstat(source).st_size, sparse=True)
        finally:
            os.close(source)
        return True

    def publish(self, part: Path, version: Version, digest: str, source: str) -> None:
        """Make the complete ``part`` the entry; ``digest`` is what its receiver has found.

        The caller keeps other writers from the part (``transfer.claimed``). Raises
        :class:`CacheFailed` when the part is not what has been received.
        """
        try:
            manifest = Manifest(version.size, chunks_of(part).read_bytes())
        except (OSError, ValueError):
            manifest = Manifest(0)
        if manifest.size != version.size or manifest.digest() != digest:
            raise CacheFailed("fill the cache", "the manifest is not there", path=str(part))
        publish.sync_file(part, mode=0o444)
        crashpoints.reach("fill.synced")
        local = Version.of(part.stat())
        if local.size != version.size:
            raise CacheFailed("fill the cache", "the file has another size", path=str(part))
        Record.now(version, digest, local, source).write(self.sidecar, manifest)
        crashpoints.reach("fill.recorded")
        self._finish(part)

    def finish(self) -> None:
        """Do the rest of a fill whose process died behind the writing of the sidecar."""
        part, known = self.part(), record.read(self.sidecar)
        if part and known and known.describes(part):
            with transfer.claimed(part, known.local.to_json(), timeout=0):
                self._finish(part)

    def _finish(self, part: Path) -> None:
        if self.image == self.path and _is_foreign(self.path, self.sidecar):
            cause = "a file that is not ours has come to lie there"
            raise CacheFailed("fill the cache", cause, path=str(self.path))
        part.rename(self.image)
        publish.sync_dir(self._directory)
        crashpoints.reach("fill.renamed")
        self.give_up()  # the manifest, and a part that a kill left without its note

    def give_up(self) -> None:
        """Remove what fills have left."""
        self._remove_parts()
        publish.remove(self.journal)

    def _remove_parts(self) -> None:
        for path in leftovers(self._directory, self.path.name):
            publish.remove(path)

    def drop(self) -> None:
        """Remove the entry with all that belongs to it; the lock file stays (known failure B11).

        The image goes first: a sidecar without one is a miss, a file without one an origin.
        """
        publish.remove(self.image)
        crashpoints.reach("evict.image")
        self.give_up()
        publish.remove(self.sidecar)
        crashpoints.reach("evict.sidecar")

    def is_remainder(self) -> bool:
        """Whether there is a sidecar, but no file that it could speak of."""
        if os.path.lexists(self.image) or not os.path.lexists(self.sidecar):
            return False
        return not leftovers(self._directory, self.path.name)

    def _beside(self, kind: str) -> Path:
        return self._directory / f".{self.path.name}.{kind}"


def _is_foreign(path: Path, sidecar: Path) -> bool:
    """Whether a file that lies at the image's path is not one of ours."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return False
    writable = facts.st_mode & 0o222
    return bool(writable) or not os.path.lexists(sidecar)


def may_be_cached(path: Path, root: Path) -> bool:
    """Whether ``path`` is ``<root>/<id>/<image>``: what lies elsewhere has no place in a cache."""
    directory = path.parent
    good = _IMAGE.fullmatch(path.name) and not path.name.endswith(_HIDDEN)
    return bool(good) and directory.parent == root and directory.name.isdecimal()


def names_in(directory: Path) -> set[str]:
    """The names of all images that have an entry, or parts of one, in ``directory``."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(directory) as files:
        for file in files:
            match = _NOTE.fullmatch(file.name) or _PART.fullmatch(file.name)
            if match:
                name = match["name"]
                found.add(name[: -len(_HIDDEN)] if name.endswith(_HIDDEN) else name)
    return found


def leftovers(directory: Path, name: str) -> list[Path]:
    """The parts, and their manifests, that fills of the image ``name`` have left."""
    with contextlib.suppress(OSError), os.scandir(directory) as files:
        matches = [_PART.fullmatch(file.name) for file in files]
        return [directory / match[0] for match in matches if match and match["name"] == name]
    return []


def chunks_of(part: Path) -> Path:
    """Where the receiver of a part writes its manifest."""
    return part.with_name(f"{part.name}{CHUNKS}")


def progress_of(chunks: Path) -> Path:
    """Where the receiver that writes the manifest ``chunks`` tells how far it is."""
    return chunks.with_name(f"{chunks.name[: -len(CHUNKS)]}.progress")


def last_used(path: Path) -> float:
    """The time stamp of a sidecar or journal, in seconds since the epoch; now when it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
