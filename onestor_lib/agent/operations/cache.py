"""Operations on the cache of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import frames, priority, transfer
from onestor_lib.agent.bandwidth import Limit
from onestor_lib.agent.cache import fill, record, room, scrub
from onestor_lib.agent.errors import CacheFailed, OnestorError, TransferFailed, from_os_error
from onestor_lib.agent.server import Call

_held: list[fill.Had] = []  # what the connection that this process serves holds


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
    return {"hit": had.is_hit}


def read(
    call: Call, *, receiver: str, stall: float, bytes_per_second: int, bulk: dict[str, Any]
) -> dict[str, Any]:
    """Send the image that :func:`hold` holds down this connection, to the host ``receiver``."""
    priority.lower(**bulk)
    limit = Limit(receiver, bytes_per_second) if bytes_per_second else None
    (had,) = _held
    manifest = record.read_manifest(had.entry.sidecar, had.record)
    size = had.record.version.size
    with call.streaming() as pipe:
        try:
            fd = transfer.open_source(had.entry.image)
            try:
                sender = transfer.Sender(pipe, stall=stall, limit=limit)
                sender.send(fd, size, manifest)
            finally:
                os.close(fd)
        except (TimeoutError, EOFError, BrokenPipeError, ValueError) as error:
            raise TransferFailed("send", str(error) or "the receiver went away") from error
        except OnestorError as error:
            frames.write_error(pipe, error, stall)
        except OSError as error:
            frames.write_error(pipe, from_os_error("send", error), stall)
    return {"sent": sender.sent}


def verify(call: Call, *, path: str, lock_timeout: float) -> dict[str, str]:
    """Compare an entry with its manifest; a damaged one is dropped. What was wrong, or ""."""
    return {"wrong": scrub.verify(Path(path), timeout=lock_timeout)}


def trim(call: Call, *, root: str, limits: dict[str, Any], lock_timeout: float) -> dict[str, int]:
    """Evict until the limits are kept; the bytes that are in the cache then."""
    room.trim(Path(root), room.Limits(**limits), timeout=lock_timeout, say=call.log)
    return {"bytes": room.used(Path(root))}
