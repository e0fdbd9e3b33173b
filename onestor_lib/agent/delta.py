"""Sending a file to where an older one like it is: only the blocks that are nowhere in that one.

Content is told by what it is, not by where it is: a copy of a qcow2 file is laid out anew each
time, and everything behind a new cluster moves. In frames (``onestor_lib.agent.frames``), from the
sender: ``L`` the digests of blocks from number ``offset`` on, ``G`` when those are all. From the
receiver ``W``, one bit for each block from number ``offset`` on, which it wants, and ``G``. Then
the sender's ``D``, the block at ``offset``, for each of these, and ``E``, the size of the file with
the digest over all digests. ``P`` is a sign of life, ``X`` the end for a reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onestor_lib.agent import extents, frames, transfer
from onestor_lib.agent.bandwidth import Limit
from onestor_lib.agent.errors import TransferFailed, from_os_error

BLOCK = 64 << 10  # bytes: a cluster of qcow2 unless asked otherwise
DIGEST = hashlib.sha256().digest_size
NOTHING = bytes(DIGEST)  # of a block of zeros
_ZEROS = bytes(BLOCK)
_AT_ONCE = 8192  # digests, or bits for blocks, in one frame
_PULSE = 1.0  # seconds between two signs of life
_STEP = "send the copy"


def count(size: int) -> int:
    """How many blocks a file of ``size`` bytes has."""
    return -(-size // BLOCK)


def digest_of(block: bytes | bytearray) -> bytes:
    """Of one block; :data:`NOTHING` for zeros."""
    return NOTHING if block == _ZEROS[: len(block)] else hashlib.sha256(block).digest()


def digests(fd: int, size: int, report: Callable[[int], None] = lambda done: None) -> bytearray:
    """The digests of all blocks of an open file; holes are not read."""
    found = bytearray(count(size) * DIGEST)
    done = -1
    for start, end in extents.data(fd, size):
        for index in range(max(start // BLOCK, done + 1), count(end)):
            report(index * BLOCK)
            found[index * DIGEST : (index + 1) * DIGEST] = digest_of(_read(fd, index, size))
            done = index
    return found


def send(
    pipe: frames.Pipe,
    fd: int,
    size: int,
    *,
    stall: float,
    on_progress: Callable[[int, int], None],
    limit: Limit | None,
) -> int:
    """Send an open file of ``size`` bytes; how many of them had to cross.

    Raises ``TimeoutError``, ``EOFError``, ``BrokenPipeError`` and ``ValueError``.
    """
    pulse = _Pulse(pipe, stall, lambda done: on_progress(done, size))
    before = os.fstat(fd)
    found = digests(fd, size, pulse)
    for first in range(0, count(size), _AT_ONCE):
        part = found[first * DIGEST : (first + _AT_ONCE) * DIGEST]
        if part.strip(b"\0"):
            frames.write(pipe, b"L", first, part, timeout=stall)
    frames.write(pipe, b"G", 0, timeout=stall)
    sent = 0
    for index in _wanted(pipe, count(size), stall):
        block = _read(fd, index, size)
        if limit:
            limit.wait(len(block), lambda: pulse(0))
        frames.write(pipe, b"D", index * BLOCK, block, timeout=stall)
        pulse(index * BLOCK)
        sent += len(block)
    transfer.require_unchanged(before, os.fstat(fd), Path(f"/proc/self/fd/{fd}"))
    frames.write(pipe, b"E", size, hashlib.sha256(found).digest(), timeout=stall)
    return sent


def receive(
    pipe: frames.Pipe,
    target: Path,
    size: int,
    *,
    older: Path | None,
    older_digests: bytes,
    stall: float,
    on_progress: Callable[[int, int], None],
    host: str,
) -> tuple[bytes, int]:
    """Make the empty file ``target`` what the sender has; its digests, and the bytes that came.

    ``older`` is a file that has many of the blocks, ``older_digests`` what it is believed to hold:
    every block taken from there is read and compared. Raises :class:`TransferFailed` unless the
    file has exactly the sender's content.
    """

    def failed(cause: str) -> TransferFailed:
        return TransferFailed("receive the copy", cause, host=host, path=str(target))

    try:
        with extents.opened(target, write=True) as fd:
            os.ftruncate(fd, size)
            listed = _listed(pipe, count(size), stall)
            pulse = _Pulse(pipe, stall, lambda done: on_progress(done, size))
            wanted = _take(fd, size, listed, older, older_digests, pulse)
            _ask(pipe, wanted, count(size), stall)
            silent = _Pulse(None, stall, lambda done: on_progress(done, size))
            received = _fill(pipe, fd, size, listed, wanted, stall, silent)
    except EOFError:
        raise failed("the sender went away") from None
    except TimeoutError:
        raise failed(f"nothing came for {stall:.0f} s") from None
    except ValueError as error:
        raise failed(str(error)) from None
    except BrokenPipeError:
        raise failed("the sender went away") from None
    except OSError as error:
        raise from_os_error("receive the copy", error, path=str(target)) from error
    return bytes(listed), received


def _listed(pipe: frames.Pipe, blocks: int, stall: float) -> bytearray:
    found = bytearray(blocks * DIGEST)
    while True:
        kind, first, part = _next(pipe, stall)
        if kind == b"G":
            return found
        if kind != b"L" or len(part) % DIGEST or first + len(part) // DIGEST > blocks:
            raise ValueError("the stream is damaged")
        found[first * DIGEST : first * DIGEST + len(part)] = part


def _take(
    fd: int,
    size: int,
    listed: bytearray,
    older: Path | None,
    older_digests: bytes,
    report: Callable[[int], None],
) -> list[int]:
    """Copy the blocks that the older file has; the numbers of the others, but for zeros."""
    known: dict[bytes, int] = {}
    for index in range(len(older_digests) // DIGEST):
        known.setdefault(older_digests[index * DIGEST : (index + 1) * DIGEST], index)
    wanted = []
    with contextlib.ExitStack() as stack:
        source = -1
        if older is not None:
            with contextlib.suppress(OSError):
                source = stack.enter_context(extents.opened(older))
        for index in range(count(size)):
            digest = bytes(listed[index * DIGEST : (index + 1) * DIGEST])
            if digest == NOTHING:
                continue
            there = known.get(digest) if source >= 0 else None
            if there is not None:
                report(index * BLOCK)
                length = min(BLOCK, size - index * BLOCK)
                block = extents.read_exactly(source, length, there * BLOCK)
                if digest_of(block) == digest:
                    extents.write_chunk(fd, index * BLOCK, block)
                    continue
            wanted.append(index)
    return wanted


def _ask(pipe: frames.Pipe, wanted: list[int], blocks: int, stall: float) -> None:
    bits = bytearray(-(-blocks // 8))
    for index in wanted:
        bits[index // 8] |= 1 << index % 8
    for first in range(0, blocks, _AT_ONCE):
        part = bits[first // 8 : (first + _AT_ONCE) // 8]
        if part.strip(b"\0"):
            frames.write(pipe, b"W", first, part, timeout=stall)
    frames.write(pipe, b"G", 0, timeout=stall)


def _wanted(pipe: frames.Pipe, blocks: int, stall: float) -> Iterator[int]:
    """The numbers of the blocks that the receiver asks for; all are read before the first."""
    found = []
    while True:
        kind, first, part = _next(pipe, stall)
        if kind == b"G":
            break
        if kind != b"W" or first % 8 or first + (len(part) - 1) * 8 >= blocks:
            raise ValueError("the stream is damaged")
        found.append((first, part))
    for first, part in found:
        for index in range(first, min(blocks, first + len(part) * 8)):
            if part[(index - first) // 8] >> (index - first) % 8 & 1:
                yield index


def _fill(
    pipe: frames.Pipe,
    fd: int,
    size: int,
    listed: bytearray,
    wanted: list[int],
    stall: float,
    report: Callable[[int], None],
) -> int:
    missing, received = set(wanted), 0
    while True:
        kind, offset, data = _next(pipe, stall)
        if kind == b"E":
            break
        index, misfit = divmod(offset, BLOCK)
        if kind != b"D" or misfit or index not in missing:
            raise ValueError("the stream is damaged")
        if digest_of(data) != listed[index * DIGEST : (index + 1) * DIGEST]:
            raise ValueError(transfer.DIFFERENT)
        extents.write_chunk(fd, offset, data)
        missing.discard(index)
        received += len(data)
        report(offset)
    if missing or offset != size or data != hashlib.sha256(listed).digest():
        raise ValueError(transfer.DIFFERENT)
    return received


def _next(pipe: frames.Pipe, stall: float) -> tuple[bytes, int, bytearray]:
    """The next frame that is no sign of life; raises the error of one that ends it."""
    while True:
        kind, offset, data = frames.read(pipe, stall)
        if kind == b"X":
            raise frames.error_of(data, "")
        if kind != b"P":
            return kind, offset, data


def _read(fd: int, index: int, size: int) -> bytes:
    return extents.read_exactly(fd, min(BLOCK, size - index * BLOCK), index * BLOCK)


class _Pulse:
    """Tells both sides now and then that the work goes on; the other one only if it reads."""

    def __init__(
        self, pipe: frames.Pipe | None, stall: float, report: Callable[[int], None]
    ) -> None:
        self._pipe, self._stall, self._report = pipe, stall, report
        self._told = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._told > _PULSE:
            self._told = time.monotonic()
            self._report(done)
            if self._pipe:
                frames.write(self._pipe, b"P", 0, timeout=self._stall)
