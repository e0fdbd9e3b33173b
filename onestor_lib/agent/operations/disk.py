"""Operations on the disks of VMs: put one in place, delete one, delete a VM's directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, new_disk, publish, space, vm_directory
from onestor_lib.agent.cache import fill
from onestor_lib.agent.errors import Missing, OnestorError, Superseded, from_os_error
from onestor_lib.agent.server import Call


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
    disk, form = Path(path), new_disk.Shape(**shape)
    directory, datastore = disk.parent, disk.parent.parent
    publish.sweep(datastore)
    with vm_directory.created(directory), _noticing_deletion(directory) as require_same:
        publish.sweep(directory)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                vm_directory.lock(disk, purpose=str(record["action"]), timeout=lock_timeout)
            )
            needed = new_disk.needed(source, form, directory, is_cached=image is not None)
            if check_space:
                space.require(directory, needed)
            crashpoints.reach("place.prepared")
            had = _cached(call, image, datastore.parent, needed, stack)
            new = new_disk.NewDisk(call, disk, form, source, check_space, stack)
            new.prepare(had.entry.image if had else None)
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
        call.log("WARN", f"the image goes past the cache of {os.uname().nodename}: {error}")
        return None


@contextlib.contextmanager
def _explained(step: str, disk: Path) -> Iterator[None]:
    """An ``OSError`` as a failure of this very step (known failure C6)."""
    try:
        yield
    except FileNotFoundError:
        raise  # may mean that the VM was deleted, see _noticing_deletion()
    except OSError as error:
        raise from_os_error(step, error, path=str(disk)) from error


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
