"""Operations that move the content of one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import extents, transfer
from onestor_lib.agent.server import Call


def send(call: Call, *, path: str, **options: Any) -> dict[str, Any]:
    """Send a file of this machine to another one, see :func:`onestor_lib.agent.transfer.send`."""
    return transfer.send(Path(path), on_progress=call.progress, **options)


def receive(call: Call, *, temporary: str, **options: Any) -> dict[str, Any]:
    """Receive what :func:`send` streams behind this request."""
    return transfer.receive(call.stream, Path(temporary), **options)


def copy_here(call: Call, *, path: str, temporary: str, sparse: bool) -> dict[str, Any]:
    """Copy a file of this machine into the existing file ``temporary`` of this machine."""
    source = os.open(path, os.O_RDONLY)
    try:
        target = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
        try:
            size = extents.copy_file(source, target, sparse=sparse, step="copy", path=path)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return {"size": size, "sent": 0}
