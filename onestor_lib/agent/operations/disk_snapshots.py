"""Snapshots of a VM's disk: the files ``disk.N.snap/<id>``.

A snapshot is a copy of what the guest has written: of the topmost file of the disk. That of a thin
disk names the same base, which it finds by a link beside it; so it costs what has been written
since the clone, and no snapshot needs another. What other drivers have left, links to chains of
files, is copied with all that lies below it.
"""

from __future__ import annotations

import os
from typing import Any

from onestor_lib.agent import (
    chain,
    crashpoints,
    extents,
    live_copy,
    priority,
    publish,
    qemu_img,
    space,
)
from onestor_lib.agent.disk_files import held
from onestor_lib.agent.errors import NotAllowed
from onestor_lib.agent.server import Call


def create(
    call: Call,
    *,
    path: str,
    image_format: str,
    snapshot: int,
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> None:
    """Keep the disk of a VM that does not run as it is now.

    ``timeout`` is that of qemu-img, ``lock_timeout`` that of the disk's lock, both in seconds.
    """
    with held(call, path, image_format, "create snapshot", lock_timeout) as disk:
        priority.lower(**bulk)
        layers = disk.layers(disk.file)
        bitmaps = disk.require_unused()
        if disk.is_made_of(disk.snapshot(snapshot), layers):
            disk.warn_of_backups(bitmaps)
            disk.become_regular(layers, check_space, timeout)
            layers = disk.layers(disk.file)
        with disk.new(snapshot) as temporary:
            disk.copy(layers, temporary.path, check_space=check_space, sparse=True, timeout=timeout)
            if bitmaps:  # a copy of a whole chain has none
                disk.remove_bitmaps(temporary.path, disk.bitmaps(temporary.path))
            disk.put(snapshot, temporary)


def create_live(
    call: Call,
    *,
    path: str,
    image_format: str,
    snapshot: int,
    live: dict[str, Any],
    qcow2_options: list[str],
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> None:
    """Keep the disk of a VM that runs as it is at one moment.

    ``live`` says how to copy it, see ``onestor_lib.agent.live_copy.Live``.
    """
    with held(call, path, image_format, "create live snapshot", lock_timeout) as disk:
        priority.lower(**bulk)
        layers = disk.layers(disk.file)
        disk.require_not_made_of(disk.snapshot(snapshot), layers)
        shallow = disk.is_ours(layers)
        with disk.new(snapshot) as temporary:
            if check_space and not (image_format == "raw" and extents.can_share(disk.directory)):
                space.require(disk.directory, chain.allocated(layers[:1] if shallow else layers))
            live_copy.copy(
                call, layers, temporary.path, image_format, live_copy.Live(**live),
                shallow=shallow, timeout=timeout, options=qcow2_options,
            )  # fmt: skip
            disk.put(snapshot, temporary)


def revert(
    call: Call,
    *,
    path: str,
    image_format: str,
    snapshot: int,
    grow_to: int,
    sparse: bool,
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> None:
    """Let the disk be what it was; until that is complete it stays what it is.

    The guest sees at least ``grow_to`` bytes: the disk was made larger after the snapshot, and oned
    goes on counting it so. ``sparse`` False gives the disk all its blocks.
    """
    with held(call, path, image_format, "revert to snapshot", lock_timeout) as disk:
        priority.lower(**bulk)
        layers = disk.layers(disk.snapshot(snapshot))
        kept = layers[0].path
        before = [layer for layer in disk.before_revert() if layer.path != kept]
        with publish.Temporary(disk.file) as temporary:
            target = temporary.path
            disk.copy(layers, target, check_space=check_space, sparse=sparse, timeout=timeout)
            disk.remove_bitmaps(target, disk.bitmaps(target))
            if chain.virtual_size(target, image_format, step=disk.step) < grow_to:
                more = not sparse
                qemu_img.grow(target, image_format, grow_to, step=disk.step, allocate=more)
            crashpoints.reach("revert.copied")
            disk.replace(temporary, before)


def delete(call: Call, *, path: str, image_format: str, snapshot: int, lock_timeout: float) -> None:
    """Remove a snapshot, also while the VM runs; one that is not there is removed already."""
    with held(call, path, image_format, "delete snapshot", lock_timeout) as disk:
        file = disk.snapshot(snapshot)
        if not os.path.lexists(file):
            call.log("WARN", f"snapshot {snapshot} of {path} was not there")
        else:
            disk.require_not_made_of(file, disk.layers(disk.file))
            if users := disk.users(file):
                cause = f"{', '.join(map(str, users))} cannot be read without it"
                raise NotAllowed(disk.step, cause, path=str(file))
            publish.remove(file)
            publish.sync_dir(disk.directory)
            crashpoints.reach("snapshot.removed")
        disk.tidy()
