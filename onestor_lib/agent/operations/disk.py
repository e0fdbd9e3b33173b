"""Operations on the disks of VMs: put one in place, delete one, delete a VM's directory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, new_disk, placing, publish, space, vm_directory
from onestor_lib.agent.cache import fill
from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.server import Call


def place(
    call: Call,
    *,
    path: str,
    shape: dict[str, Any],
    source: dict[str, Any],
    image: dict[str, Any] | None,
    recovered: dict[str, Any] | None = None,
    check_space: bool,
    record: dict[str, Any],
    retry: bool,
    lock_timeout: float,
) -> dict[str, Any]:
    """Put a complete disk at ``path``, or leave everything as it is.

    ``source`` describes the image: size and allocated bytes, and its snapshots by id; ``image``
    says what to have in the cache, None to go past it. The front-end is asked for the ``content``
    of what has to come, which it has sent into the temporary named in the question, and, at the
    very end, whether the disk is ``wanted`` still (contract section 8, trap 8). ``record`` is kept
    beside the disk; ``retry`` says that the VM has not run since the last try. ``recovered`` is the
    recovery copy that the disk shall be instead of a new one (``NewDisk.recover``). Returns whether
    the image was in the cache ("hit", "miss", or "none" for past it).
    """
    disk, form = Path(path), new_disk.Shape(**shape)
    directory = disk.parent
    with placing.held(call, disk, record=record, retry=retry, lock_timeout=lock_timeout) as held:
        needed = new_disk.needed(source, form, directory, is_cached=image is not None)
        if check_space:
            space.require(directory, needed)
        crashpoints.reach("place.prepared")
        had = _cached(call, image, directory.parent.parent, needed, held.stack)
        new = new_disk.NewDisk(call, disk, form, source, check_space, held.stack)
        base = {"image": str(had.entry.path), "digest": had.record.digest} if had else None
        if recovered is not None:
            base = new.recover(recovered, had.entry.image if had else None, base)
        else:
            new.prepare(had.entry.image if had else None)
            base = base if form.thin else None
        if base:
            record["base"] = base
        held.take(new.put_in_place)
    return {"cache": "none" if had is None else "hit" if had.is_hit else "miss"}


def delete(call: Call, *, path: str) -> dict[str, bool]:
    """Remove a disk with all that belongs to it; nothing there is success (contract 2.4)."""
    publish.sweep(Path(path).parent)
    return {"removed": vm_directory.remove_disk(Path(path))}


def delete_directory(call: Call, *, path: str) -> dict[str, bool]:
    """Remove a VM's directory; nothing there is success (contract 2.4)."""
    removed = vm_directory.remove(Path(path))
    publish.sweep(Path(path).parent)
    return {"removed": removed}


def _cached(
    call: Call,
    image: dict[str, Any] | None,
    root: Path,
    headroom: int,
    stack: contextlib.ExitStack,
) -> fill.Had | None:
    """The image in this machine's cache, held until ``stack`` ends; None to do without.

    ``headroom`` bytes will be needed beside it.

    Whatever is wrong with the cache must not fail the VM: one warning, then the image comes past
    it (known failure A18).
    """
    if image is None:
        return None
    try:
        return stack.enter_context(fill.held(call, fill.Wanted.from_json(image, headroom), root))
    except OnestorError as error:
        call.log("WARN", f"the image goes past the cache of {os.uname().nodename}: {error}")
        return None
