"""Operations on the disks of VMs: put one in place, delete one, delete a VM's directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, extents, publish, qemu_img, space, vm_directory
from onestor_lib.agent import image_format as formats
from onestor_lib.agent.errors import InvalidInput, Missing, OnestorError, Superseded, TransferFailed
from onestor_lib.agent.server import Call


def place(
    call: Call,
    *,
    path: str,
    image_format: str,
    source: dict[str, Any],
    grow_to: int,
    sparse: bool,
    check_space: bool,
    record: dict[str, Any],
    retry: bool,
    lock_timeout: float,
    convert_timeout: float,
) -> None:
    """Put a complete disk at ``path``, or leave everything as it is.

    ``source`` describes the image: size and allocated bytes, and its snapshots by id. The
    front-end is asked twice: for the ``content`` of the disk and of each snapshot, which it has
    sent into the temporary named in the question, and, at the very end, whether the disk is
    ``wanted`` still (contract section 8, trap 8). ``grow_to`` is the size in bytes the guest shall
    see, 0 for the image's own. ``record`` is kept beside the disk; ``retry`` says that the VM has
    not run since the last try.
    """
    disk = Path(path)
    directory, datastore = disk.parent, disk.parent.parent
    publish.sweep(datastore)
    with vm_directory.created(directory), _noticing_deletion(directory) as require_same:
        publish.sweep(directory)
        with vm_directory.lock(disk, purpose=str(record["action"]), timeout=lock_timeout):
            if check_space:
                space.require(directory, _needed(source, image_format, grow_to, sparse))
            crashpoints.reach("place.prepared")
            with publish.Temporary(disk) as temporary, contextlib.ExitStack() as stack:
                _fetch(call, temporary.path, source["size"], item="disk")
                crashpoints.reach("place.received")
                final = _shape(temporary, image_format, grow_to, sparse, convert_timeout, stack)
                snapshots = _fetch_snapshots(call, disk, source["snapshots"], stack)
                call.ask("wanted")
                require_same()  # what follows goes by names: not those of a successor's directory
                with _undone_on_failure() as undo:
                    ours = _settle(call, disk, record, retry, undo)
                    undo.callback(vm_directory.forget_record, disk)
                    vm_directory.write_record(disk, record)
                    crashpoints.reach("place.recorded")
                    if snapshots:
                        undo.callback(vm_directory.forget_snapshots, disk)
                        snapshots.rename(vm_directory.snapshots_path(disk))
                        crashpoints.reach("place.snapshots")
                    vm_directory.mark_monitored(datastore)
                    final.publish(mode=0o660, replace=ours)


def delete(call: Call, *, path: str) -> dict[str, bool]:
    """Remove a disk with all that belongs to it; nothing there is success (contract 2.4)."""
    publish.sweep(Path(path).parent)
    return {"removed": vm_directory.remove_disk(Path(path))}


def delete_directory(call: Call, *, path: str) -> dict[str, bool]:
    """Remove a VM's directory; nothing there is success (contract 2.4)."""
    removed = vm_directory.remove(Path(path))
    publish.sweep(Path(path).parent)
    return {"removed": removed}


def _fetch(call: Call, temporary: Path, size: int, *, item: str) -> None:
    call.ask("content", item=item, temporary=str(temporary))
    if (arrived := temporary.stat().st_size) != size:
        raise TransferFailed(
            "receive", f"{arrived} of {size} bytes have arrived", path=str(temporary)
        )


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
            _fetch(call, temporary.path, size, item=snapshot)
            temporary.publish(mode=0o660)
    return directory


def _shape(
    temporary: publish.Temporary,
    image_format: str,
    grow_to: int,
    sparse: bool,
    timeout: float,
    stack: contextlib.ExitStack,
) -> publish.Temporary:
    """Give the disk its size, and with SPARSE=NO its blocks; the temporary with the result."""
    path = temporary.path
    if grow_to and grow_to > qemu_img.virtual_size(path, image_format, step="inspect disk"):
        qemu_img.grow(path, image_format, grow_to, step="resize disk")
        size = qemu_img.virtual_size(path, image_format, step="inspect disk")
        if size != grow_to:
            cause = f"it has {size} bytes instead of {grow_to}"
            raise OnestorError("resize disk", cause, path=str(path))
    if sparse:
        return temporary
    if image_format == "qcow2":
        return _allocate_qcow2(temporary, timeout, stack)
    with path.open("r+b") as file:
        extents.allocate(file.fileno(), os.fstat(file.fileno()).st_size)
    return temporary


def _allocate_qcow2(
    temporary: publish.Temporary, timeout: float, stack: contextlib.ExitStack
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
        cluster_size=header.cluster_size,
        step="allocate disk",
        timeout=timeout,
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
    here = [path for path in (disk, snapshots) if os.path.lexists(path)]
    if not here:
        return False
    if _is_own_try(vm_directory.read_record(disk), record, retry):
        publish.remove(snapshots)
        return os.path.lexists(disk)
    for path in here:
        aside = vm_directory.set_aside(path)
        undo.callback(_restore, aside, path, disk)
        call.log("WARN", f"{path} was there before and is not known: now {aside.name}")
    return False


def _restore(aside: Path, path: Path, disk: Path) -> None:
    """Give back its name to what was set aside, unless the new disk is in place already."""
    if not os.path.lexists(disk) and not os.path.lexists(path):
        aside.rename(path)


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


def _needed(source: dict[str, Any], image_format: str, grow_to: int, sparse: bool) -> int:
    """Bytes the disk takes at most while it is put in place, its snapshots included."""
    if sparse:
        return int(source["allocated"])
    full = max(source["size"], source["virtual_size"], grow_to)
    copies = source["size"] if image_format == "qcow2" else 0
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
