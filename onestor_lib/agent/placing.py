"""The place of a disk in its VM's directory: cleared, filled and recorded by one action at a time.

Whatever comes to be ``disk.N`` comes this way: a clone, a persistent image, an empty disk, the
context. What it is made of has been prepared under private names by then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import crashpoints, publish, vm_directory
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import Missing, Superseded, from_os_error

Put = Callable[[bool, contextlib.ExitStack], None]


class Place:
    """The place of ``disk``, while its lock is held; see :func:`held`.

    ``record`` says what shall lie there; ``stack`` ends with the place.
    """

    def __init__(
        self,
        call: Dialogue,
        disk: Path,
        record: dict[str, Any],
        retry: bool,
        stack: contextlib.ExitStack,
        require_same: Callable[[], None],
    ) -> None:
        self.disk, self.stack = disk, stack
        self._call, self._record, self._retry = call, record, retry
        self._require_same = require_same

    def take(self, put: Put, *, replace: bool = False) -> None:
        """Clear the place and let ``put`` give the new disk its names.

        ``put`` is told whether to replace what is there, and gets the stack of what takes its steps
        back. ``replace`` says that whatever is there is to be replaced. The front-end is asked
        first whether the disk is ``wanted`` still (contract section 8, trap 8).
        """
        self._call.ask("wanted")
        self._require_same()  # what follows goes by names: not those of a successor's directory
        with _undone_on_failure() as undo:
            ours = (replace and os.path.lexists(self.disk)) or self._settle(undo)
            undo.callback(vm_directory.forget_record, self.disk)
            vm_directory.write_record(self.disk, self._record)
            crashpoints.reach("place.recorded")
            vm_directory.mark(self.disk.parent.parent, vm_directory.DRIVER)
            with _explained("publish disk", self.disk):
                put(ours, undo)

    def _settle(self, undo: contextlib.ExitStack) -> bool:
        """Clear the disk's name; True when our own earlier try lies there, to be replaced."""
        disk = self.disk
        snapshots = vm_directory.snapshots_path(disk)
        names = (disk, snapshots, vm_directory.base_path(disk))
        here = [path for path in names if os.path.lexists(path)]
        if not here:
            return False
        if _is_own_try(vm_directory.read_record(disk), self._record, self._retry):
            publish.remove(snapshots)
            return True
        aside = vm_directory.set_aside(disk)
        for path in here:
            path.rename(aside / path.name)
            undo.callback(_restore, aside / path.name, path, disk)
            self._call.log(
                "WARN", f"{path} was there before and is not known: now in {aside.name}/"
            )
        return False


@contextlib.contextmanager
def held(
    call: Dialogue, disk: Path, *, record: dict[str, Any], retry: bool, lock_timeout: float
) -> Iterator[Place]:
    """Hold the place of ``disk``, in a directory that is made if it is missing.

    ``record`` is kept beside the disk; ``retry`` says that the VM has not run since the last try.
    Raises :class:`Superseded` when the VM's directory is deleted meanwhile.
    """
    directory = disk.parent
    publish.sweep(directory.parent)
    with vm_directory.created(directory), _noticing_deletion(directory) as require_same:
        publish.sweep(directory)
        with contextlib.ExitStack() as stack:
            purpose = str(record["action"])
            stack.enter_context(vm_directory.lock(disk, purpose=purpose, timeout=lock_timeout))
            yield Place(call, disk, record, retry, stack, require_same)


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
