"""The VM directory ``<system datastore>/<vm>/``: its names, and what lies there already.

Beside each ``disk.N`` we keep a small *record* of what put it there. It tells a retry's own
leftover, which may be replaced, from a file nobody can account for, which is set aside: it may be
the only copy of a persistent disk whose way back failed (contract section 8, traps 23 and 25).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, locks, publish

MARKER = ".monitor"  # tells the host probe what a datastore's directory is (contract section 4.1)
DRIVER = "onestor"  # in a system datastore: whose monitor_ds to run
REPLICA = "replica"  # in an image datastore: a replica's cache


def record_path(disk: Path) -> Path:
    """Where the record of ``disk`` lies."""
    return disk.parent / f".{disk.name}.record"


def lock_path(disk: Path) -> Path:
    """The lock that whoever puts ``disk`` in place holds."""
    return disk.parent / f".{disk.name}.lock"


def snapshots_path(disk: Path) -> Path:
    """The directory of the disk's snapshots."""
    return disk.parent / f"{disk.name}.snap"


def recovery_note(disk: Path) -> Path:
    """Where it is written down when a recovery copy of ``disk`` was made last."""
    return disk.parent / f".{disk.name}.recovery"


def outgoing(disk: Path) -> publish.Temporary:
    """A temporary for the state of ``disk`` that goes to a replica."""
    return publish.Temporary(_outgoing(disk))


def remove_outgoing(disk: Path) -> None:
    """Remove such temporaries of anybody: the disk is not wanted any more, nor is its state."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(disk.parent):
            if publish.final_name(name) == _outgoing(disk).name:
                publish.remove(disk.parent / name)


def _outgoing(disk: Path) -> Path:
    return disk.parent / f"{disk.name}.outgoing"


def is_disk(name: str) -> bool:
    """Whether ``name`` is that of a VM's disk."""
    return re.fullmatch(r"disk\.[0-9]+", name) is not None


def is_snapshot(name: str) -> bool:
    """Whether a file in the directory of the snapshots is one, by its name: an id of any size."""
    return name.isascii() and name.isdigit()


def base_path(disk: Path) -> Path:
    """The hard link to the cached image that ``disk`` is an overlay on."""
    return disk.parent / f"{disk.name}.base"


def read_record(disk: Path) -> dict[str, Any]:
    """What the record says; nothing when it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(record_path(disk).read_bytes())
        if isinstance(record, dict):
            return record
    return {}


def placement(place: Path) -> int:
    """The last of the VM's placements that made something there, a disk or the directory of some.

    By the records (SEQ of the history, contract section 5): -1 when there are none, and larger
    than any when one cannot be read.
    """
    if is_disk(place.name):
        return max(_placements(place.parent, [place.name]), default=-1)
    try:
        names = filter(is_disk, os.listdir(place))
    except FileNotFoundError:
        return -1
    return max(_placements(place, names), default=-1)


def first_placement(directory: Path, disks: Iterable[str]) -> int:
    """The earliest placement that made one of these disks; -1 when there are no records."""
    return min(_placements(directory, disks), default=-1)


def _placements(directory: Path, disks: Iterable[str]) -> Iterator[int]:
    for name in disks:
        if os.path.lexists(record_path(directory / name)):
            try:
                yield int(read_record(directory / name)["sequence"])
            except (KeyError, TypeError, ValueError):
                yield sys.maxsize


def write_record(disk: Path, record: dict[str, Any]) -> None:
    """Replace the record of ``disk``."""
    publish.write_file(record_path(disk), json.dumps(record).encode("ascii") + b"\n")


def mark(datastore: Path, name: str) -> None:
    """Tell the host's probe what this directory is; never by an empty marker."""
    marker = datastore / MARKER
    wanted = f"{name}\n".encode("ascii")
    with contextlib.suppress(OSError):
        if marker.read_bytes() == wanted:
            return
    publish.write_file(marker, wanted)


def unmark(datastore: Path, name: str) -> None:
    """Give up a marker of ours: another driver's ``name`` takes its place, or none ("")."""
    marker = datastore / MARKER
    with contextlib.suppress(FileNotFoundError):
        if marker.read_bytes().strip() == DRIVER.encode("ascii"):
            if name:
                mark(datastore, name)
            else:
                publish.remove(marker)


def forget_record(disk: Path) -> None:
    """Remove the record of a disk that is not there after all."""
    if not os.path.lexists(disk):
        publish.remove(record_path(disk))


def forget_base(disk: Path) -> None:
    """Remove the base of a disk that is not there after all."""
    if not os.path.lexists(disk):
        publish.remove(base_path(disk))


def forget_snapshots(disk: Path) -> None:
    """Remove the snapshots of a disk that is not there after all."""
    if not os.path.lexists(disk):
        publish.remove(snapshots_path(disk))


@contextlib.contextmanager
def lock(disk: Path, *, purpose: str, timeout: float) -> Iterator[None]:
    """Hold the lock of ``disk``; when the block fails, its file goes from a directory without more.

    Only the holder may do that: whoever waits looks whether the file is still the one it waits
    for (``onestor_lib.agent.locks``).
    """
    path = lock_path(disk)
    with locks.exclusive(path, purpose=purpose, timeout=timeout):
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if os.listdir(disk.parent) == [path.name]:
                    path.unlink()
            raise


@contextlib.contextmanager
def created(directory: Path) -> Iterator[None]:
    """Make a VM's directory with its parents; when the block fails, leave no new empty one."""
    new = []
    for path in (directory, *directory.parents):
        if path.exists():
            break
        new.append(path)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                _remove_if_bare(path)
        raise


def _remove_if_bare(path: Path) -> None:
    """Remove a directory that holds nothing, or nothing but our marker."""
    if marked := os.listdir(path) == [MARKER]:
        (path / MARKER).unlink()
    try:
        path.rmdir()
    except OSError:
        if marked:
            mark(path, DRIVER)  # another VM has come meanwhile and relies on it
        raise


def set_aside(disk: Path) -> Path:
    """A new directory for something unknown in the place of ``disk``; nothing of ours touches it.

    Files keep their names in it: an overlay finds its base beside it.
    """
    aside = unknown(disk)
    aside.mkdir()
    return aside


def unknown(path: Path) -> Path:
    """A new name beside ``path`` for something there that nobody can account for."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return path.parent / f".{path.name}.{stamp}-{os.getpid()}.unknown"


def remove_disk(disk: Path) -> bool:
    """Remove a disk and all that belongs to it alone; whether there was anything.

    The disk goes last but for its base, without which it would have other content.
    """
    there = False
    remove_outgoing(disk)
    for path in (snapshots_path(disk), record_path(disk), recovery_note(disk)):
        there |= publish.remove(path)
    crashpoints.reach("delete.disk")
    there |= publish.remove(disk)
    there |= publish.remove(base_path(disk))
    if there:
        publish.sync_dir(disk.parent)
    return there


def remove(directory: Path) -> bool:
    """Remove a whole VM directory; whether it was there.

    It disappears under its name in one step, so that a clone still at work for this VM finds no
    directory to publish in (contract section 8, trap 8); what is left of a removal that is killed
    goes with the next sweep.
    """
    there = publish.take_away(directory)
    if there:
        publish.sync_dir(directory.parent)
    crashpoints.reach("delete.removed")
    return there
