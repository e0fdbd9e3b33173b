"""Moving the content of one file to another machine: only what is not there yet, verified.

One agent starts another through the OpenSSH client and they exchange frames
(``onestor_lib.agent.frames``). Who has the file is the sender, whichever of the two has called the
other. The receiver digests every chunk that arrives and compares with the sender's digest of the
whole before it says that the file is complete; the sender digests what it reads only when no
manifest says already what is in the file.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from onestor_lib.agent import chunks, client, crashpoints, extents, frames, locks
from onestor_lib.agent.bandwidth import Limit, datastores_of
from onestor_lib.agent.chunks import CHUNK, NOTHING, Manifest
from onestor_lib.agent.errors import HostUnreachable, TransferFailed, from_os_error
from onestor_lib.agent.version import Version

_IN_FLIGHT = 16  # chunks held in memory by either side
_FLUSH_AFTER = 32  # chunks
_REPORT = 0.5  # seconds between two progress messages
_PAUSE = 0.02  # seconds between two looks at a file that grows

_POSITION = struct.Struct(">Q")

DIFFERENT = "length or digest differ"
CHANGED = "the image was changed since the action began"

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class _Reporter:
    """Passes on how far something is, not more often than anybody wants to know."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self._on_progress, self._total = on_progress, total
        self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last > _REPORT:
            self._last = time.monotonic()
            self._on_progress(done, self._total)


class Sender:
    """The sending side of one transfer."""

    def __init__(
        self,
        pipe: frames.Pipe,
        *,
        stall: float,
        on_progress: Progress = lambda done, total: None,
        limit: Limit | None = None,
    ) -> None:
        self.sent = 0  # bytes of data
        self._pipe, self._stall, self._limit = pipe, stall, limit
        self._on_progress = on_progress
        self._reported = time.monotonic()

    def send(
        self, fd: int, size: int, known: Manifest | None = None, *, digest: str = ""
    ) -> Manifest:
        """Send what the receiver lacks of the open file; the manifest of all its content.

        ``known`` is believed: when the file has other content, the receiver will notice. Without
        it ``digest``, if there is one, is what the content must have: nobody else can tell then.
        Raises :class:`TransferFailed` for other content, ``TimeoutError``, ``EOFError``,
        ``BrokenPipeError`` and ``ValueError``.
        """
        have = frames.read_manifest(self._pipe, size, self._stall)
        manifest = known or Manifest(size)
        with Pipeline(1) as work:
            data = known.data_chunks(0, size) if known else extents.data_chunks(fd, size)
            for index in _merged(data, have.data_chunks(0, size)):
                self._report(index * CHUNK, size)
                if known and known[index] == have[index]:
                    continue
                block = _read(fd, index, size)
                if not known and have[index] == NOTHING:
                    work.submit(_digest, manifest, index, block)  # it is sent whatever it is
                elif not known:
                    manifest[index] = chunks.chunk_digest(block)
                    if manifest[index] == have[index]:
                        continue
                self._send_chunk(index, block, have, size)
        found = manifest.digest()
        if digest not in ("", found):
            raise TransferFailed("send", DIFFERENT)
        self._end(size, found)
        return manifest

    def follow(
        self, fd: int, size: int, complete: Callable[[int], int], digest: Callable[[], str]
    ) -> None:
        """Send an open file that is still being filled, from its begin to its end.

        ``complete`` says how many bytes from the begin are there for good, given how many are sent;
        ``digest`` is asked at the end. Raises as :meth:`send`.
        """
        have = frames.read_manifest(self._pipe, size, self._stall)
        done = 0
        moved = time.monotonic()
        while done < size:
            if (end := complete(done)) <= done:
                if time.monotonic() - moved > self._stall:
                    raise TimeoutError
                self._report(done, size)
                time.sleep(_PAUSE)
                continue
            data = extents.data_chunks(fd, end, done)
            for index in _merged(data, have.data_chunks(done, end)):
                self._report(index * CHUNK, size)
                block = _read(fd, index, size)
                if have[index] == NOTHING or chunks.chunk_digest(block) != have[index]:
                    self._send_chunk(index, block, have, size)
            done, moved = end, time.monotonic()
        self._end(size, digest())

    def _send_chunk(self, index: int, block: bytes, have: Manifest, size: int) -> None:
        offset = index * CHUNK
        if offset >= size // 2:
            crashpoints.reach("send.half")
        if chunks.is_zero(block):
            if have[index] != NOTHING:
                self._frame(b"Z", offset)
            return
        if self._limit:
            self._limit.wait(len(block), self._sign_of_life)
        self._frame(b"D", offset, block)
        self.sent += len(block)

    def _end(self, size: int, digest: str) -> None:
        self._frame(b"E", size, digest.encode("ascii"))
        self._on_progress(size, size)

    def _frame(self, kind: bytes, offset: int, data: bytes = b"") -> None:
        frames.write(self._pipe, kind, offset, data, timeout=self._stall)

    def _report(self, done: int, total: int) -> None:
        if time.monotonic() - self._reported > _REPORT:
            self._on_progress(done, total)
            self._sign_of_life()

    def _sign_of_life(self) -> None:
        self._frame(b"P", 0)
        self._reported = time.monotonic()


def send(
    path: Path,
    argv: Sequence[str],
    *,
    host: str,
    size: int,
    version: Version | None,
    known: Manifest | None,
    stall: float,
    on_progress: Progress,
    bytes_per_second: int,
    **target: Any,
) -> tuple[dict[str, Any], Manifest]:
    """Start the receiver's agent with ``argv`` and send it ``size`` bytes of the file ``path``.

    ``version`` is the one it must have, ``known`` the manifest of that; ``target`` says where the
    receiver puts them (see the operation ``transfer.receive``); ``stall`` is how many seconds may
    pass without progress, ``bytes_per_second`` 0 for as fast as possible. Returns the receiver's
    result with how many bytes were ``sent``, and the manifest. Raises :class:`TransferFailed` or
    :class:`HostUnreachable` when the link is to blame, else what the receiver met.
    """
    fd = open_source(path)
    try:
        before = os.fstat(fd)
        if version and Version.of(before) != version:
            raise TransferFailed("read image", CHANGED, path=str(path))
        limit = Limit(host, bytes_per_second, datastores_of(path)) if bytes_per_second else None
        stream = client.ProcessStream(argv)
        with client.AgentClient(stream, host, on_progress=on_progress) as receiver:
            receiver.start(client.payload)
            crashpoints.reach("send.started")
            pipe = receiver.stream("transfer.receive", size=size, stall=stall, **target)
            sender = Sender(pipe, stall=stall, on_progress=on_progress, limit=limit)
            found = None
            try:
                found = sender.send(fd, size, known)
            except TimeoutError:
                cause = f"nothing moved for {stall:.0f} s"
                raise TransferFailed("send", cause, host=host, path=str(path)) from None
            except (BrokenPipeError, EOFError, ValueError):
                pass  # the receiver has ended: what it says is the reason
            received = receiver.result("receive")
            crashpoints.reach("send.ended")
        if found is None or received.get("digest") != found.digest():
            raise TransferFailed("send", "the receiver has other bytes", host=host, path=str(path))
        require_unchanged(before, os.fstat(fd), path)
    except HostUnreachable as error:
        raise between(error, host) from error
    finally:
        os.close(fd)
    return {**received, "sent": sender.sent}, found


class Receiver:
    """The receiving side of one transfer: fills the existing file ``temporary``.

    Entering the context opens the file, waits for any other writer of it to end and, with
    ``reuse``, reads and digests what lies there already: chunks that the sender has just so are
    not sent. ``host`` names the sender in errors. How far the file is complete is kept in the file
    ``progress`` for those who follow. The caller owns the files and removes them when anything
    here fails.
    """

    def __init__(
        self,
        temporary: Path,
        *,
        size: int,
        stall: float,
        reuse: bool,
        host: str = "",
        progress: Path | None = None,
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        self._path, self._stall, self._host, self._reuse = temporary, stall, host, reuse
        self._progress, self._report = progress, _Reporter(on_progress, size)
        self.manifest = Manifest(size)
        self.received = 0  # bytes of data
        self._told: int | None = None
        self._has_failed = False

    def __enter__(self) -> Receiver:
        self._stack = contextlib.ExitStack()
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
            self._stack.callback(os.close, self._fd)
            locks.become_writer(self._fd, self._path, self._stall)
            crashpoints.reach("receive.started")
            size = self.manifest.size
            if not self._reuse:
                # What an earlier try wrote must not show through where this one sends no zeros.
                os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, size)
            if self._reuse:
                self.manifest = digests_of(self._fd, size, self._report)
            self._tell_complete(0)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def receive(self, pipe: frames.Pipe) -> Manifest:
        """Write what the sender has; the manifest of the complete file.

        Raises :class:`TransferFailed` unless the file has exactly the sender's content.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # what the sender has said is the reason
                frames.write_manifest(pipe, self.manifest, self._stall)
            with Pipeline(1) as work:
                kind, offset, data = self._take_all(pipe, work)
        except EOFError:
            raise self._failed("the sender went away") from None
        except TimeoutError:
            raise self._failed(f"nothing came for {self._stall:.0f} s") from None
        except ValueError as error:
            raise self._failed(str(error)) from None
        except OSError as error:
            raise from_os_error("receive", error, path=str(self._path)) from error
        if kind == b"X":
            raise frames.error_of(data, self._host)
        crashpoints.reach("receive.ended")
        found = self.manifest.digest()
        if offset != self.manifest.size or data.decode("ascii", "replace") != found:
            raise self._failed(DIFFERENT)
        self._tell_complete(offset)
        return self.manifest

    def _take_all(self, pipe: frames.Pipe, work: Pipeline) -> tuple[bytes, int, bytearray]:
        """Write the chunks as they come; the frame that ended them."""
        manifest, size = self.manifest, self.manifest.size
        while True:
            kind, offset, data = frames.read(pipe, self._stall)
            if kind in (b"E", b"X"):
                return kind, offset, data
            if kind == b"P":
                continue
            self._report(offset)
            index, misfit = divmod(offset, CHUNK)
            length = min(CHUNK, size - offset)
            wanted = {b"D": length, b"Z": 0}.get(kind)
            if misfit or length < 1 or len(data) != wanted:
                raise ValueError("the stream is damaged")
            if offset >= size // 2:
                crashpoints.reach("receive.half")
            if kind == b"Z":
                work.write(self._change, self._fd, extents.clear, offset, length, length)
                manifest[index] = NOTHING
            else:
                self._take_data(work, index, data)

    def _take_data(self, work: Pipeline, index: int, data: bytearray) -> None:
        write = extents.write_data if self.manifest[index] == NOTHING else extents.overwrite
        work.submit(_digest, self.manifest, index, data)
        work.write(self._change, self._fd, write, index * CHUNK, len(data), data)
        self.received += len(data)

    def _change(
        self, fd: int, change: Callable[..., Any], offset: int, length: int, content: Any
    ) -> None:
        """Change one chunk; those who follow may have it at once, but nothing behind a failure."""
        try:
            change(fd, offset, content)
        except BaseException:
            self._has_failed = True
            raise
        if not self._has_failed:
            self._tell_complete(offset + length)

    def written(self) -> dict[str, int]:
        """Which file it is, and when it was last written: for :func:`claimed`."""
        return sealed(self._fd)

    def _tell_complete(self, position: int) -> None:
        """Let followers have what lies before ``position``."""
        if self._progress is None:
            return
        if self._told is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._told = os.open(self._progress, flags, 0o600)
            self._stack.callback(os.close, self._told)
        os.pwrite(self._told, _POSITION.pack(position), 0)

    def _failed(self, cause: str) -> TransferFailed:
        return TransferFailed("receive", cause, host=self._host, path=str(self._path))


def completed(progress: Path) -> int:
    """How many bytes of a file that is being received are there for good."""
    try:
        (position,) = _POSITION.unpack(progress.read_bytes())
    except (FileNotFoundError, struct.error):
        return 0
    return int(position)


def sealed(fd: int) -> dict[str, int]:
    """The version of a complete file, which any later write changes.

    The clock of files is coarse: a write that follows at once might not change their time. So the
    file gets one in nanoseconds.
    """
    now = time.time_ns()
    os.utime(fd, ns=(now, now))
    return Version.of(os.fstat(fd)).to_json()


@contextlib.contextmanager
def claimed(path: Path, written: dict[str, int], timeout: float) -> Iterator[None]:
    """Keep other writers from a file that was received, for the ``with`` block.

    A receiver of an earlier try may have waited for this one to end and would begin anew now: so
    what is in the file counts from here on, and it must have another name before the block ends.
    Raises :class:`TransferFailed` unless the file is as its receiver has ``written`` it.
    """
    fd = open_source(path)
    try:
        locks.become_writer(fd, path, timeout)
        if Version.of(os.fstat(fd)) != Version.from_json(written):
            raise TransferFailed("receive", "the file was written to again", path=str(path))
        yield
    finally:
        os.close(fd)


def digests_of(fd: int, size: int, report: Callable[[int], None] = lambda done: None) -> Manifest:
    """The manifest of a file that lies here; ``report`` is told how many bytes are done."""
    manifest = Manifest(size)
    with Pipeline(2) as work:
        for index in extents.data_chunks(fd, size):
            report(index * CHUNK)
            work.submit(_digest, manifest, index, _read(fd, index, size))
    return manifest


def open_source(path: Path) -> int:
    """Open a file to read all of it; the caller closes it. A FIFO does not hold us."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error("open", error, path=str(path)) from error


def require_unchanged(before: os.stat_result, after: os.stat_result, path: Path) -> None:
    """Raise :class:`TransferFailed` when a file was changed between two looks at it."""
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise TransferFailed("send", "the file was changed while it was read", path=str(path))


def between(error: HostUnreachable, host: str) -> HostUnreachable:
    """The error with both ends of the hop named: the fault may be on either (failure C12)."""
    step = f"{error.step} from {os.uname().nodename} to"
    return HostUnreachable(step, error.cause, host=host, path=error.path)


def _merged(data: Iterable[int], others: Iterable[int]) -> Iterator[int]:
    """The numbers of two ordered series, in order, each once."""
    last = -1
    for index in heapq.merge(data, others):
        if index != last:
            yield index
        last = index


def _read(fd: int, index: int, size: int) -> bytes:
    """One chunk of an open file of ``size`` bytes."""
    return extents.read_exactly(fd, min(CHUNK, size - index * CHUNK), index * CHUNK)


def _digest(manifest: Manifest, index: int, block: bytes | bytearray) -> None:
    manifest[index] = chunks.chunk_digest(block)


class Pipeline:
    """A few threads that digest and write while the next chunk is read, with bounded memory.

    Hashing and system calls let other threads run, so this overlaps for real. One thread writes:
    two would wait for each other's lock on the file, and the kernel lets them do that at full
    speed. What is written goes to the disk early, so that the flush at the end has little to wait
    for. The first error of a task is raised at the next :meth:`submit` or :meth:`write`, or at the
    end of the ``with`` block.
    """

    def __init__(self, threads: int) -> None:
        self._pool, self._writer = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)
        self._flusher = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._unflushed = 0  # chunks
        self._flush: Future[None] | None = None

    def submit(self, task: Callable[..., None], *arguments: Any) -> None:
        """Have ``task`` done beside others."""
        self._add(self._pool.submit(task, *arguments))

    def write(self, task: Callable[..., None], fd: int, *arguments: Any) -> None:
        """Have ``task`` change one chunk of the file ``fd``, one after the other."""
        self._add(self._writer.submit(task, fd, *arguments))
        self._unflushed += 1
        if self._unflushed >= _FLUSH_AFTER and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()
            self._unflushed, self._flush = 0, self._flusher.submit(os.fdatasync, fd)

    def _add(self, task: Future[None]) -> None:
        self._pending.append(task)
        if len(self._pending) >= _IN_FLIGHT:
            self._pending.popleft().result()

    def drain(self) -> None:
        """Wait for all tasks; the first error is raised."""
        while self._pending:
            self._pending.popleft().result()
        if self._flush:
            self._flush.result()
            self._flush = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in (self._pool, self._writer, self._flusher):
            pool.shutdown(wait=True)
        if error is None:
            self.drain()
