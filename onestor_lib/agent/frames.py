"""What two agents say to each other while the content of a file crosses: binary frames.

A frame is kind, offset, length, then ``length`` bytes. From the receiver, before anything comes:

``H``  digests of chunks it has already, from chunk number ``offset`` on
``G``  go: nothing more to say

From the sender:

``D``  the data of the chunk at ``offset``
``Z``  the chunk at ``offset`` is all zeros, whatever the receiver had there
``P``  a sign of life: there was nothing to send for a while
``E``  the end: ``offset`` is the size of the file, the bytes are the digest of its manifest
``X``  the sender gives up: the bytes are its error as JSON
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Protocol

from onestor_lib.agent import errors
from onestor_lib.agent.chunks import CHUNK, DIGEST, NOTHING, Manifest

_HEADER = struct.Struct(">cQI")
_MESSAGE = (b"{", b"\n")  # how a line of JSON, or a sign of life, begins; no kind of frame does
_AT_ONCE = CHUNK // DIGEST  # digests in one frame


class Pipe(Protocol):
    """The raw bytes of a connection between two agents."""

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        """``count`` bytes; ``timeout`` bounds the wait for each next piece, not the whole.

        Raises ``TimeoutError`` and ``EOFError``.
        """

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        """Write all; ``TimeoutError`` after ``timeout`` seconds without progress."""

    def unread(self, data: bytes | bytearray) -> None:
        """Let ``data``, which was read last, be what comes next."""


def write(
    pipe: Pipe, kind: bytes, offset: int, data: bytes | bytearray = b"", *, timeout: float
) -> None:
    """Send one frame."""
    pipe.write(_HEADER.pack(kind, offset, len(data)), timeout)
    if data:
        pipe.write(data, timeout)


def read(pipe: Pipe, timeout: float) -> tuple[bytes, int, bytearray]:
    """The next frame: kind, offset, data. ``ValueError`` when it cannot be one.

    ``EOFError`` when the other side has left the stream: a message that says why is the next.
    """
    header = pipe.read_exactly(_HEADER.size, timeout)
    kind, offset, length = _HEADER.unpack(header)
    if kind in _MESSAGE:
        pipe.unread(header)
        raise EOFError
    if length > CHUNK:
        raise ValueError("the stream is damaged")
    return kind, offset, pipe.read_exactly(length, timeout)


def write_manifest(pipe: Pipe, have: Manifest, timeout: float) -> None:
    """Tell the sender what is here already, and that it may begin."""
    digests = have.to_bytes()
    for first in range(0, len(have), _AT_ONCE):
        part = digests[first * DIGEST : (first + _AT_ONCE) * DIGEST]
        if part.strip(NOTHING[:1]):
            write(pipe, b"H", first, part, timeout=timeout)
    write(pipe, b"G", 0, timeout=timeout)


def read_manifest(pipe: Pipe, size: int, timeout: float) -> Manifest:
    """What the receiver of content of ``size`` bytes has; ``ValueError`` for nonsense."""
    have = Manifest(size)
    while True:
        kind, first, digests = read(pipe, timeout)
        if kind == b"G":
            return have
        total, rest = divmod(len(digests), DIGEST)
        if kind != b"H" or rest or first + total > len(have):
            raise ValueError("the stream is damaged")
        for index, digest in _split(digests):
            have[first + index] = digest


def write_error(pipe: Pipe, error: errors.OnestorError, timeout: float) -> None:
    """Tell the receiver why no more is coming."""
    text = json.dumps(errors.to_json(error)).encode("ascii")
    write(pipe, b"X", 0, text, timeout=timeout)


def error_of(data: bytes | bytearray, host: str) -> errors.OnestorError:
    """The error that an ``X`` frame carries; ``host`` is the sender."""
    try:
        facts: dict[str, Any] = json.loads(data)
        return errors.from_json(facts, host=host)
    except (ValueError, AttributeError):
        return errors.TransferFailed("receive", "the sender gave up", host=host)


def _split(digests: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    for index in range(len(digests) // DIGEST):
        yield index, bytes(digests[index * DIGEST : (index + 1) * DIGEST])
