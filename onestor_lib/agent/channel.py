"""The agent's end of the connection: JSON lines both ways over two file descriptors.

Every wait for the other side is bounded by :data:`SILENCE`: both sides send an empty line every
:data:`PULSE` seconds, so silence means that the other one, or the network, is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from onestor_lib.agent.errors import HostUnreachable

PULSE = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without any after which the other side counts as gone
MAX_LINE = 16 << 20  # bytes

_F_SETPIPE_SZ = 1031


class ByteSource:
    """Reads a pipe with deadlines; what was read ahead is never lost between two readers."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()

    def read_line(self, timeout: float) -> bytes:
        """The next line without its end; ``EOFError`` at the end of the stream."""
        deadline = time.monotonic() + timeout
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            if scanned > MAX_LINE:
                raise EOFError("a line without end")
            self._fill(deadline, 1 << 16)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        """``count`` bytes; ``timeout`` bounds the wait for each next piece, not the whole."""
        block = self._buffer[:count]
        del self._buffer[:count]
        filled = len(block)
        block.extend(bytes(count - filled))
        with memoryview(block) as view:
            while filled < count:
                self._wait(timeout)
                read = os.readv(self._fd, [view[filled:]])
                if not read:
                    raise EOFError
                filled += read
        return block

    def unread(self, data: bytes | bytearray) -> None:
        """Let ``data``, which was read last, be what comes next."""
        self._buffer[:0] = data

    def _wait(self, timeout: float) -> None:
        if not select.select([self._fd], [], [], max(0.0, timeout))[0]:
            raise TimeoutError

    def _fill(self, deadline: float, count: int) -> None:
        self._wait(deadline - time.monotonic())
        block = os.read(self._fd, count)
        if not block:
            raise EOFError
        self._buffer += block


class Writer:
    """Writes JSON lines; one at a time, whichever thread they come from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        os.set_blocking(fd, False)

    def send(self, message: dict[str, Any]) -> None:
        self._write(json.dumps(message).encode("ascii") + b"\n")

    def pulse(self) -> None:
        self._write(b"\n")

    @contextlib.contextmanager
    def raw(self) -> Iterator[Callable[[bytes | bytearray | memoryview, float], None]]:
        """Keep the connection to raw bytes for the ``with`` block; yields what writes them."""
        with self._lock:
            self._put(b'{"stream": true}\n', SILENCE)
            yield self._put

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._put(line, SILENCE)

    def _put(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self._fd], [], timeout)[1]:
                raise TimeoutError
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._fd, view) :]


def widen(fd: int) -> None:
    """Let a pipe hold a whole chunk, so that neither side waits for the other so often.

    F_SETPIPE_SZ of fcntl(2); what is no pipe, or may not grow, stays as it is.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 20)


def parse(line: bytes) -> dict[str, Any]:
    """A message of the other side; anything else on the line breaks the connection."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise HostUnreachable("talk to the agent", f"unexpected line {line[:80]!r}")
    return message
