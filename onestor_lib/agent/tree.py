"""A VM directory as a list of what is in it, to be made again on another machine.

Temporaries, locks and markers are of this machine and stay; sockets and pipes are made anew by
whoever uses them. Two names of one file, bases mostly, stay two names of one file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import publish, vm_directory
from onestor_lib.agent.errors import InvalidInput, NotAllowed

DIRECTORY, FILE, LINK, SAME = "directory", "file", "link", "same"

_LOCK = re.compile(r"\..+\.lock")
_BASE = re.compile(r"(disk\.[0-9]+)\.base")
_STEP = "read the VM's directory"


class Item(NamedTuple):
    """One entry: ``path`` below the directory; ``target`` of a link, or the other name of a file.

    ``base`` says of which image of the cache a base is another name, and the digest it has.
    """

    path: str
    kind: str
    mode: int = 0
    size: int = 0
    allocated: int = 0
    target: str = ""
    base: dict[str, str] | None = None
    mtime: int = 0  # nanoseconds

    def is_unchanged(self, now: Item | None) -> bool:
        """Whether the entry is ``now`` what it was; its blocks may come to rest elsewhere."""
        return now is not None and now._replace(allocated=self.allocated) == self


def from_json(facts: list[Any]) -> list[Item]:
    """What another machine says is in a directory.

    Raises :class:`InvalidInput` for what could lead out of it: every entry is in a directory that
    came before, never behind a link.
    """
    found: list[Item] = []
    directories, files = {""}, set()
    for item in (Item(*each) for each in facts):
        parent, _, name = item.path.rpartition("/")
        good = name not in ("", ".", "..") and parent in directories and "\0" not in item.path
        if item.kind == SAME:
            good = good and item.target in files
        if not good:
            raise InvalidInput("receive the VM's directory", f"{item.path!r} is no path in it")
        if item.kind == DIRECTORY:
            directories.add(item.path)
        elif item.kind == FILE:
            files.add(item.path)
        found.append(item)
    return found


def marker_name() -> str:
    """A new name for a file that tells whether two directories are one; a temporary of ours."""
    return publish.temporary_name("marker")


def listing(directory: Path, keep: Callable[[str], bool] = lambda path: True) -> list[Item]:
    """What is in the directory and shall be kept, every directory before what is in it.

    Of several names of one file the first one kept is the file; bases come first.
    """
    found: list[Item] = []
    names: dict[tuple[int, int], str] = {}
    _list(directory, "", keep, found, names)
    return found


def _list(
    directory: Path,
    below: str,
    keep: Callable[[str], bool],
    found: list[Item],
    names: dict[tuple[int, int], str],
) -> None:
    with os.scandir(directory / below) as entries:
        ordered = sorted(entries, key=lambda entry: (not _BASE.fullmatch(entry.name), entry.name))
    for entry in ordered:
        path = f"{below}/{entry.name}".lstrip("/")
        if _stays(entry.name) or not keep(path):
            continue
        facts = entry.stat(follow_symlinks=False)
        mode = stat.S_IMODE(facts.st_mode)
        if stat.S_ISDIR(facts.st_mode):
            found.append(Item(path, DIRECTORY, mode))
            _list(directory, path, keep, found, names)
        elif stat.S_ISLNK(facts.st_mode):
            found.append(Item(path, LINK, target=os.readlink(entry.path)))
        elif stat.S_ISREG(facts.st_mode):
            identity = facts.st_dev, facts.st_ino
            if identity in names:
                found.append(Item(path, SAME, target=names[identity]))
                continue
            names[identity] = path
            blocks = min(facts.st_blocks * 512, facts.st_size)
            base = _base_of(directory, path)
            size, mtime = facts.st_size, facts.st_mtime_ns
            found.append(Item(path, FILE, mode, size, blocks, base=base, mtime=mtime))


def _stays(name: str) -> bool:
    return bool(publish.is_temporary(name) or _LOCK.fullmatch(name))


def _base_of(directory: Path, path: str) -> dict[str, str] | None:
    """What the disk's record says of its base."""
    match = _BASE.fullmatch(path)
    base = vm_directory.read_record(directory / match[1]).get("base") if match else None
    if isinstance(base, dict) and set(base) == {"image", "digest"}:
        return {key: str(value) for key, value in base.items()}
    return None


def make_links_relative(directory: Path) -> None:
    """Let links that name the directory itself go on leading into it wherever it goes (D11)."""
    own = str(directory)
    for where, directories, files in os.walk(directory):
        for name in (*directories, *files):
            link = Path(where, name)
            if not link.is_symlink():
                continue
            target = re.sub(r"/{2,}", "/", os.readlink(link))
            if target == own or target.startswith(f"{own}/"):
                temporary = link.with_name(publish.temporary_name(link.name))
                temporary.symlink_to(os.path.relpath(target, where))
                temporary.rename(link)


def make(directory: Path, items: list[Item]) -> None:
    """Make the directories and links of ``items`` in the empty ``directory``."""
    for item in items:
        path = directory / item.path
        if item.kind == DIRECTORY:
            path.mkdir(mode=0o700)
        elif item.kind == LINK:
            path.symlink_to(item.target)


def complete(directory: Path, items: list[Item]) -> None:
    """Once all files are there: second names, modes, and everything on the disk.

    Raises :class:`NotAllowed` when what is there is not what ``items`` say (known failure D7).
    """
    for item in items:
        path = directory / item.path
        if item.kind == SAME:
            os.link(directory / item.target, path, follow_symlinks=False)
        elif item.kind == FILE:
            publish.sync_file(path, mode=item.mode)
    sizes = {item.path: item.size for item in items if item.kind == FILE}
    there = {item.path for item in listing(directory)}
    if there != {item.path for item in items} or any(
        (directory / path).lstat().st_size != size for path, size in sizes.items()
    ):
        raise NotAllowed(_STEP, "it is not what was sent", path=str(directory))
    for item in reversed(items):
        if item.kind == DIRECTORY:
            publish.sync_dir(directory / item.path)
            (directory / item.path).chmod(item.mode)
    publish.sync_dir(directory)
