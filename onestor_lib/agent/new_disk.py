"""A disk in the making: everything that will be published lies beside it under private names.

It becomes an overlay on a hard link to the host's cached image, a copy of that image, or a file
that the front-end has had sent (docs/design.md, section 4).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import (
    chain,
    crashpoints,
    extents,
    priority,
    publish,
    qemu_img,
    space,
    transfer,
    vm_directory,
)
from onestor_lib.agent import image_format as formats
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import InvalidInput, OnestorError, TransferFailed, from_os_error

_PATIENCE = 60.0  # seconds for another writer of a temporary to end


class Shape(NamedTuple):
    """How a disk shall be.

    ``thin``: an overlay, made with ``qcow2_options``, on a base that it shares with other VMs;
    else a file of its own. ``grow_to`` is the size in bytes the guest shall see, 0 for the
    image's own.
    """

    image_format: str
    thin: bool
    qcow2_options: list[str]
    grow_to: int
    sparse: bool
    convert_timeout: float
    bulk: dict[str, Any]  # how work on the content gives way, see ``priority.lower``


class NewDisk:
    """Temporaries beside their final names, until :meth:`put_in_place`."""

    def __init__(
        self,
        call: Dialogue,
        disk: Path,
        shape: Shape,
        source: dict[str, Any],
        check_space: bool,
        stack: contextlib.ExitStack,
    ) -> None:
        self._call, self._disk, self._shape, self._source = call, disk, shape, source
        self._check_space, self._stack = check_space, stack
        self._base: publish.Temporary | None = None
        self._snapshots: Path | None = None
        self._file = stack.enter_context(publish.Temporary(disk))

    def prepare(self, cached: Path | None) -> None:
        """Make everything that will be published, from the cached image if there is one."""
        shape, temporary = self._shape, self._file.path
        if cached and shape.thin:
            self._base = take_base(cached, self._disk, self._stack)
            size = max(shape.grow_to, self._source["virtual_size"])
            backing = vm_directory.base_path(self._disk).name
            qemu_img.create_overlay(
                temporary, backing, size, shape.qcow2_options, step="create overlay"
            )
            crashpoints.reach("place.overlaid")
            return
        priority.lower(**shape.bulk)
        if cached:
            _copy_cached(cached, temporary, self._source["size"])
        else:
            if self._check_space:
                directory = self._disk.parent
                space.require(directory, needed(self._source, shape, directory, is_cached=False))
            _fetch(self._call, self._file, self._source["size"], item="disk")
        crashpoints.reach("place.received")
        self._file = _shape(self._file, shape, self._stack)
        self._snapshots = _fetch_snapshots(
            self._call, self._disk, self._source["snapshots"], self._stack
        )

    def recover(
        self, copy: dict[str, Any], cached: Path | None, known: dict[str, str] | None
    ) -> dict[str, str] | None:
        """Make the disk what a recovery ``copy`` has: its ``size``, and its ``base`` if it has one.

        That base is taken from the cache if it is the one that is ``known`` to be there, else it is
        asked for as the copy itself is. Returns the base.
        """
        priority.lower(**self._shape.bulk)
        base: dict[str, Any] | None = copy["base"]
        if self._check_space:
            missing = 0 if base is None or base["digest"] == (known or {}).get("digest") else 1
            needed = copy["allocated"] + missing * (base or {}).get("size", 0)
            space.require(self._disk.parent, needed)
        if base:
            if cached and known and known["digest"] == base["digest"]:
                self._base = take_base(cached, self._disk, self._stack)
            else:
                self._base = self._fetch_base(base)
            # A host has sent it: it must not lead the new one to any other file.
            if chain.backing_name(self._base.path, "qcow2", step="recover disk"):
                raise TransferFailed("recover disk", "its base is no complete image")
        _fetch(self._call, self._file, copy["size"], item="recovered")
        crashpoints.reach("place.recovered")
        path, image_format = self._file.path, self._shape.image_format
        name = chain.backing_name(path, image_format, step="recover disk")
        wanted = vm_directory.base_path(self._disk).name if base else ""
        if name != wanted:
            raise TransferFailed("recover disk", f"it lies on {name!r}", path=str(path))
        if self._shape.grow_to > chain.virtual_size(path, image_format, step="recover disk"):
            lies_on = self._base.path if self._base else None
            qemu_img.grow(
                path, image_format, self._shape.grow_to, base=lies_on, step="recover disk"
            )
        self._snapshots = _fetch_snapshots(
            self._call, self._disk, self._source["snapshots"], self._stack
        )
        return {"image": base["image"], "digest": base["digest"]} if base else None

    def _fetch_base(
        self, base: dict[str, Any], *, item: str = "recovered base"
    ) -> publish.Temporary:
        """The base that lies beside the copy; the image itself where that is damaged or gone."""
        final = vm_directory.base_path(self._disk)
        found = self._stack.enter_context(publish.Temporary(final))
        try:
            _fetch(self._call, found, base["size"], item=item)
            with extents.opened(found.path) as fd:
                if transfer.digests_of(fd, base["size"]).digest() == base["digest"]:
                    return found
            raise TransferFailed("recover disk", transfer.DIFFERENT, path=str(final))
        except OnestorError as error:
            if item == "disk" or base["size"] != self._source["size"]:
                raise
            publish.remove(found.path)  # there is room for one
            self._call.log("WARN", f"{item}: {error}; the image is taken instead")
        return self._fetch_base(base, item="disk")

    def put_in_place(self, replace: bool, undo: contextlib.ExitStack) -> None:
        """Give it all its final names; the disk itself comes last."""
        if self._snapshots:
            undo.callback(vm_directory.forget_snapshots, self._disk)
            self._snapshots.rename(vm_directory.snapshots_path(self._disk))
            crashpoints.reach("place.snapshots")
        if self._base:
            undo.callback(vm_directory.forget_base, self._disk)
            self._publish_base(self._base)
            crashpoints.reach("place.based")
        self._file.publish(mode=0o660, replace=replace and os.path.lexists(self._disk))
        if replace and not self._base:
            publish.remove(vm_directory.base_path(self._disk))  # of the overlay that was here

    def _publish_base(self, base: publish.Temporary) -> None:
        final = vm_directory.base_path(self._disk)
        if os.path.lexists(final) and os.path.samefile(final, base.path):
            return
        # An earlier try's overlay must never be seen on another base than its own.
        publish.take_away(self._disk)
        base.publish(mode=0o444, replace=os.path.lexists(final))


def needed(source: dict[str, Any], shape: Shape, directory: Path, *, is_cached: bool) -> int:
    """Bytes the disk takes at most while it is put in place, its snapshots included.

    An overlay on a cached image takes next to nothing, nor does a copy that shares its blocks.
    """
    if is_cached and shape.sparse and (shape.thin or extents.can_share(directory)):
        return 0
    if shape.sparse:
        return int(source["allocated"])
    full = max(source["size"], source["virtual_size"], shape.grow_to)
    copies = source["size"] if shape.image_format == "qcow2" else 0
    return int(full + copies + source["snapshots_allocated"])


def take_base(
    cached: Path, disk: Path, stack: contextlib.ExitStack, *, check_space: bool = True
) -> publish.Temporary:
    """The cached image as the base of ``disk``: a hard link, a copy where that is not possible."""
    base = stack.enter_context(publish.Temporary(vm_directory.base_path(disk)))
    if not base.become_link(cached):
        facts = cached.stat()
        if check_space:
            space.require(disk.parent, min(facts.st_size, facts.st_blocks * 512))
        _copy_cached(cached, base.path, facts.st_size)
    return base


def _copy_cached(cached: Path, temporary: Path, size: int) -> None:
    """Copy an image of this machine's cache, sharing its blocks where the file system can."""
    step = "copy from the cache"
    try:
        copied = extents.copy_path(cached, temporary, sparse=True, step=step)
    except OSError as error:
        raise from_os_error(step, error, path=str(temporary)) from error
    if copied != size:
        raise TransferFailed(step, f"it has {copied} of {size} bytes", path=str(cached))


def _fetch(call: Dialogue, temporary: publish.Temporary, size: int, *, item: str) -> None:
    """Have the front-end bring ``item`` into ``temporary``, which has a new name then."""
    path = temporary.path
    answer = call.ask("content", item=item, temporary=str(path), manifest="", reuse=False)
    with transfer.claimed(path, answer["written"], _PATIENCE):
        if (arrived := path.stat().st_size) != size:
            raise TransferFailed(
                "receive", f"{arrived} of {size} bytes have arrived", path=str(path)
            )
        temporary.renew()


def _fetch_snapshots(
    call: Dialogue, disk: Path, snapshots: dict[str, int], stack: contextlib.ExitStack
) -> Path | None:
    """Bring the image's snapshots into a temporary directory beside the disk's."""
    if not snapshots:
        return None
    directory = stack.enter_context(publish.temporary_directory(vm_directory.snapshots_path(disk)))
    directory.chmod(0o755)
    for snapshot, size in snapshots.items():
        with publish.Temporary(directory / snapshot) as temporary:
            _fetch(call, temporary, size, item=snapshot)
            temporary.publish(mode=0o660)
    return directory


def _shape(
    temporary: publish.Temporary, shape: Shape, stack: contextlib.ExitStack
) -> publish.Temporary:
    """Give the disk its size, and with SPARSE=NO its blocks; the temporary with the result."""
    path, image_format, grow_to = temporary.path, shape.image_format, shape.grow_to
    if grow_to and grow_to > qemu_img.virtual_size(path, image_format, step="inspect disk"):
        qemu_img.grow(path, image_format, grow_to, step="resize disk")
        size = qemu_img.virtual_size(path, image_format, step="inspect disk")
        if size != grow_to:
            cause = f"it has {size} bytes instead of {grow_to}"
            raise OnestorError("resize disk", cause, path=str(path))
    if shape.sparse:
        return temporary
    if image_format == "qcow2":
        return _allocate_qcow2(temporary, shape, stack)
    with path.open("r+b") as file:
        extents.allocate(file.fileno(), os.fstat(file.fileno()).st_size)
    return temporary


def _allocate_qcow2(
    temporary: publish.Temporary, shape: Shape, stack: contextlib.ExitStack
) -> publish.Temporary:
    """A copy with every cluster in place; only qemu-img makes the clusters that are not there."""
    with temporary.path.open("rb") as file:
        header = formats.read_qcow2(
            file.read(formats.HEAD), step="allocate disk", path=str(temporary.path)
        )
    if header.snapshots:
        cause = "SPARSE=NO, but the image has internal snapshots, which a conversion would lose"
        raise InvalidInput("allocate disk", cause, path=str(temporary.path))
    allocated = stack.enter_context(publish.Temporary(temporary.final))
    qemu_img.convert(
        temporary.path,
        "qcow2",
        allocated.path,
        "qcow2",
        allocate=True,
        options=[f"cluster_size={header.cluster_size}", *shape.qcow2_options],
        step="allocate disk",
        timeout=shape.convert_timeout,
    )
    return allocated
