"""Moving the content of one file to another machine: data chunks only, verified before use.

The sender starts an agent on the receiving machine through the OpenSSH client and streams frames
to it; both sides digest what they see while the bytes are under way, so neither file is read
twice. The receiver compares length and digest before it says that the file is complete.

Frame: kind, offset, length, then ``length`` bytes. ``D`` carries data; ``P`` says that there is
nothing but zeros so far; ``E`` ends the stream: its offset is the size of the file, its bytes are
the sender's digest.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onestor_lib.agent import chunks, client, crashpoints, extents
from onestor_lib.agent.channel import ByteSource
from onestor_lib.agent.chunks import CHUNK, ContentDigest
from onestor_lib.agent.errors import (
    HostUnreachable,
    TransferFailed,
    from_os_error,
)

_FRAME = struct.Struct(">cQI")
_IN_FLIGHT = 16  # chunks held in memory by either side
_REPORT = 0.5  # seconds between two progress messages


def send(
    path: Path,
    argv: Sequence[str],
    *,
    host: str,
    temporary: str,
    stall: float,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Send the file ``path`` into the existing file ``temporary`` of ``host``.

    ``argv`` starts the agent there. ``stall`` is how many seconds may pass without progress.
    Returns size, digest and bytes sent. Raises :class:`TransferFailed` or
    :class:`HostUnreachable` when the link is to blame, else what the receiver met.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        before = os.fstat(fd)
        try:
            digest, sent = _send_open(fd, before.st_size, argv, host, temporary, stall, on_progress)
        except HostUnreachable as error:
            # Two hosts are part of this hop, the fault may be on either (known failure C12).
            step = f"{error.step} from {socket.gethostname()} to"
            raise HostUnreachable(step, error.cause, host=host, path=error.path) from error
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise TransferFailed("send", "the file was changed while it was sent", path=str(path))
    return {"size": before.st_size, "digest": digest, "sent": sent}


def receive(source: ByteSource, temporary: Path, *, size: int, stall: float) -> dict[str, Any]:
    """Write the stream into the existing file ``temporary``; returns size and digest.

    Raises :class:`TransferFailed` unless exactly the announced bytes have come. The caller owns
    the file and removes it then.
    """
    step = "receive"
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise from_os_error(step, error, path=str(temporary)) from error
    digest = ContentDigest(size)
    crashpoints.reach("receive.started")
    try:
        with _Pipeline(2, digest) as work:
            # What an earlier try wrote must not show through where this one sends no zeros.
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            while True:
                kind, offset, length = _FRAME.unpack(source.read_exactly(_FRAME.size, stall))
                if length > CHUNK:
                    raise TransferFailed(step, "the stream is damaged", path=str(temporary))
                block = source.read_exactly(length, stall)
                if kind == b"E":
                    break
                if kind == b"P":
                    continue
                if kind != b"D" or offset % CHUNK or offset + length > size:
                    raise TransferFailed(step, "the stream is damaged", path=str(temporary))
                if offset >= size // 2:
                    crashpoints.reach("receive.half")
                work.submit(_digest, offset // CHUNK, block)
                work.submit(_write, fd, offset, block)
        crashpoints.reach("receive.ended")
        found = digest.hexdigest()
        if offset != size or bytes(block).decode("ascii", "replace") != found:
            raise TransferFailed(step, "length or digest differ", path=str(temporary))
    except EOFError:
        raise TransferFailed(step, "the sender went away", path=str(temporary)) from None
    except TimeoutError:
        raise TransferFailed(step, f"nothing came for {stall:.0f} s", path=str(temporary)) from None
    except OSError as error:
        raise from_os_error(step, error, path=str(temporary)) from error
    finally:
        os.close(fd)
    return {"size": size, "digest": found}


def _send_open(
    fd: int,
    size: int,
    argv: Sequence[str],
    host: str,
    temporary: str,
    stall: float,
    on_progress: Callable[[int, int], None],
) -> tuple[str, int]:
    """Start the receiver and stream to it; the digest both have found, and the bytes sent."""
    with client.AgentClient(client.ProcessStream(argv), host) as receiver:
        receiver.start(client.payload)
        crashpoints.reach("send.started")
        arguments = {"temporary": temporary, "size": size, "stall": stall}
        receiver.request("transfer.receive", arguments, stream=True)
        try:
            digest, sent = _stream(fd, size, receiver, stall, on_progress)
        except TimeoutError:
            cause = f"nothing moved for {stall:.0f} s"
            raise TransferFailed("send", cause, host=host, path=temporary) from None
        except BrokenPipeError:
            digest, sent = "", 0  # the receiver has ended: what it says is the reason
        received = receiver.result("receive")
        crashpoints.reach("send.ended")
    if received.get("digest") != digest:
        raise TransferFailed("send", "the receiver has other bytes", host=host, path=temporary)
    return digest, sent


def _stream(
    fd: int,
    size: int,
    receiver: client.AgentClient,
    stall: float,
    on_progress: Callable[[int, int], None],
) -> tuple[str, int]:
    """Send all data chunks and the end frame; the digest and how many bytes went out."""
    digest = ContentDigest(size)
    sent = 0
    reported = time.monotonic()
    with _Pipeline(1, digest) as work:
        for index in extents.data_chunks(fd, size):
            offset = index * CHUNK
            block = extents.read_exactly(fd, min(CHUNK, size - offset), offset)
            if time.monotonic() - reported > _REPORT:
                on_progress(offset, size)
                receiver.send_raw(_FRAME.pack(b"P", offset, 0), stall)
                reported = time.monotonic()
            if chunks.is_zero(block):
                continue
            if offset >= size // 2:
                crashpoints.reach("send.half")
            work.submit(_digest, index, block)
            receiver.send_raw(_FRAME.pack(b"D", offset, len(block)), stall)
            receiver.send_raw(block, stall)
            sent += len(block)
    found = digest.hexdigest()
    receiver.send_raw(_FRAME.pack(b"E", size, len(found)) + found.encode("ascii"), stall)
    on_progress(size, size)
    return found, sent


def _digest(index: int, block: bytes | bytearray) -> tuple[int, bytes]:
    return index, chunks.chunk_digest(block)


def _write(fd: int, offset: int, block: bytearray) -> None:
    extents.write_chunk(fd, offset, block, sparse=False)


class _Pipeline:
    """A few threads that digest and write while the next chunk is read, with bounded memory.

    Hashing and system calls let other threads run, so this overlaps for real. Digests are folded
    in the order of their tasks. The first error of a task is raised at the next :meth:`submit` or
    at the end of the ``with`` block.
    """

    def __init__(self, threads: int, digest: ContentDigest) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._digest = digest
        self._pending: deque[Future[tuple[int, bytes] | None]] = deque()

    def submit(self, task: Callable[..., tuple[int, bytes] | None], *arguments: Any) -> None:
        self._pending.append(self._pool.submit(task, *arguments))
        if len(self._pending) >= _IN_FLIGHT:
            self._take()

    def _take(self) -> None:
        found = self._pending.popleft().result()
        if found:
            self._digest.fold(*found)

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True)
        while error is None and self._pending:
            self._take()
