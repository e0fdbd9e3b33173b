"""Operations on the disks of VMs: put one in place, delete one, delete a VM's directory."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import (
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
from onestor_lib.agent.cache import fill
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    OnestorError,
    Superseded,
    TransferFailed,
    from_os_error,
)
from onestor_lib.agent.server import Call

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


def place(
    call: Call,
    *,
    path: str,
    shape: dict[str, Any],
    source: dict[str, Any],
    image: dict[str, Any] | None,
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
    beside the disk; ``retry`` says that the VM has not run since the last try. Returns whether the
    image was in the cache ("hit", "miss", or "none" for past it).
    """
    disk, form = Path(path), Shape(**shape)
    directory, datastore = disk.parent, disk.parent.parent
    publish.sweep(datastore)
    with vm_directory.created(directory), _noticing_deletion(directory) as require_same:
        publish.sweep(directory)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                vm_directory.lock(disk, purpose=str(record["action"]), timeout=lock_timeout)
            )
            needed = _needed(source, form, directory, is_cached=image is not None)
            if check_space:
                space.require(directory, needed)
            crashpoints.reach("place.prepared")
            had = _cached(call, image, datastore.parent, needed, stack)
            new = _NewDisk(call, disk, form, source, check_space, stack)
            new.prepare(had)
            call.ask("wanted")
            require_same()  # what follows goes by names: not those of a successor's directory
            with _undone_on_failure() as undo:
                ours = _settle(call, disk, record, retry, undo)
                undo.callback(vm_directory.forget_record, disk)
                vm_directory.write_record(disk, record)
                crashpoints.reach("place.recorded")
                vm_directory.mark(datastore, vm_directory.DRIVER)
                with _explained("publish disk", disk):
                    new.put_in_place(ours, undo)
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
        call.log("WARN", f"the image goes past the cache of {socket.gethostname()}: {error}")
        return None


class _NewDisk:
    """A disk in the making: temporaries beside their final names, until it is published."""

    def __init__(
        self,
        call: Call,
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

    def prepare(self, had: fill.Had | None) -> None:
        """Make everything that will be published, from the cached image if there is one."""
        shape, temporary = self._shape, self._file.path
        if had and shape.thin:
            self._base = _take_base(had.entry.image, self._disk, self._stack)
            size = max(shape.grow_to, self._source["virtual_size"])
            backing = vm_directory.base_path(self._disk).name
            qemu_img.create_overlay(
                temporary, backing, size, shape.qcow2_options, step="create overlay"
            )
            crashpoints.reach("place.overlaid")
            return
        priority.lower(**shape.bulk)
        if had:
            _copy_cached(had.entry.image, temporary, self._source["size"])
        else:
            if self._check_space:
                directory = self._disk.parent
                space.require(directory, _needed(self._source, shape, directory, is_cached=False))
            _fetch(self._call, self._file, self._source["size"], item="disk")
        crashpoints.reach("place.received")
        self._file = _shape(self._file, shape, self._stack)
        self._snapshots = _fetch_snapshots(
            self._call, self._disk, self._source["snapshots"], self._stack
        )

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
        if os.path.lexists(final):
            if os.path.samefile(final, base.path):
                return
            # An earlier try's overlay must never be seen on another base than its own.
            publish.take_away(self._disk)
        base.publish(mode=0o444, replace=os.path.lexists(final))


@contextlib.contextmanager
def _explained(step: str, disk: Path) -> Iterator[None]:
    """An ``OSError`` as a failure of this very step (known failure C6)."""
    try:
        yield
    except FileNotFoundError:
        raise  # may mean that the VM was deleted, see _noticing_deletion()
    except OSError as error:
        raise from_os_error(step, error, path=str(disk)) from error


def _take_base(cached: Path, disk: Path, stack: contextlib.ExitStack) -> publish.Temporary:
    """The cached image as the base of ``disk``: a hard link, a copy where that is not possible."""
    base = stack.enter_context(publish.Temporary(vm_directory.base_path(disk)))
    if not base.become_link(cached):
        size = cached.stat().st_size
        space.require(disk.parent, min(size, cached.stat().st_blocks * 512))
        _copy_cached(cached, base.path, size)
    return base


def _copy_cached(cached: Path, temporary: Path, size: int) -> None:
    """Copy an image of this machine's cache, sharing its blocks where the file system can."""
    step = "copy from the cache"
    try:
        source = os.open(cached, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            target = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                copied = extents.copy_file(source, target, sparse=True, step=step, path=str(cached))
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as error:
        raise from_os_error(step, error, path=str(temporary)) from error
    if copied != size:
        raise TransferFailed(step, f"it has {copied} of {size} bytes", path=str(cached))


def _fetch(call: Call, temporary: publish.Temporary, size: int, *, item: str) -> None:
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
    call: Call, disk: Path, snapshots: dict[str, int], stack: contextlib.ExitStack
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


@contextlib.contextmanager
def _undone_on_failure() -> Iterator[contextlib.ExitStack]:
    """Collect what takes the steps back; run it, last step first, unless the block succeeds."""
    with contextlib.ExitStack() as undo:
        yield undo
        undo.pop_all()


def _settle(
    call: Call, disk: Path, record: dict[str, Any], retry: bool, undo: contextlib.ExitStack
) -> bool:
    """Clear the disk's name; True when what lies there is our own earlier try, to be replaced."""
    snapshots = vm_directory.snapshots_path(disk)
    names = (disk, snapshots, vm_directory.base_path(disk))
    here = [path for path in names if os.path.lexists(path)]
    if not here:
        return False
    if _is_own_try(vm_directory.read_record(disk), record, retry):
        publish.remove(snapshots)
        return True
    aside = vm_directory.set_aside(disk)
    for path in here:
        path.rename(aside / path.name)
        undo.callback(_restore, aside / path.name, path, disk)
        call.log("WARN", f"{path} was there before and is not known: now in {aside.name}/")
    return False


def _restore(aside: Path, path: Path, disk: Path) -> None:
    """Give back its name to what was set aside, unless the new disk is in place already."""
    if not os.path.lexists(disk) and not os.path.lexists(path):
        aside.rename(path)
        with contextlib.suppress(OSError):
            aside.parent.rmdir()


def _is_own_try(known: dict[str, Any], record: dict[str, Any], retry: bool) -> bool:
    """Whether nobody loses data when the disk that ``known`` describes is replaced.

    A clone is thrown away with its VM anyway. A persistent disk may hold what its guest wrote,
    unless the very same prolog put it there and the guest has not run since.
    """
    same = ["action", "vm", "image"]
    if record["action"] != "clone":
        if not retry:
            return False
        same.append("sequence")
    return bool(known) and all(known.get(key) == record[key] for key in same)


def _needed(source: dict[str, Any], shape: Shape, directory: Path, *, is_cached: bool) -> int:
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


@contextlib.contextmanager
def _noticing_deletion(directory: Path) -> Iterator[Callable[[], None]]:
    """Name the true cause when names are missing because the VM's directory was deleted.

    Yields a function that raises :class:`Superseded` if that has happened so far, even though
    another action may have made the directory anew.
    """
    before = directory.stat()

    def require_same() -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(before, directory.stat()):
                return
        cause = "the VM was deleted meanwhile"
        raise Superseded("put the disk in place", cause, path=str(directory))

    try:
        yield require_same
    except (FileNotFoundError, Missing):
        require_same()
        raise
