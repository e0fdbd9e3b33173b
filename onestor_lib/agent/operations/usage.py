"""Operations that tell how much space is there and who uses it."""

from __future__ import annotations

from onestor_lib.agent import mounts, usage
from onestor_lib.agent.server import Call


def capacity(call: Call, *, path: str, require_mount: bool = False) -> dict[str, int]:
    """Used, total and free MB of the file system at ``path``, see :func:`mounts.require`."""
    mounts.require(path, required=require_mount, step="monitor datastore")
    return usage.capacity(path)


def disks(call: Call, *, path: str) -> list[str]:
    """The ``VM = [ ... ]`` lines of a system datastore."""
    return usage.vm_lines(path)
