"""Settings: one table of attributes with type, default and meaning, and where values come from.

A value is looked for, in this order: in the disk's template, in the templates of the image and the
system datastore, in the configuration file, in the table below. The table says which templates may
set what. The files have shell syntax and are read, never sourced: nothing in them is executed or
expanded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.space import MB

_STEP = "read the configuration"


@dataclass(frozen=True)
class Attribute:
    """One setting: ``kind`` says how its value reads, ``templates`` whose template may set it.

    Only what the owner of a "disk", "image" or "system" datastore's template may decide: options
    of ssh or a program's name would be commands of the drivers' user.
    """

    name: str
    kind: str
    default: str
    meaning: str
    templates: tuple[str, ...] = ()


_DISK = ("disk", "image")
_SYSTEM = ("system",)

_COMMON = (
    Attribute("BULK_NICE", "niceness", "10", "nice(1) value of the processes that copy images"),
    Attribute(
        "BULK_IONICE",
        "I/O class",
        "best-effort:7",
        'I/O priority of the same: "idle", "best-effort:0" to "best-effort:7", or "none"',
    ),
    Attribute("STALL_TIMEOUT", "seconds", "60", "longest time a transfer may stand still"),
    Attribute("CONNECT_TIMEOUT", "seconds", "10", "longest wait for a host to accept a connection"),
    Attribute("CONVERT_TIMEOUT", "seconds", "7200", "longest time qemu-img may convert one image"),
    Attribute("HOST_PYTHON", "program", "python3", "the Python (3.9 or newer) of the hosts"),
    Attribute(
        "FRONTEND_PATH",
        "search path",
        "",
        "directories, with colons between, that the front-end searches first for programs",
    ),
    Attribute("HOST_PATH", "search path", "", "the same for the hosts and bridge hosts"),
    Attribute("LOG_FILE", "path", "/var/log/one/onestor.log", "onestor's own log"),
)

TM_ATTRIBUTES = (
    Attribute(
        "SPARSE", "yes/no", "YES", "NO: every disk gets all its blocks when it is made", _DISK
    ),
    Attribute(
        "QCOW2_STANDALONE",
        "yes/no",
        "NO",
        "YES: qcow2 disks are complete images, not overlays on the host's cached base",
        _DISK,
    ),
    Attribute(
        "QCOW2_OPTIONS",
        "qcow2 options",
        "",
        "options for the overlays that qemu-img creates, as in -o cluster_size=2M; when neither the"
        " environment nor this file sets it, /etc/one/tmrc may",
    ),
    Attribute(
        "CHECK_FREE_SPACE",
        "yes/no",
        "YES",
        "fail before a transfer when there is no room for it",
        ("image", "system"),
    ),
    Attribute(
        "MONITOR_ALLOCATED",
        "yes/no",
        "NO",
        "YES: monitoring also tells ALLOCATED_MB, the size of all disks as guests see them",
        _SYSTEM,
    ),
    Attribute(
        "REPLICA_HOST",
        "words",
        "",
        "the cluster's replica host; of several the first that answers serves",
        _SYSTEM,
    ),
    Attribute(
        "REPLICA_COPY_LOCK_TIMEOUT",
        "seconds",
        "600",
        "longest wait for a lock whose holder makes no progress",
    ),
    Attribute(
        "REPLICA_RECOVERY_SNAPS_DIR",
        "path",
        "/var/lib/one/datastores/replica_snaps",
        "where the replica keeps recovery snapshots; what lies there counts as used by the cache",
    ),
    Attribute(
        "REPLICA_SSH_OPTS",
        "options",
        "-c aes128-gcm@openssh.com -m umac-64@openssh.com",
        "options for the ssh client that carries images from the replica to the hosts",
    ),
    Attribute(
        "REPLICA_SSH_FE_OPTS",
        "options",
        "",
        "options for the ssh client that carries images from the image datastore",
    ),
    Attribute(
        "REPLICA_MAX_SIZE_MB",
        "MB",
        "",
        "largest size of all cached images on the replica; when set, REPLICA_MAX_USED_PERC is not"
        " looked at",
        _SYSTEM,
    ),
    Attribute(
        "REPLICA_MAX_USED_PERC",
        "percent",
        "90",
        "the cache makes the replica's file system no fuller than this",
        _SYSTEM,
    ),
    Attribute(
        "HOST_CACHE_MAX_SIZE_MB", "MB", "", "REPLICA_MAX_SIZE_MB for the cache of a host", _SYSTEM
    ),
    Attribute(
        "HOST_CACHE_MAX_USED_PERC",
        "percent",
        "90",
        "REPLICA_MAX_USED_PERC for the cache of a host",
        _SYSTEM,
    ),
    Attribute(
        "CACHE_MIN_AGE",
        "seconds",
        "0",
        "cached images that were used less long ago are not evicted",
        _SYSTEM,
    ),
    Attribute(
        "CACHE_ORPHAN_AGE",
        "seconds",
        "86400",
        "interrupted transfers, and cached images that are no longer in their datastore, go when"
        " they were not used for so long",
        _SYSTEM,
    ),
    Attribute(
        "REPLICA_BWLIMIT_MB_S",
        "MB",
        "",
        "MB a second that image transfers over one link (a sending and a receiving machine) share",
        _SYSTEM,
    ),
    Attribute(
        "KEEP_ON_HOST",
        "yes/no",
        "NO",
        "YES: the files of VMs that are stopped or undeployed stay on their host",
        _SYSTEM,
    ),
    Attribute(
        "CACHE_ENABLE",
        "yes/no",
        "YES",
        "NO: images go past the hosts' caches, and every disk is a complete one",
        ("image", "system"),
    ),
    Attribute(
        "CACHE_MAX_SIZE",
        "MB",
        "",
        "HOST_CACHE_MAX_SIZE_MB by the name that OpenNebula's own cache has for it",
        ("image", "system"),
    ),
    Attribute(
        "CACHE_UPSTREAMS",
        "words",
        "",
        "more hosts like REPLICA_HOST, by the name that OpenNebula's own cache has for them",
        ("image", "system"),
    ),
    Attribute(
        "LIBVIRT_URI", "libvirt URI", "qemu:///system", "how virsh reaches the hosts' hypervisor"
    ),
    Attribute(
        "BLOCK_JOB_TIMEOUT",
        "seconds",
        "60",
        "longest wait for another block job on the disk of a running VM; then it is cancelled",
    ),
    Attribute(
        "FREEZE_TIMEOUT",
        "seconds",
        "5",
        "longest time a guest's file systems are frozen while its disk is copied",
        _SYSTEM,
    ),
    Attribute(
        "SUSPEND_TIMEOUT",
        "seconds",
        "30",
        "longest time a guest stands still while its disk is copied, when there is no other way",
        _SYSTEM,
    ),
    Attribute(
        "SCRIPT_TIMEOUT",
        "seconds",
        "86400",
        "longest time a script of another driver may take: its part in a migration, a restore",
    ),
    *_COMMON,
)

DATASTORE_ATTRIBUTES = (
    Attribute("SPARSE", "yes/no", "YES", "NO: images in the datastore have no holes", ("image",)),
    Attribute("CONVERT", "yes/no", "YES", "convert images to the datastore's DRIVER", ("image",)),
    Attribute(
        "RESTRICTED_DIRS",
        "words",
        "/",
        "directories that images may not be taken from",
        ("image",),
    ),
    Attribute("SAFE_DIRS", "words", "/var/tmp", "the exceptions from RESTRICTED_DIRS", ("image",)),
    Attribute(
        "NO_DECOMPRESS",
        "yes/no",
        "NO",
        "YES: compressed files are stored as they are, as they always are in file datastores",
        ("image",),
    ),
    Attribute(
        "LIMIT_TRANSFER_BW",
        "bytes",
        "",
        "most bytes a second of one import over http, https or ssh; K, M or G may follow",
        ("image",),
    ),
    Attribute(
        "INSECURE",
        "yes/no",
        "NO",
        "YES: images may come from https servers whose certificate cannot be trusted",
        ("image",),
    ),
    Attribute(
        "STAGING_DIR",
        "path",
        "",
        "where new images are put together; without one that is the datastore's own directory",
        ("image",),
    ),
    Attribute(
        "DD_BLOCK_SIZE", "bytes", "1M", "how much of an image is read at once; K or M may follow"
    ),
    Attribute(
        "CHECK_FREE_SPACE", "yes/no", "YES", "fail before a copy when there is no room", ("image",)
    ),
    Attribute(
        "MONITOR_ALLOCATED",
        "yes/no",
        "NO",
        "YES: monitoring also tells ALLOCATED_MB, the size of all images as guests see them",
        ("image",),
    ),
    Attribute(
        "REQUIRE_MOUNT",
        "yes/no",
        "NO",
        "YES: the datastore's directory, or the one above it, must be a mount point. What fstab(5)"
        " says is to be mounted there has to be in any case",
        ("image",),
    ),
    Attribute(
        "UNSUPPORTED_FS_DEFAULT",
        "file system",
        "",
        "file system of a new image that asks for one that is not in SUPPORTED_FS; without one"
        " that is an error",
    ),
    Attribute(
        "STAT_TIMEOUT", "seconds", "10", "longest time to find out the size of a future image"
    ),
    *_COMMON,
)

FILES = {
    "tm": ("etc/tm/onestor/onestorrc", TM_ATTRIBUTES),
    "datastore": ("etc/datastore/onestor/onestor.conf", DATASTORE_ATTRIBUTES),
}


class Settings:
    """The values in force for one action; a bad value is an error that names the attribute."""

    def __init__(
        self,
        attributes: tuple[Attribute, ...],
        values: Mapping[str, str],
        origin: str = "the configuration",
    ) -> None:
        self._attributes = {each.name: each for each in attributes}
        # Empty is the default, but for options: no options at all is a choice one can make.
        may_be_empty = {each.name for each in attributes if each.kind == "options"}
        self._values = {
            name: value for name, value in values.items() if value.strip() or name in may_be_empty
        }
        self._origins = dict.fromkeys(self._values, origin)

    def over(self, whose: str, read: Callable[[str], str], origin: str) -> Settings:
        """These settings with the values of a template taking precedence.

        ``whose`` template it is ("disk", "image", "system") decides which attributes count;
        ``read`` gives the text of one, "" when it is not set.
        """
        merged = Settings(tuple(self._attributes.values()), self._values)
        merged._origins = dict(self._origins)
        for name, attribute in self._attributes.items():
            if whose in attribute.templates and (value := read(name)).strip():
                merged._values[name] = value
                merged._origins[name] = origin
        return merged

    def yes(self, name: str) -> bool:
        value = self._text(name).upper()
        if value not in ("YES", "NO"):
            raise self._bad(name, "YES or NO")
        return value == "YES"

    def seconds(self, name: str, *, least: int = 1) -> float:
        return float(self._number(name, least, 10**9, "seconds"))

    def number(self, name: str, least: int, most: int) -> int:
        return self._number(name, least, most, self._attributes[name].kind)

    def megabytes(self, name: str) -> int | None:
        """The value in bytes; None when there is none."""
        return self._number(name, 1, 10**12, "MB") * MB if self._text(name) else None

    def size(self, name: str, least: int, most: int) -> int:
        """A number of bytes, which K, M or G may follow; 0 when there is none."""
        if not (value := self._text(name)):
            return 0
        match = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)", value)
        shift = {"": 0, "k": 10, "m": 20, "g": 30}
        found = int(match[1]) << shift[match[2].lower()] if match else -1
        if not least <= found <= most:
            raise self._bad(name, f"a number of bytes from {least} to {most} (K, M, G may follow)")
        return found

    def words(self, name: str) -> list[str]:
        """Words with blanks between; commas count as such."""
        return self._text(name).replace(",", " ").split()

    def search_path(self, name: str) -> str:
        """Directories with colons between, as in $PATH."""
        return self.text(name, "(/[^:]*(:/[^:]*)*)?", "absolute paths with colons between")

    def options(self, name: str) -> list[str]:
        """Command line options; quotes group words as in a shell, nothing else has a meaning."""
        try:
            return shlex.split(self._text(name))
        except ValueError as error:
            raise self._bad(name, f"options ({error})") from None

    def program(self, name: str) -> str:
        return self.text(name, r"[A-Za-z0-9_/][A-Za-z0-9_./-]*", "the name or path of a program")

    def path(self, name: str) -> Path:
        return Path(self.text(name, "/.*", "an absolute path"))

    def text(self, name: str, pattern: str, expected: str) -> str:
        """A value that must match ``pattern``, which ``expected`` puts in words."""
        value = self._text(name)
        if not re.fullmatch(pattern, value):
            raise self._bad(name, expected)
        return value

    def _number(self, name: str, least: int, most: int, unit: str) -> int:
        value = self._text(name)
        if not re.fullmatch(r"[0-9]{1,13}", value) or not least <= int(value) <= most:
            above = f"{least} or more" if most >= 10**9 else f"{least} to {most}"
            raise self._bad(name, f"a number ({unit}), {above}")
        return int(value)

    def _text(self, name: str) -> str:
        return self._values.get(name, self._attributes[name].default).strip()

    def _bad(self, name: str, expected: str) -> InvalidInput:
        origin = self._origins.get(name, "the defaults")
        return InvalidInput(
            "read the settings", f"{name} of {origin} is {self._text(name)!r}, not {expected}"
        )


def load(kind: str, remotes: Path) -> Settings:
    """The settings of "tm" or "datastore" actions from the file below ``remotes``."""
    file, attributes = FILES[kind]
    path = remotes / file
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings(attributes, {})
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(_STEP, str(error), path=str(path)) from None
    return Settings(attributes, parse(text, str(path)), str(path))


def parse(text: str, path: str) -> dict[str, str]:
    """The assignments of a file in shell syntax; raises :class:`InvalidInput` with the line."""
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InvalidInput(_STEP, f"line {number}: {error}", path=path) from None
        if words[:1] == ["export"]:
            words = words[1:]
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if len(words) > 1 or not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidInput(_STEP, f"line {number} is no assignment", path=path)
        values[name] = value
    return values


def assignment_in(path: Path, name: str) -> str:
    """The last assignment to ``name`` in somebody else's shell file; "" when there is none.

    Its other lines are not our business, and no file is no assignment.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = ""
    for line in text.splitlines():
        match = re.fullmatch(rf"\s*(?:export\s+)?{re.escape(name)}=(.*)", line)
        if match:
            try:
                found = " ".join(shlex.split(match[1], comments=True))
            except ValueError:
                continue
    return found.strip()
