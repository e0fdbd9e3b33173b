"""Sparse files: where their data lies, and copies that keep holes or fill them.

Holes are found with lseek(2) SEEK_DATA/SEEK_HOLE, never guessed from the number of allocated
blocks: some file systems report none for fresh data (known failure A22).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import TransferFailed

PAGE = 4096  # bytes
_PAGE_OF_ZEROS = bytes(PAGE)

_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_NOT_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


def data(fd: int, size: int, position: int = 0) -> Iterator[tuple[int, int]]:
    """The data extents (start, end) of a file of ``size`` bytes from ``position`` on, in order."""
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            yield position, size  # a file system without SEEK_DATA: all of it may be data
            return
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end
        position = end


def data_chunks(fd: int, size: int, position: int = 0) -> Iterator[int]:
    """The indexes of the chunks from ``position`` on that hold data, in order, each once."""
    done = -1
    for start, end in data(fd, size, position):
        for index in range(max(start // CHUNK, done + 1), (end - 1) // CHUNK + 1):
            yield index
            done = index


def reflink(source: int, target: int) -> bool:
    """Make ``target`` share all blocks of ``source``; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


def can_share(directory: Path) -> bool:
    """Whether files in ``directory`` can share blocks, so that a copy takes no space; by trying."""
    import tempfile  # takes milliseconds, and only a raw image or a copy needs it

    with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as two:
        one.write(bytes(PAGE))
        one.flush()
        return reflink(one.fileno(), two.fileno())


def copy(source: int, target: int, size: int, *, sparse: bool) -> None:
    """Copy ``size`` bytes between two files on this machine.

    Shares blocks where the file system can (XFS, btrfs), else lets the kernel copy the data
    extents. ``sparse`` False allocates the whole target, so that it cannot run out of space later.
    """
    if sparse and reflink(source, target):
        return
    os.ftruncate(target, size)
    if not sparse:
        allocate(target, size)
    for start, end in data(source, size):
        _copy_range(source, target, start, end)


def copy_file(source: int, target: int, *, sparse: bool, step: str, path: str) -> int:
    """:func:`copy` a whole file; its size. ``path`` names the source in errors.

    Raises :class:`TransferFailed` when the source was changed meanwhile.
    """
    before = os.fstat(source)
    copy(source, target, before.st_size, sparse=sparse)
    after, copied = os.fstat(source), os.fstat(target).st_size
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not unchanged or copied != before.st_size:
        raise TransferFailed(step, "the file was changed while it was copied", path=path)
    return copied


@contextlib.contextmanager
def opened(file: Path, *, write: bool = False) -> Iterator[int]:
    """The descriptor of a file, no link, that is there."""
    fd = os.open(file, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def copy_path(source: Path, target: Path, *, sparse: bool, step: str) -> int:
    """:func:`copy_file` of ``source`` to the existing file ``target``; its size."""
    with opened(source) as reading, opened(target, write=True) as writing:
        return copy_file(reading, writing, sparse=sparse, step=step, path=str(source))


def allocate(fd: int, size: int) -> None:
    """Give all of a file's first ``size`` bytes blocks on the disk (posix_fallocate(3))."""
    if size:
        os.posix_fallocate(fd, 0, size)


def write_chunk(fd: int, offset: int, block: bytes | bytearray | memoryview) -> None:
    """Write all of ``block``."""
    view = memoryview(block)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_data(fd: int, offset: int, block: bytes | bytearray) -> None:
    """Write ``block`` where the file has a hole so far, and leave holes where it is zeros.

    By pages: a source whose data lies scattered must not grow to whole chunks (known failure A20).
    """
    if _PAGE_OF_ZEROS not in block:
        write_chunk(fd, offset, block)
        return
    view = memoryview(block)
    for start, end in _data_pages(view):
        write_chunk(fd, offset + start, view[start:end])


def clear(fd: int, offset: int, length: int) -> None:
    """Let ``length`` bytes read as zeros, as a hole where the file system can make one."""
    if not _punch(fd, offset, length):
        write_chunk(fd, offset, bytes(length))


def overwrite(fd: int, offset: int, block: bytes | bytearray) -> None:
    """Write ``block`` over other data, as :func:`write_data` does where there is none."""
    if _PAGE_OF_ZEROS in block and _punch(fd, offset, len(block)):
        write_data(fd, offset, block)
    else:
        write_chunk(fd, offset, block)


def _punch(fd: int, offset: int, length: int) -> bool:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE, which the os module lacks; False where it fails."""
    import ctypes  # takes milliseconds, and hardly any transfer needs it

    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(fd), ctypes.c_int(_PUNCH), ctypes.c_int64(offset))
    return bool(libc.fallocate64(*arguments, ctypes.c_int64(length)) == 0)


def _data_pages(view: memoryview) -> Iterator[tuple[int, int]]:
    """The longest runs (start, end) of pages that are not all zeros."""
    start = None
    for page in range(0, len(view), PAGE):
        block = view[page : page + PAGE]
        is_data = block != _PAGE_OF_ZEROS[: len(block)]
        if is_data and start is None:
            start = page
        if not is_data and start is not None:
            yield start, page
            start = None
    if start is not None:
        yield start, len(view)


def read_exactly(fd: int, count: int, offset: int) -> bytes:
    """``count`` bytes at ``offset``, fewer only at the end of the file."""
    parts = []
    while count and (block := os.pread(fd, count, offset)):
        parts.append(block)
        count, offset = count - len(block), offset + len(block)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(source, target, min(end - start, 1 << 30), start, start)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            _read_and_write(source, target, start, end)
            return
        if not copied:
            # Some kernels and file systems say 0 where there is data: see for ourselves.
            _read_and_write(source, target, start, end)
            return
        start += copied


def _read_and_write(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        block = read_exactly(source, min(CHUNK, end - start), start)
        if not block:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        write_chunk(target, start, block)
        start += len(block)
