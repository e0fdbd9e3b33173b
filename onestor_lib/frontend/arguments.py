"""The words of an action: ``host:path`` locations, paths of VM disks, ids (contract section 2.2).

Everything is checked before anything happens: a path is absolute, has no ``..`` and no control
character, and names a VM directory or something in it; a host cannot be taken for an option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onestor_lib.agent.errors import InvalidInput

_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}")  # as long as a name can be (RFC 1035)
_DISK = re.compile(r"disk\.([0-9]+)")
_STEP = "read the arguments"


@dataclass(frozen=True)
class Location:
    """A path on a host, without doubled slashes."""

    host: str
    path: str


@dataclass(frozen=True)
class VmPath:
    """A VM directory, or one file in it: ``<datastores>/<datastore>/<vm>[/<name>]``."""

    host: str
    path: str
    datastore: str  # the system datastore's directory
    vm_id: int
    name: str  # "disk.0", "kernel", "initrd"; "" for the directory itself

    @property
    def disk_id(self) -> int | None:
        """The disk's number; None for kernel, initrd and the directory."""
        match = _DISK.fullmatch(self.name)
        return int(match[1]) if match else None


def arg_host(word: str) -> str:
    """The host of ``host:path``; "" when there is none."""
    host, colon, _ = word.partition(":/")
    return host.strip("[]") if colon else ""


def arg_path(word: str) -> str:
    """The path of ``host:path``, or the path itself, without doubled slashes."""
    host, colon, rest = word.partition(":/")
    return re.sub(r"/{2,}", "/", "/" + rest if colon else host)


def location(word: str) -> Location:
    """Parse ``host:path``; raises :class:`InvalidInput`."""
    name = arg_host(word)
    if not name:
        raise InvalidInput(_STEP, f"no host in {word!r}")
    return Location(host(name), checked_path(arg_path(word)))


def host(word: str) -> str:
    """``word`` when it is the name or address of a host; raises :class:`InvalidInput`."""
    if not _HOST.fullmatch(word):
        raise InvalidInput(_STEP, f"{word!r} is no host")
    return word


def checked_path(path: str) -> str:
    """``path`` without doubled slashes; raises :class:`InvalidInput` for what is no clean path."""
    clean = re.sub(r"/{2,}", "/", path)
    if not clean.startswith("/"):
        raise InvalidInput(_STEP, f"{path!r} is no absolute path")
    if any(ord(character) < 32 or ord(character) == 127 for character in clean):
        raise InvalidInput(_STEP, f"control character in {path!r}")
    if ".." in clean.split("/"):
        raise InvalidInput(_STEP, f"parent reference in {path!r}")
    return clean


def vm_path(word: str, vm_id: int) -> VmPath:
    """Parse the location of a VM directory or of a file in it; ``vm_id`` must be in the path.

    That check is what stands between a wrong argument and the removal of somebody else's files.
    """
    where = location(word)
    parts = where.path.rstrip("/").split("/")
    if parts[-1] == str(vm_id):
        name, parts = "", parts[:-1]
    elif len(parts) > 2 and parts[-2] == str(vm_id):
        name, parts = parts[-1], parts[:-2]
    else:
        raise InvalidInput(_STEP, f"{word!r} is not in the directory of VM {vm_id}")
    datastore = "/".join(parts)
    if not re.fullmatch(r"[0-9]+", parts[-1]):
        raise InvalidInput(_STEP, f"{word!r} is not in the directory of a datastore")
    if name and not _DISK.fullmatch(name) and name not in ("kernel", "initrd"):
        raise InvalidInput(_STEP, f"{name!r} is neither a disk nor a kernel")
    path = f"{datastore}/{vm_id}/{name}".rstrip("/")
    return VmPath(where.host, path, datastore, vm_id, name)


def number(word: str, name: str) -> int:
    """A non-negative decimal number; raises :class:`InvalidInput` naming what it should be."""
    if not re.fullmatch(r"\d{1,18}", word, re.ASCII):
        raise InvalidInput(_STEP, f"{name} is {word!r}, not a number")
    return int(word)


def words(argv: Sequence[str], names: str) -> list[str]:
    """``argv`` when it has as many words as ``names``; else :class:`InvalidInput`."""
    expected = names.split()
    if len(argv) != len(expected):
        raise InvalidInput(_STEP, f"expected {' '.join(expected)}, got {len(argv)} words")
    return list(argv)
