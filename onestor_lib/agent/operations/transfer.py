"""Operations that move the content of one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import extents, locks, origin, priority, publish, pulling, transfer
from onestor_lib.agent.cache.entry import CHUNKS, progress_of
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.errors import TransferFailed
from onestor_lib.agent.server import Call
from onestor_lib.agent.version import Version


def send(
    call: Call,
    *,
    path: str,
    version: dict[str, int] | None,
    argv: list[str],
    host: str,
    stall: float,
    bytes_per_second: int,
    bulk: dict[str, Any],
    **target: Any,
) -> dict[str, Any]:
    """Send a file of this machine to another one, where it goes as :func:`receive` is told.

    ``version`` is the one that is wanted; ``argv`` starts the agent on ``host``. The manifest
    that is kept of an image spares the digesting; without one it is made and kept.
    """
    priority.lower(**bulk)
    publish.sweep(Path(path).parent)
    wanted = Version.from_json(version) if version else None
    image = origin.Origin(Path(path), wanted)
    known = image.manifest()
    try:
        result, found = transfer.send(
            image.path,
            argv,
            host=host,
            size=image.version.size,
            version=wanted,
            known=known,
            stall=stall,
            on_progress=call.progress,
            bytes_per_second=bytes_per_second,
            bulk=bulk,
            **target,
        )
    except TransferFailed as error:
        if known and error.cause == transfer.DIFFERENT and image.differs_from(known):
            raise image.damaged() from error
        raise
    if known is None and version:
        image.keep(found)
    return result


def receive(
    call: Call,
    *,
    temporary: str,
    manifest: str,
    reuse: bool,
    size: int,
    stall: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Receive what :func:`send` streams behind this request into the file ``temporary``.

    ``manifest`` names the file for the manifest, "" for none. With ``reuse`` what lies in the
    temporary already is not sent again.
    """
    priority.lower(**bulk)
    receiver = transfer.Receiver(
        Path(temporary),
        size=size,
        stall=stall,
        reuse=reuse,
        progress=_progress(manifest),
        on_progress=call.progress,
    )
    with receiver:
        with call.streaming() as pipe:
            receiver.receive(pipe)
        return _received(receiver.manifest, manifest, receiver.written())


def pull(
    call: Call,
    *,
    argv: list[str],
    host: str,
    image: dict[str, Any],
    marker: str,
    temporary: str,
    manifest: str,
    reuse: bool,
    stall: float,
    bytes_per_second: int,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Fetch an image from the cache of the replica ``host`` into the file ``temporary``.

    ``argv`` starts the agent there, which asks for the content itself if it has none: its
    questions are passed on. When what arrives is not what the replica has recorded, the replica's
    entry is checked; a damaged one is dropped, filled anew and fetched again.
    """
    priority.lower(**bulk)
    sending = {"stall": stall, "bytes_per_second": bytes_per_second, "bulk": bulk}
    replica = pulling.Replica(call, argv, host, image, marker, sending)
    found = replica.fetch(Path(temporary), reuse=reuse, progress=_progress(manifest))
    return {**_received(found.manifest, manifest, found.written), "sent": found.received}


def copy_here(
    call: Call,
    *,
    path: str,
    version: dict[str, int] | None,
    temporary: str,
    manifest: str,
    stall: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Copy a file of this machine into the existing file ``temporary`` of this machine."""
    priority.lower(**bulk)
    image = origin.Origin(Path(path), Version.from_json(version) if version else None)
    source = transfer.open_source(image.path)
    try:
        target = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
        try:
            locks.become_writer(target, Path(temporary), stall)
            image.require(source)
            os.ftruncate(target, 0)
            size = extents.copy_file(source, target, sparse=True, step="copy", path=path)
            known = image.manifest()
            found = transfer.digests_of(target, size) if manifest or known else Manifest(size)
            if known and known.digest() != found.digest():
                raise image.damaged()
            written = transfer.sealed(target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return {**_received(found, manifest, written), "sent": 0}


def _progress(manifest: str) -> Path | None:
    """Where to tell how far the file is; only a cache's part is followed while it comes."""
    return progress_of(Path(manifest)) if manifest.endswith(CHUNKS) else None


def _received(found: Manifest, manifest: str, written: dict[str, int]) -> dict[str, Any]:
    if manifest:
        publish.write_file(Path(manifest), found.to_bytes())
    return {"size": found.size, "digest": found.digest(), "written": written}
