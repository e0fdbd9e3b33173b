"""Space: what a file system has, and what the disks of the VMs in a datastore use.

The second is the host probe ``monitor_ds``, which runs for every datastore on every host: no child
process, no import beyond the standard library's smallest, and code that Python 3.6 still reads,
because it runs with whatever python3 the host has (contract section 4.1).
"""

import base64
import os
import re
from typing import Dict, Iterable, Iterator, List, Tuple

MB = 1 << 20

_DISK = re.compile(r"disk\.([0-9]+)$")
_NUMBER = re.compile(r"[0-9]+$")


def capacity(path: str) -> Dict[str, int]:
    """USED_MB, TOTAL_MB and FREE_MB of the file system at ``path``, as df(1) has them.

    A datastore directory that does not exist yet (nothing was stored so far) has the figures of
    its parent, which is where it will be made; anything else that is missing is an error.
    """
    try:
        figures = os.statvfs(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise
        figures = os.statvfs(os.path.dirname(path.rstrip("/")))
    unit = figures.f_frsize
    return {
        "USED_MB": (figures.f_blocks - figures.f_bfree) * unit // MB,
        "TOTAL_MB": figures.f_blocks * unit // MB,
        "FREE_MB": figures.f_bavail * unit // MB,
    }


def capacity_text(figures: Dict[str, int]) -> str:
    """The answer of the datastore action ``monitor`` (contract section 1.3)."""
    return "\n".join("%s=%d" % pair for pair in figures.items())


def vm_lines(datastore: str) -> List[str]:
    """One ``VM = [ ... ]`` line for each VM directory in ``datastore`` (contract section 4.1)."""
    lines = []
    for vm_id, directory in sorted(_numbered(datastore)):
        text = "\n".join(_disk_lines(directory))
        if text:
            encoded = base64.b64encode(text.encode("ascii")).decode("ascii")
            lines.append('VM = [ ID = %d, MONITOR = "%s" ]' % (vm_id, encoded))
    return lines


def _disk_lines(directory: str) -> Iterator[str]:
    """DISK_SIZE and SNAPSHOT_SIZE of every disk; what vanishes meanwhile is left out."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    present = set(names)
    for name in sorted(names):
        match = _DISK.match(name)
        if not match:
            continue
        snapshots = name + ".snap"
        members = {}  # type: Dict[Tuple[int, int], int]
        copies = []  # type: List[Tuple[int, int]]
        found = _measure(os.path.join(directory, name), members)
        if snapshots in present:
            copies = _snapshots(os.path.join(directory, snapshots), members)
        if found:
            yield "DISK_SIZE = [ ID=%s, SIZE=%d ]" % (match.group(1), _megabytes(members.values()))
        for snapshot, size in copies:
            yield "SNAPSHOT_SIZE = [ ID=%d, DISK_ID=%s, SIZE=%d ]" % (
                snapshot,
                match.group(1),
                size,
            )
        note = "." + name + ".recovery"
        if note in present:
            point = _point(os.path.join(directory, note))
            if point:
                yield 'DISK_RECOVERY_SNAPSHOT = [ ID=%s, TIMESTAMP="%d" ]' % (match.group(1), point)


def _point(path: str) -> int:
    """When the last recovery copy was made, in seconds since 1970; 0 when that cannot be read."""
    try:
        with open(path, encoding="ascii") as note:
            return int(note.read(32))
    except (OSError, ValueError):
        return 0


def _measure(path: str, members: Dict[Tuple[int, int], int]) -> bool:
    """Add the file's allocated bytes to ``members``; False when it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    members[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
    return True


def _snapshots(directory: str, members: Dict[Tuple[int, int], int]) -> List[Tuple[int, int]]:
    """(id, MB) of each snapshot; other files of a chain count for the disk, each once.

    Numbers are snapshots. ``base`` and ``base.1`` are the disk itself in the recovery layout of
    the ssh driver; a link that leads out of the directory (a base shared with other VMs) is not
    this VM's space.
    """
    sizes = []
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    for entry in entries:
        try:
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        key = (facts.st_dev, facts.st_ino)
        if not _NUMBER.match(entry.name):
            members[key] = facts.st_blocks * 512
        elif key not in members:  # else the disk is a link to it: the newest of a chain
            sizes.append((int(entry.name), _megabytes([facts.st_blocks * 512])))
    return sorted(sizes)


def _numbered(directory: str) -> Iterator[Tuple[int, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if _NUMBER.match(entry.name) and os.path.isdir(entry.path):
                yield int(entry.name), entry.path


def _megabytes(sizes: Iterable[int]) -> int:
    """Bytes in MB, rounded up as du(1) does."""
    return -(-sum(sizes) // MB)
