"""Operations that bring the content of a new image to where it will lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import intake, locks, priority, space, transfer
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.errors import TransferFailed
from onestor_lib.agent.server import Call
from onestor_lib.agent.sources import Source, StartAgain, open_source

_ATTEMPTS = 3  # at content that is another one each time


def pour(
    call: Call,
    *,
    source: dict[str, Any],
    asked: dict[str, Any],
    argv: list[str],
    host: str,
    needs_space: str,
    bulk: dict[str, Any],
    **target: Any,
) -> dict[str, Any]:
    """Bring the content of ``source`` into a file that lies here, or on ``host``.

    ``argv`` starts an agent there, nothing stands for here; ``target`` is the ``temporary`` to
    fill and the file for its ``manifest``. ``needs_space``: "no" to check nothing, "holes" when
    holes stay holes, "all" when they will not.
    """
    priority.lower(**bulk)
    wanted = intake.Asked(**asked)
    for _ in range(_ATTEMPTS):
        opened = open_source(source, step=wanted.step, stall=wanted.stall)
        try:
            opened.prepare()
            needed = _needed(opened, needs_space)
            if argv:
                return intake.onto_host(
                    opened, argv, host, wanted, call.progress, needed=needed, **target
                )
            return _into_file(call, opened, wanted, needed, **target)
        except StartAgain:
            call.log(
                "INFO", f"{opened.name} has changed or cannot be resumed: from the begin again"
            )
        finally:
            opened.close()
    raise TransferFailed(wanted.step, "it cannot be read to its end", path=opened.name)


def receive(
    call: Call, *, temporary: str, manifest: str, needed: int, stall: float
) -> dict[str, Any]:
    """Receive what :func:`pour` streams behind this request into the file ``temporary``."""
    path = Path(temporary)
    space.require(path.parent, needed)
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        locks.become_writer(fd, path, stall)
        os.ftruncate(fd, 0)
        with call.streaming() as pipe:
            found = intake.receive(pipe, fd, stall=stall, path=temporary)
        return _received(found, manifest, transfer.sealed(fd))
    finally:
        os.close(fd)


def _into_file(
    call: Call, source: Source, asked: intake.Asked, needed: int, temporary: str, manifest: str
) -> dict[str, Any]:
    found, written = intake.into_file(source, Path(temporary), asked, call.progress, needed=needed)
    return {**_received(found, manifest, written), "sent": 0}


def _needed(source: Source, needs_space: str) -> int:
    """Bytes the content takes at least, as far as that is known before it comes."""
    if needs_space == "no":
        return 0
    allocated = getattr(source, "allocated", None) if needs_space == "holes" else None
    return int(allocated if allocated is not None else source.size or 0)


def _received(found: Manifest, manifest: str, written: dict[str, int]) -> dict[str, Any]:
    if manifest:
        with open(os.open(manifest, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "wb") as file:
            file.write(found.to_bytes())
    return {"size": found.size, "digest": found.digest(), "written": written}
