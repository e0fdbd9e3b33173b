"""Compressed files: which they are, what decompresses them, and how large what is in them is.

The standard library's decompressors let other threads run and need no pipe, which costs as much as
the work itself; zstd is not among them before Python 3.14, so its program does that. Sizes are
read here, because a file is not read as a whole only for its size.
"""

from __future__ import annotations

import binascii
import contextlib
import struct
from collections.abc import Callable, Generator, Iterator
from typing import Any

from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import OnestorError, TransferFailed

_SIGNATURES = {
    b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_ZSTD = ["zstd", "-dcq"]
_MEMORY = 512 << 20  # bytes that xz may use: what xz -9 has packed needs 65 MiB
_QUICK = 10.0  # seconds for the first bytes of a stream

ReadAt = Callable[[int, int], "bytes | None"]

_GZIP_RATIO = 1032  # deflate cannot do better
_FOUR_GIB = 1 << 32
_SECTOR = 512  # bytes


def detect(head: bytes) -> str:
    """The compression of a file by its first bytes: gzip, bzip2, xz, zstd or ""."""
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    return ""


def decompressed(
    kind: str, blocks: Iterator[bytes], *, step: str, stall: float
) -> Generator[bytes, None, None]:
    """What is in the compressed ``blocks``; to be closed by whoever stops early.

    Several streams in one file are one content, as for the programs of these names. Raises
    :class:`TransferFailed` for damaged and cut off data, and what the blocks raise.
    """
    if kind != "zstd":
        yield from _by_library(kind, blocks, step)
        return
    from onestor_lib.agent.filter import Filter

    with Filter(_ZSTD, blocks, step=step, stall=stall) as program:
        while block := program.read(CHUNK):
            yield block


def head_of(kind: str, data: bytes, count: int, *, step: str) -> bytes:
    """The first ``count`` bytes of a stream whose first bytes, compressed, are ``data``."""
    head = b""
    plain = decompressed(kind, iter([data]), step=step, stall=_QUICK)
    # What is missing of the stream is what it complains about at the end.
    with contextlib.closing(plain), contextlib.suppress(OnestorError):
        for block in plain:
            head += block
            if len(head) >= count:
                break
    return head[:count]


def uncompressed_size(kind: str, size: int, read_at: ReadAt, *, least: int = 0) -> int | None:
    """Bytes in a compressed file of ``size`` bytes; None when that cannot be known for certain.

    ``least`` is what the content says itself to be at least (:func:`least_disk_size`), 0 for
    nothing.
    """
    with contextlib.suppress(struct.error, IndexError, ValueError):
        if kind == "xz":
            return _xz_size(size, read_at)
        if kind == "gzip":
            return _gzip_size(size, read_at, least)
        if kind == "zstd":
            return _zstd_size(_exactly(read_at, 0, min(size, 18)))
    return None


def least_disk_size(head: bytes) -> int:
    """Bytes that a raw disk must have by what its partition table says; 0 when it says nothing."""
    if head[512:520] == b"EFI PART":
        (backup,) = struct.unpack_from("<Q", head, 512 + 32)
        return int(backup + 1) * _SECTOR
    if head[510:512] == b"\x55\xaa":
        ends = [0]
        for entry in range(446, 510, 16):
            status, kind = head[entry], head[entry + 4]
            start, count = struct.unpack_from("<II", head, entry + 8)
            if status not in (0, 0x80):
                return 0
            if kind:
                ends.append((start + count) * _SECTOR)
        return max(ends)
    return 0


def _exactly(read_at: ReadAt, offset: int, count: int) -> bytes:
    data = read_at(offset, count)
    if data is None or len(data) != count:
        raise ValueError("the source cannot tell")
    return data


def _gzip_size(size: int, read_at: ReadAt, least: int) -> int | None:
    """The size at the end of the file, which is one modulo 4 GiB (RFC 1952, ISIZE)."""
    head = _exactly(read_at, 0, 10)
    if head[3] & 4:
        return None  # an extra field: bgzip writes many members, of which the last one tells
    (told,) = struct.unpack("<I", _exactly(read_at, size - 4, 4))
    if size * _GZIP_RATIO + _GZIP_RATIO < _FOUR_GIB:
        return int(told)
    if least:
        return int(least + (told - least) % _FOUR_GIB)
    return None


def _zstd_size(head: bytes) -> int | None:
    """What the first frame says (RFC 8878, section 3.1.1.1)."""
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor & 0x20
    if not flag and not single:
        return None
    width = {0: 1, 1: 2, 2: 4, 3: 8}[flag]
    start = 5 + (0 if single else 1) + {0: 0, 1: 1, 2: 2, 3: 4}[descriptor & 3]
    found = int.from_bytes(head[start : start + width], "little")
    return found + (256 if flag == 1 else 0)


def _xz_size(size: int, read_at: ReadAt) -> int:
    """The sum over all streams, found from the end (The .xz File Format, sections 2 and 4)."""
    total, end = 0, size
    while end > 0:
        footer = _exactly(read_at, end - 12, 12)
        if footer[8:] == bytes(4):
            end -= 4  # stream padding
            continue
        checksum, backward, flags = struct.unpack("<II2s", footer[:10])
        if footer[10:] != b"YZ" or binascii.crc32(footer[4:10]) != checksum:
            raise ValueError("no end of a stream")
        index_size = (backward + 1) * 4
        index = _exactly(read_at, end - 12 - index_size, index_size)
        content, packed = _xz_index(index)
        end -= 12 + index_size + packed + 12
        if end < 0 or _exactly(read_at, end, 8) != b"\xfd7zXZ\x00" + flags:
            raise ValueError("no begin of a stream")
        total += content
    return total


def _xz_index(index: bytes) -> tuple[int, int]:
    """Uncompressed and packed size of all blocks of one stream."""
    if index[0] != 0 or binascii.crc32(index[:-4]) != struct.unpack("<I", index[-4:])[0]:
        raise ValueError("no index")
    position = 1

    def number() -> int:
        nonlocal position
        found = shift = 0
        while True:
            byte = index[position]
            position += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return found
            if shift > 63:
                raise ValueError("no number")

    content = packed = 0
    for _ in range(number()):
        packed += -(-number() // 4) * 4
        content += number()
    return content, packed


def _by_library(kind: str, blocks: Iterator[bytes], step: str) -> Iterator[bytes]:
    new, failures = _library(kind)
    current: Any = None
    for block in blocks:
        while True:
            if current is None:
                block = block.lstrip(b"\0")  # padding between and behind streams
                if not block:
                    break
                current = new()
            try:
                plain = current.decompress(block, CHUNK)
            except failures as error:
                raise TransferFailed(step, f"the {kind} data is damaged: {error}") from None
            block = b""
            if plain:
                yield plain
            if current.eof:
                block, current = current.unused_data, None
            elif current.needs_input:
                break
    if current is not None:
        raise TransferFailed(step, f"the {kind} data ends too early")


def _library(kind: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """What makes a decompressor of one stream, and what that raises for damaged data."""
    if kind == "gzip":
        import zlib

        return _Gzip, (zlib.error,)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, ValueError)
    import lzma

    return lambda: lzma.LZMADecompressor(memlimit=_MEMORY), (lzma.LZMAError,)


class _Gzip:
    """zlib with the interface of the other two."""

    def __init__(self) -> None:
        import zlib

        self._inflate = zlib.decompressobj(31)  # 31: with header and trailer of gzip
        self._has_more = False

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._has_more and not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, most: int) -> bytes:
        plain = self._inflate.decompress(self._inflate.unconsumed_tail + data, most)
        self._has_more = len(plain) == most
        return plain
