"""Which file systems new images and disks may have, and what mkfs is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import config
from onestor_lib.frontend.log import Log

SWAP = "swap"

_STEP = "choose the file system"
_FILE = "etc/datastore/datastore.conf"  # OpenNebula's own, below remotes
_SUPPORTED = "ext4,ext3,ext2,xfs"  # what that says when it comes from the package


class Filesystem(NamedTuple):
    """A file system by name ("" for none), and the options of its mkfs."""

    name: str
    options: list[str]


def choose(name: str, remotes: Path, log: Log, *, default: str = "") -> Filesystem:
    """The file system ``name`` if it is supported; raises :class:`InvalidInput` (J1).

    ``default`` takes the place of one that is not, as OpenNebula's manual has it.
    """
    if not name or name == SWAP:
        return Filesystem(name, [])
    if not re.fullmatch(r"[a-z0-9]+", name):
        raise InvalidInput(_STEP, f"FS is {name!r}, not a name of lower-case letters and digits")
    file = remotes / _FILE
    supported = re.split(r"[,\s]+", config.assignment_in(file, "SUPPORTED_FS") or _SUPPORTED)
    if name not in supported:
        allowed = ",".join(filter(None, supported))
        cause = f"FS={name} is not in SUPPORTED_FS={allowed}"
        if not default:
            raise InvalidInput(_STEP, cause)
        log.warn(f"{cause}; {default} takes its place (UNSUPPORTED_FS_DEFAULT)")
        name = default
    return Filesystem(name, _options(file, name))


def _options(file: Path, name: str) -> list[str]:
    """FS_OPTS_<FS>, whichever way the name is written there."""
    for variable in (f"FS_OPTS_{name}", f"FS_OPTS_{name.upper()}"):
        if value := config.assignment_in(file, variable):
            try:
                return shlex.split(value)
            except ValueError as error:
                raise InvalidInput(_STEP, f"{variable}: {error}", path=str(file)) from None
    return []
