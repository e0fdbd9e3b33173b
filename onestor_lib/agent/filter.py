"""A program that turns one stream into another: gzip -dc and its like."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from onestor_lib.agent import channel, process
from onestor_lib.agent.errors import CommandFailed, TransferFailed

_TICK = 1.0  # seconds between two looks at whether anything moves
# Programs write a few KiB at a time. Who is woken up for each of them costs more than the content:
# after so little it rests, and the pipe fills.
_SIP, _REST = 1 << 17, 0.001  # bytes, seconds


class Filter:
    """Feeds ``blocks`` to ``argv`` in a thread and gives what comes out; a context manager.

    An exception of the blocks' iterator is raised to the reader, whatever the program makes of the
    missing rest. ``stall`` is how many seconds may pass with nothing moving in or out.
    """

    def __init__(
        self,
        argv: Sequence[str],
        blocks: Iterator[bytes],
        *,
        step: str,
        stall: float,
        limits: process.Limits | None = None,
    ) -> None:
        self._name, self._step, self._stall = argv[0], step, stall
        self._moved = time.monotonic()
        self._ended = False  # there is nothing more to read
        self._enough = False  # nor does anybody read what is fed
        self._waits_for_source = True
        self._failure: BaseException | None = None
        self._child = subprocess.Popen(
            process.command(argv, step, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=process.environment(),
            start_new_session=True,
        )
        assert self._child.stdin and self._child.stdout
        self._in, self._out = self._child.stdin.fileno(), self._child.stdout.fileno()
        for fd in (self._in, self._out):
            channel.widen(fd)
        os.set_blocking(self._in, False)
        self._said = process.Drain(self._child.stderr, keep_last=process.STDERR_TAIL)
        self._feeder = threading.Thread(target=self._feed, args=(blocks,), daemon=True)
        self._feeder.start()

    def read(self, count: int) -> bytes:
        """``count`` bytes, fewer only at the end.

        Raises what the blocks have raised, :class:`CommandFailed` with the program's last words,
        and :class:`TransferFailed` when nothing moves.
        """
        parts: list[bytes] = []
        while count and not self._ended:
            self._wait()
            block = os.read(self._out, min(count, 1 << 20))
            self._moved = time.monotonic()
            if not block:
                self._require_good_end()
                self._ended = True
            parts.append(block)
            count -= len(block)
            if count and 0 < len(block) < _SIP:
                time.sleep(_REST)
        return b"".join(parts)

    def close(self) -> None:
        """End the program, if it has not ended itself; what the blocks give is let go."""
        self._ended = self._enough = True
        process.end_group(self._child)
        self._feeder.join(process.LINGER)
        self._said.join(process.LINGER)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Filter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self) -> None:
        while not select.select([self._out], [], [], _TICK)[0]:
            if self._waits_for_source:  # which has a limit of its own
                self._moved = time.monotonic()
            elif time.monotonic() - self._moved > self._stall:
                cause = f"nothing came through {self._name} for {self._stall:.0f} s"
                raise self._failure or TransferFailed(self._step, cause)

    def _require_good_end(self) -> None:
        self._enough = True
        self._feeder.join(self._stall)
        status = process.status_of(self._child, self._stall)
        self._said.join(process.LINGER)
        if self._failure:
            raise self._failure
        if self._feeder.is_alive():
            raise TransferFailed(self._step, f"{self._name} has ended before its input")
        if status is None:
            raise TransferFailed(self._step, f"{self._name} does not end")
        if status:
            said = process.last_lines(self._said.kept)
            how = f"killed by {process.signal_name(-status)}" if status < 0 else f"status {status}"
            raise CommandFailed(self._step, f"{self._name}: {said} ({how})")

    def _feed(self, blocks: Iterator[bytes]) -> None:
        try:
            for block in blocks:
                self._waits_for_source = False
                self._moved = time.monotonic()
                if not self._put(block):
                    break  # it wants no more: what it says at its end is the reason
                self._waits_for_source = True
        except BaseException as error:  # noqa: BLE001 - raised again by read()
            self._failure = error
        finally:
            self._waits_for_source = False
            with contextlib.suppress(OSError):
                if self._child.stdin:
                    self._child.stdin.close()

    def _put(self, block: bytes) -> bool:
        view = memoryview(block)
        while view:
            if self._enough:
                return False
            if not select.select([], [self._in], [], _TICK)[1]:
                continue
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
            self._moved = time.monotonic()
        return True
