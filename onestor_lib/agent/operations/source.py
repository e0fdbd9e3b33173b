"""Operations on a file that is to become an image elsewhere: what ``sources.remote`` asks for."""

from __future__ import annotations

import base64
import os
from typing import Any

from onestor_lib.agent import frames
from onestor_lib.agent.errors import OnestorError, TransferFailed, from_os_error
from onestor_lib.agent.server import Call
from onestor_lib.agent.sources import Zeros
from onestor_lib.agent.sources.local import FileSource
from onestor_lib.agent.version import Version


def describe(call: Call, *, step: str, **file: Any) -> dict[str, Any]:
    """Which file it is, and what a copy of it takes."""
    source = FileSource(file, step=step)
    try:
        version = Version.of(os.fstat(source.fd))
        return {"version": version.to_json(), "allocated": source.allocated}
    finally:
        source.close()


def peek(call: Call, *, offset: int, count: int, step: str, **file: Any) -> dict[str, str]:
    """Some bytes of the file."""
    source = FileSource(file, step=step)
    try:
        return {"data": base64.b64encode(source.read_at(offset, count)).decode("ascii")}
    finally:
        source.close()


def read(
    call: Call, *, start: int, version: dict[str, int], stall: float, step: str, **file: Any
) -> dict[str, Any]:
    """Send the file from ``start`` on down this connection; what lies between frames is zeros.

    It must still be of the ``version`` that was described. Its end is a frame with the size; an
    error of ours goes down the stream.
    """
    source = FileSource(file, step=step)
    try:
        with call.streaming() as pipe:
            position = start
            try:
                if Version.of(os.fstat(source.fd)) != Version.from_json(version):
                    raise TransferFailed(step, "the file was changed", path=source.name)
                for piece in source.pieces(start):
                    if isinstance(piece, Zeros):
                        position += int(piece)
                        continue
                    frames.write(pipe, b"D", position, piece, timeout=stall)
                    position += len(piece)
                frames.write(pipe, b"E", position, timeout=stall)
            except OnestorError as error:
                frames.write_error(pipe, error, stall)
            except (BrokenPipeError, TimeoutError):
                raise
            except OSError as error:
                frames.write_error(pipe, from_os_error(step, error, where=source.name), stall)
    finally:
        source.close()
    return {}
