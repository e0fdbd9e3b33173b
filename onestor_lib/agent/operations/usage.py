"""Operations that tell how much space is there and who uses it."""

from __future__ import annotations

from pathlib import Path

from onestor_lib.agent import mounts, usage
from onestor_lib.agent import promised as promises
from onestor_lib.agent.server import Call


def capacity(call: Call, *, path: str, require_mount: bool = False) -> dict[str, int]:
    """Used, total and free MB of the file system at ``path``, see :func:`mounts.require`."""
    mounts.require(path, required=require_mount, step="monitor datastore")
    return usage.capacity(path)


def promised(call: Call, *, path: str, is_system: bool) -> dict[str, int]:
    """ALLOCATED_MB: what all disks of a system datastore, or all images, may grow to."""
    found = promises.of_disks(Path(path)) if is_system else promises.of_images(Path(path))
    return {"ALLOCATED_MB": -(-found // usage.MB)}


def disks(call: Call, *, path: str) -> list[str]:
    """The ``VM = [ ... ]`` lines of a system datastore."""
    return usage.vm_lines(path)
