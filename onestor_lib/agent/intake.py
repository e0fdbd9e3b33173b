"""Taking content in: read, decompressed, digested and written in one pass over its bytes.

Whatever the source, and whether the new file lies on this machine or on another one, the content
goes by in chunks: each is digested for the manifest while it is written, or sent to the agent that
writes it. Digests that somebody asked for are those of the file as it was received, before
anything was decompressed, as OpenNebula's own downloader takes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from onestor_lib.agent import (
    chunks,
    client,
    compression,
    crashpoints,
    extents,
    frames,
    image_format,
    locks,
    space,
    transfer,
)
from onestor_lib.agent.chunks import CHUNK, DIGEST, Manifest
from onestor_lib.agent.errors import HostUnreachable, OnestorError, TransferFailed
from onestor_lib.agent.sources import Piece, Source, Zeros

_REPORT = 0.5  # seconds between two progress messages
_ZEROS = bytes(CHUNK)

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: not known)


class Asked(NamedTuple):
    """What is asked of the content.

    ``digests`` (algorithm to hexadecimal digest) must all fit; with ``inspect`` content that is
    no image is refused as soon as its first bytes tell.
    """

    digests: Mapping[str, str]
    decompress: bool
    inspect: bool
    step: str
    stall: float


class Target(Protocol):
    """Where the chunks go."""

    def take(self, index: int, block: bytes) -> None:
        """The chunk ``index``; those never given are zeros."""

    def finish(self, size: int) -> Manifest:
        """All is there: make it ``size`` bytes and return the manifest."""


def take_in(source: Source, target: Target, asked: Asked, on_progress: Progress) -> Manifest:
    """Bring the content of ``source`` into ``target``.

    Raises :class:`TransferFailed` for content that is not complete, :class:`OnestorError` for a
    digest that does not fit, what the source raises, and ``StartAgain``.
    """
    cutter = _Cutter(target)
    with contextlib.ExitStack() as stack:
        sums = stack.enter_context(_Sums(asked.digests))
        count = _Count(source, sums, on_progress)
        head, pieces = _peek(count.watched(source.pieces()))
        kind = image_format.compression_of(head) if asked.decompress else ""
        if kind:
            plain = compression.decompressed(
                kind, _as_bytes(pieces), step=asked.step, stall=asked.stall
            )
            stack.callback(plain.close)
            head, pieces = _peek(plain)
        _refuse_early(head, source, asked)
        for piece in pieces:
            cutter.add(piece)
        cutter.end()
        _require_complete(source, count.done, asked)
        sums.check(asked.step, source.name)
    on_progress(count.done, count.done)
    return target.finish(cutter.size)


class _Digests:
    """The manifest of content whose size nobody knows before its end."""

    def __init__(self, work: transfer.Pipeline) -> None:
        self._work = work
        self._digests = bytearray()

    def take(self, index: int, block: bytes) -> None:
        self._digests.extend(bytes((index + 1) * DIGEST - len(self._digests)))
        self._work.submit(self._digest, index, block)

    def finish(self, size: int) -> Manifest:
        self._work.drain()
        self._digests.extend(bytes(chunks.count(size) * DIGEST - len(self._digests)))
        return Manifest(size, bytes(self._digests))

    def _digest(self, index: int, block: bytes) -> None:
        self._digests[index * DIGEST : (index + 1) * DIGEST] = chunks.chunk_digest(block)


class FileTarget:
    """A file of this machine; ``is_written`` when the content is there already (a reflink)."""

    def __init__(self, fd: int, work: transfer.Pipeline, *, is_written: bool = False) -> None:
        self._fd, self._work, self._is_written = fd, work, is_written
        self._digests = _Digests(work)

    def take(self, index: int, block: bytes) -> None:
        self._digests.take(index, block)
        if not self._is_written:
            self._work.write(extents.write_data, self._fd, index * CHUNK, block)

    def finish(self, size: int) -> Manifest:
        found = self._digests.finish(size)
        os.ftruncate(self._fd, size)
        return found


class RemoteTarget:
    """A file that an agent at the other end of ``pipe`` writes (:func:`receive`).

    As long as the ``with`` block lasts that agent gets signs of life: there may be nothing but
    zeros to send for a while, or a server that has to be asked again.
    """

    def __init__(self, pipe: frames.Pipe, work: transfer.Pipeline, stall: float) -> None:
        self._pipe, self._stall = pipe, stall
        self._digests = _Digests(work)
        self._sending, self._ended = threading.Lock(), threading.Event()
        self.sent = 0  # bytes

    def __enter__(self) -> RemoteTarget:
        self._pulse = threading.Thread(target=self._give_signs, daemon=True)
        self._pulse.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._pulse.join(self._stall)

    def take(self, index: int, block: bytes) -> None:
        if chunks.is_zero(block):
            return
        self._digests.take(index, block)
        self._frame(b"D", index * CHUNK, block)
        self.sent += len(block)

    def finish(self, size: int) -> Manifest:
        found = self._digests.finish(size)
        self._ended.set()  # nothing comes behind the end
        self._frame(b"E", size, found.digest().encode("ascii"))
        return found

    def _frame(self, kind: bytes, offset: int, data: bytes = b"") -> None:
        with self._sending:
            if kind != b"P" or not self._ended.is_set():
                frames.write(self._pipe, kind, offset, data, timeout=self._stall)

    def _give_signs(self) -> None:
        with contextlib.suppress(OSError, OnestorError):  # whoever sends content will notice
            while not self._ended.wait(_REPORT):
                self._frame(b"P", 0)


def receive(pipe: frames.Pipe, fd: int, *, stall: float, path: str) -> Manifest:
    """Write what a :class:`RemoteTarget` sends into the empty open file ``fd``.

    Raises :class:`TransferFailed` unless the file has exactly the sender's content.
    """

    def failed(cause: str) -> TransferFailed:
        return TransferFailed("receive", cause, path=path)

    try:
        with transfer.Pipeline(1) as work:
            target = FileTarget(fd, work)
            while True:
                kind, offset, data = frames.read(pipe, stall)
                if kind == b"X":
                    raise frames.error_of(data, "")
                if kind == b"E":
                    break
                index, misfit = divmod(offset, CHUNK)
                if kind == b"P":
                    continue
                if kind != b"D" or misfit or not data:
                    raise ValueError("the stream is damaged")
                target.take(index, bytes(data))
            found = target.finish(offset)
    except EOFError:
        raise failed("the sender went away") from None
    except TimeoutError:
        raise failed(f"nothing came for {stall:.0f} s") from None
    except ValueError as error:
        raise failed(str(error)) from None
    if data.decode("ascii", "replace") != found.digest():
        raise failed(transfer.DIFFERENT)
    return found


def into_file(
    source: Source, temporary: Path, asked: Asked, on_progress: Progress, *, needed: int = 0
) -> tuple[Manifest, dict[str, int]]:
    """Take content into the existing file ``temporary`` of this machine.

    ``needed`` bytes must be free, unless blocks are shared: content that lies uncompressed on the
    same file system is, where that is possible. Returns the manifest and which file it is
    (``transfer.sealed``).
    """
    fd = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
    try:
        locks.become_writer(fd, temporary, asked.stall)
        os.ftruncate(fd, 0)
        shared = _share(source, fd, asked)
        if not shared:
            space.require(temporary.parent, needed)
        with transfer.Pipeline(1) as work:
            target = FileTarget(fd, work, is_written=shared)
            found = take_in(source, target, asked, on_progress)
        return found, transfer.sealed(fd)
    finally:
        os.close(fd)


def onto_host(
    source: Source,
    argv: list[str],
    host: str,
    asked: Asked,
    on_progress: Progress,
    **target: object,
) -> dict[str, object]:
    """Take content into a file of ``host``, whose agent ``argv`` starts.

    ``target`` says where it goes there (the operation ``intake.receive``), whose result is
    returned. Raises as :func:`take_in`, and :class:`HostUnreachable`.
    """
    try:
        with client.AgentClient(client.ProcessStream(argv), host) as receiver:
            receiver.start(client.payload)
            pipe = receiver.stream("intake.receive", stall=asked.stall, **target)
            found = None
            try:
                with transfer.Pipeline(1) as work:
                    remote = RemoteTarget(pipe, work, asked.stall)
                    with remote:
                        found = take_in(source, remote, asked, on_progress)
            except (BrokenPipeError, EOFError):
                pass  # the receiver has ended: what it says is the reason
            except TimeoutError:
                cause = f"nothing moved for {asked.stall:.0f} s"
                raise TransferFailed("send", cause, host=host, path=source.name) from None
            received: dict[str, object] = receiver.result("receive")
    except HostUnreachable as error:
        raise transfer.between(error, host) from error
    if found is None or received.get("digest") != found.digest():
        raise TransferFailed("send", "the receiver has other bytes", host=host, path=source.name)
    return {**received, "sent": remote.sent}


def _share(source: Source, fd: int, asked: Asked) -> bool:
    """Let the file share the blocks of a source on this machine; whether that was possible."""
    own = getattr(source, "fd", None)
    if own is None:
        return False
    head = source.read_at(0, image_format.HEAD) or b""
    if asked.decompress and image_format.compression_of(head):
        return False
    return extents.reflink(own, fd)


class _Cutter:
    """Cuts a stream of pieces into chunks."""

    def __init__(self, target: Target) -> None:
        self.size = 0  # bytes so far
        self._target = target
        self._parts: list[bytes] = []  # of the chunk that is not whole yet
        self._length = 0  # of those

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Zeros):
            self._add_zeros(int(piece))
            return
        view = memoryview(piece)
        while self._length + len(view) >= CHUNK:
            missing = CHUNK - self._length
            self._parts.append(bytes(view[:missing]) if missing < len(piece) else piece)
            view = view[missing:]
            self.end()
        if view:
            self._parts.append(bytes(view) if len(view) < len(piece) else piece)
            self._length += len(view)

    def end(self) -> None:
        """The rest is the last chunk."""
        if self._parts:
            block = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts, self._length = [], 0
            self._target.take(self.size // CHUNK, block)
            self.size += len(block)

    def _add_zeros(self, count: int) -> None:
        if self._length:
            padding = min(count, CHUNK - self._length)
            self.add(_ZEROS[:padding])
            count -= padding
        whole = count // CHUNK * CHUNK
        self.size += whole
        self.add(_ZEROS[: count - whole])


class _Count:
    """Watches pieces go by: how many bytes, and their digests."""

    def __init__(self, source: Source, sums: _Sums, on_progress: Progress) -> None:
        self.done = 0
        self._source, self._sums, self._on_progress = source, sums, on_progress
        self._reported = time.monotonic()

    def watched(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self.done += int(piece) if isinstance(piece, Zeros) else len(piece)
            self._sums.update(piece)
            total = self._source.size or 0
            if self.done >= total // 2:
                crashpoints.reach("intake.half")
            if time.monotonic() - self._reported > _REPORT:
                self._reported = time.monotonic()
                self._on_progress(self.done, total)
            yield piece


class _Sums:
    """The digests that were asked for, each taken in a thread of its own."""

    def __init__(self, expected: Mapping[str, str]) -> None:
        self._expected = expected
        self._sums = {name: hashlib.new(name, usedforsecurity=False) for name in expected}
        self._work = {name: transfer.Pipeline(1) for name in expected}

    def update(self, piece: Piece) -> None:
        for name, each in self._sums.items():
            if isinstance(piece, Zeros):
                self._work[name].submit(_update_zeros, each.update, int(piece))
            else:
                self._work[name].submit(each.update, piece)

    def check(self, step: str, path: str) -> None:
        """Raise :class:`OnestorError` unless all fit (known failure H4)."""
        for name, expected in self._expected.items():
            self._work[name].drain()
            if (found := self._sums[name].hexdigest()) != expected:
                cause = f"{name.upper()} is {found}, expected {expected}"
                raise OnestorError(step, cause, path=path)

    def __enter__(self) -> _Sums:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for work in self._work.values():
            work.__exit__(kind, error, trace)


def _update_zeros(update: Callable[[bytes], None], count: int) -> None:
    for start in range(0, count, CHUNK):
        update(_ZEROS[: min(CHUNK, count - start)])


def _peek(pieces: Iterator[Piece]) -> tuple[bytes, Iterator[Piece]]:
    """The first bytes, as many as tell what it is, and all pieces."""
    taken: list[Piece] = []
    head = b""
    for piece in pieces:
        taken.append(piece)
        missing = image_format.HEAD - len(head)
        head += bytes(min(int(piece), missing)) if isinstance(piece, Zeros) else piece[:missing]
        if len(head) >= image_format.HEAD:
            break

    def again() -> Iterator[Piece]:
        yield from taken
        taken.clear()
        yield from pieces

    return head, again()


def _as_bytes(pieces: Iterator[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Zeros):
            for start in range(0, int(piece), CHUNK):
                yield _ZEROS[: min(CHUNK, int(piece) - start)]
        else:
            yield piece


def _refuse_early(head: bytes, source: Source, asked: Asked) -> None:
    """Raise for what can be no image, before all of it has come."""
    if asked.inspect:
        image_format.describe(
            head, max(len(head), 1), step=asked.step, path=source.name,
            keeps_compressed=not asked.decompress,
        )  # fmt: skip


def _require_complete(source: Source, done: int, asked: Asked) -> None:
    """Compressed content does not tell either: one stream may be the first of several."""
    if source.size is not None and source.size != done:
        cause = f"{done} of {source.size} bytes have come"
        raise TransferFailed(asked.step, cause, path=source.name)
    if not source.is_complete_at_end and not asked.digests:
        cause = (
            "the server does not say how long the file is, so nobody can tell whether all of it"
            " has come: give its SHA256 (or SHA512, SHA1, MD5)"
        )
        raise TransferFailed(asked.step, cause, path=source.name)
