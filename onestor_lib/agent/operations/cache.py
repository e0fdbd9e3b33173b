"""Operations on the cache of this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestor_lib.agent import counters, frames, locks, priority, transfer
from onestor_lib.agent.bandwidth import Limit, datastores_of
from onestor_lib.agent.cache import entry as entries
from onestor_lib.agent.cache import fill, growing, record, room, scrub
from onestor_lib.agent.errors import (
    CacheFailed,
    InvalidInput,
    OnestorError,
    TransferFailed,
    from_os_error,
)
from onestor_lib.agent.server import Call

# States of an entry: PARTIAL is what an interrupted fill has left.
COMPLETE, PARTIAL, BUSY, DAMAGED = "complete", "partial", "being filled", "damaged"

_held: list[fill.Had] = []  # what the connection that this process serves holds


def have(call: Call, *, image: dict[str, Any]) -> dict[str, Any]:
    """Have an image in the cache, without holding it; whether it was there (``hit``)."""
    wanted = fill.Wanted.from_json(image)
    with fill.held(call, wanted, wanted.path.parent.parent) as had:
        return {"hit": had.is_hit, "digest": had.record.digest}


def all_entries(call: Call, *, root: str) -> list[dict[str, Any]]:
    """Everything in the cache below ``root``; sizes in bytes, times in seconds since 1970.

    ``version`` is that of the origin, None for what is not complete or damaged; ``shared`` says
    how many other names the file has: of disks of VMs, and of recovery copies.
    """
    found = []
    for each in room.survey(Path(root)):
        entry = each.entry
        known = record.read(entry.sidecar)
        facts: dict[str, Any] = {
            "path": str(entry.path),
            "bytes": each.bytes,
            "part_bytes": each.part_bytes,
            "used": each.used,
            "shared": 0,
            "version": None,
            "state": PARTIAL,
        }
        with contextlib.suppress(FileNotFoundError):
            facts["shared"] = entry.image.lstat().st_nlink - 1
        if known and known.describes(entry.image):
            facts.update(
                version=known.version.to_json(), source=known.source, filled=known.filled,
                verified=known.verified, digest=known.digest, state=COMPLETE,
            )  # fmt: skip
        elif locks.is_held(entry.lock):
            facts["state"] = BUSY
        elif os.path.lexists(entry.sidecar):
            facts["state"] = DAMAGED
        found.append(facts)
    return found


def hold(call: Call, *, image: dict[str, Any], marker: str) -> dict[str, Any]:
    """As the replica, have an image in the cache and hold it until the end of the connection.

    ``marker`` is a file that the host which asks has just made in its own cache: if it is here,
    the two are one machine, and a cache cannot fill from itself.
    """
    if os.path.lexists(marker):
        raise CacheFailed("use the replica", "it is the host itself", path=marker)
    wanted = fill.Wanted.from_json(image)
    had: fill.Had = call.keep(fill.held(call, wanted, wanted.path.parent.parent))
    _held.append(had)
    return {"hit": had.is_hit, "digest": had.record.digest}


def read(
    call: Call, *, receiver: str, stall: float, bytes_per_second: int, bulk: dict[str, Any]
) -> dict[str, Any]:
    """Send the image that :func:`hold` holds down this connection, to the host ``receiver``."""
    (had,) = _held
    manifest = record.read_manifest(had.entry.sidecar, had.record)

    def send(sender: transfer.Sender, fd: int) -> None:
        sender.send(fd, had.record.version.size, manifest, digest=had.record.digest)

    return _send(call, had.entry.image, send, receiver, stall, bytes_per_second, bulk)


def follow(
    call: Call,
    *,
    path: str,
    size: int,
    part: str,
    manifest: str,
    receiver: str,
    stall: float,
    bytes_per_second: int,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Send the file ``part`` down this connection while it is filled: cut-through.

    It will have ``size`` bytes and become the entry ``path``; whether it did is told by
    :func:`hold`, with the digest.
    """

    def send(sender: transfer.Sender, fd: int) -> None:
        fill_of = growing.Fill(Path(path), fd, size, Path(manifest))
        sender.follow(fd, size, fill_of.complete, lambda: fill_of.digest(stall))

    return _send(call, Path(part), send, receiver, stall, bytes_per_second, bulk)


def verify(call: Call, *, path: str, lock_timeout: float) -> dict[str, Any]:
    """Compare an entry with its manifest; a damaged one is dropped.

    What was ``wrong``, or "", and whether it was ``gone``.
    """
    found = scrub.verify(Path(path), timeout=lock_timeout, on_progress=call.progress)
    return {"wrong": found or "", "gone": found is None}


def trim(call: Call, *, root: str, limits: dict[str, Any], lock_timeout: float) -> dict[str, int]:
    """Evict until the limits are kept; the bytes that are in the cache then."""
    room.trim(Path(root), room.Limits(**limits), timeout=lock_timeout, say=call.log)
    return {"bytes": room.used(Path(root))}


def drop(call: Call, *, path: str) -> dict[str, bool]:
    """Remove the entry of an image that is no more, unless somebody uses it just now.

    A file at ``path`` that is not ours is never touched, and no lock is made where nothing is.
    """
    image = Path(path)
    if not entries.may_be_cached(image, image.parent.parent):
        raise InvalidInput("drop from the cache", "not the path of an image", path=path)
    if image.name not in entries.names_in(image.parent):
        return {"dropped": False}
    room.drop_idle(image, counters.IMAGE_REMOVED, call.log)
    return {"dropped": image.name not in entries.names_in(image.parent)}


def _send(
    call: Call,
    path: Path,
    work: Callable[[transfer.Sender, int], None],
    receiver: str,
    stall: float,
    bytes_per_second: int,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Open ``path`` and let ``work`` send it; our errors go down the stream as its end."""
    priority.lower(**bulk)
    limit = Limit(receiver, bytes_per_second, datastores_of(path)) if bytes_per_second else None
    fd = transfer.open_source(path)
    try:
        with call.streaming() as pipe:
            sender = transfer.Sender(pipe, stall=stall, limit=limit)
            try:
                work(sender, fd)
            except TimeoutError as error:
                cause = f"the receiver took nothing for {stall:.0f} s"
                raise TransferFailed("send", cause, path=str(path)) from error
            except (EOFError, BrokenPipeError) as error:
                raise TransferFailed("send", "the receiver went away", path=str(path)) from error
            except ValueError as error:
                raise TransferFailed("send", str(error), path=str(path)) from error
            except OnestorError as error:
                frames.write_error(pipe, error, stall)
            except OSError as error:
                frames.write_error(pipe, from_os_error("send", error, where=path), stall)
    finally:
        os.close(fd)
    return {"sent": sender.sent}
