"""Moving a VM's directory from one machine to another: the two sides of one connection.

The sender's agent has started the receiver's (``onestor_lib.agent.client``) and has told it what is
in the directory. Then, in frames (``onestor_lib.agent.frames``): the receiver says with ``W`` which
files it wants, having made the others from what it has; each of them crosses as any transfer does;
and ``E`` from the sender says that the directory is still what it was. Only then the receiver gives
the new directory its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    bases,
    crashpoints,
    frames,
    publish,
    space,
    transfer,
    tree,
    vm_directory,
)
from onestor_lib.agent.bandwidth import Limit
from onestor_lib.agent.errors import OnestorError, TransferFailed
from onestor_lib.agent.tree import Item

_STEP = "move the VM's directory"
_PULSE = 1.0  # seconds between two signs of life of a receiver at work


def send(
    pipe: frames.Pipe,
    directory: Path,
    items: list[Item],
    *,
    stall: float,
    on_progress: Callable[[int, int], None],
    limit: Limit | None,
) -> int:
    """Send what the receiver wants of ``items``; how many bytes those were.

    Raises :class:`TransferFailed` when the directory changes meanwhile; the receiver is told.
    """
    sent = 0
    try:
        for index in _wanted(pipe, len(items), stall):
            file = directory / items[index].path
            fd = transfer.open_source(file)
            try:
                before = os.fstat(fd)
                if before.st_size != items[index].size:
                    raise TransferFailed(_STEP, "it has changed meanwhile", path=str(file))
                sender = transfer.Sender(pipe, stall=stall, on_progress=on_progress, limit=limit)
                sender.send(fd, before.st_size)
                sent += sender.sent
                transfer.require_unchanged(before, os.fstat(fd), file)
            finally:
                os.close(fd)
        crashpoints.reach("move.sent")
        now = {item.path: item for item in tree.listing(directory)}
        if not all(item.is_unchanged(now.get(item.path)) for item in items):
            raise TransferFailed(_STEP, "it has changed meanwhile", path=str(directory))
        frames.write(pipe, b"E", 0, timeout=stall)
    except OnestorError as error:
        with contextlib.suppress(OSError, TimeoutError):
            frames.write_error(pipe, error, stall)
        raise
    return sent


def receive(
    pipe_of: Callable[[], contextlib.AbstractContextManager[frames.Pipe]],
    directory: Path,
    items: list[Item],
    *,
    stall: float,
    check_space: bool,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Make ``directory`` of ``items``, in place of what is there under that name so far.

    Until everything is there and verified nothing is changed. Returns how many bytes were
    ``received``, and the bases that were ``linked`` to the cache of this machine.
    """
    directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    publish.sweep(directory.parent)
    with publish.temporary_directory(directory) as new:
        tree.make(new, items)
        with pipe_of() as pipe:
            with _signs_of_life(pipe, stall):
                linked = _take_bases(new, items)
                wanted = [
                    index
                    for index, item in enumerate(items)
                    if item.kind == tree.FILE and item.path not in linked
                ]
                if check_space:
                    space.require(new, sum(items[index].allocated for index in wanted))
            frames.write(pipe, b"W", 0, json.dumps(wanted).encode("ascii"), timeout=stall)
            received = 0
            for index in wanted:
                received += _receive_file(pipe, new, items[index], stall, on_progress)
            _require_end(pipe, stall)
        crashpoints.reach("move.received")
        tree.complete(new, items)
        new.chmod(0o755)
        crashpoints.reach("move.complete")
        vm_directory.mark(directory.parent, vm_directory.DRIVER)
        take_place(new, directory)
    return {"received": received, "linked": sorted(linked)}


def take_place(new: Path, directory: Path) -> None:
    """Give ``new`` the name ``directory``; what had it so far goes last."""
    old = directory.parent / publish.temporary_name(directory.name)
    with contextlib.suppress(FileNotFoundError):
        directory.rename(old)
        crashpoints.reach("move.aside")
    try:
        new.rename(directory)
    except BaseException:  # also when we are ended between the two
        with contextlib.suppress(OSError):
            old.rename(directory)
        raise
    publish.sync_dir(directory.parent)
    crashpoints.reach("move.renamed")
    publish.remove(old)


def _wanted(pipe: frames.Pipe, offered: int, stall: float) -> list[int]:
    """The numbers of the files that the receiver asks for; no host is believed."""
    while True:
        kind, _, data = frames.read(pipe, stall)
        if kind == b"W":
            found = json.loads(data)
            numbers = range(offered)
            if isinstance(found, list) and all(type(n) is int and n in numbers for n in found):
                return found
            raise TransferFailed(_STEP, "the receiver asks for what was not offered")
        if kind != b"P":
            raise ValueError("the stream is damaged")


def _receive_file(
    pipe: frames.Pipe, new: Path, item: Item, stall: float, on_progress: Callable[[int, int], None]
) -> int:
    file = new / item.path
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    receiver = transfer.Receiver(
        file, size=item.size, stall=stall, reuse=False, on_progress=on_progress
    )
    with receiver:
        receiver.receive(pipe)
        return receiver.received


def _require_end(pipe: frames.Pipe, stall: float) -> None:
    try:
        kind, _, data = frames.read(pipe, stall)
    except EOFError:
        raise TransferFailed(_STEP, "the sender went away") from None
    except TimeoutError:
        raise TransferFailed(_STEP, f"nothing came for {stall:.0f} s") from None
    if kind == b"X":
        raise frames.error_of(data, "")
    if kind != b"E":
        raise TransferFailed(_STEP, "the stream is damaged")


@contextlib.contextmanager
def _signs_of_life(pipe: frames.Pipe, stall: float) -> Iterator[None]:
    """Tell the sender now and then that the work goes on; nobody else writes meanwhile."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(_PULSE):
            with contextlib.suppress(OSError, TimeoutError):
                frames.write(pipe, b"P", 0, timeout=stall)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _take_bases(new: Path, items: list[Item]) -> set[str]:
    """Make the bases that this machine has the content of; their paths.

    Whatever goes wrong with one costs sending it.
    """
    made = set()
    for item in items:
        if item.kind == tree.FILE and item.base:
            with contextlib.suppress(OnestorError, OSError):
                if bases.take(Path(item.base["image"]), item.base["digest"], new / item.path):
                    made.add(item.path)
    return made
