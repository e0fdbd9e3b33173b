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

_ZSTD = ["zstd", "-dcq"]
_MEMORY = 512 << 20  # bytes that xz may use: what xz -9 has packed needs 65 MiB
_QUICK = 10.0  # seconds for the first bytes of a stream

ReadAt = Callable[[int, int], "bytes | None"]

_GZIP_RATIO = 1032  # deflate cannot do better
_FOUR_GIB = 1 << 32
_GZIP_EXTRA_OR_UNKNOWN = 0xE4  # bits of its flags
_ZSTD_HEADER = 18  # bytes at most
_SLACK = 1 << 16  # bytes for headers and names
# A hostile file must cost neither memory nor requests without end.
_XZ_INDEX = 4 << 20  # bytes: enough for 10 TB in the blocks of xz -T
_XZ_STREAMS = 1000
_XZ_PADDING = 1 << 16
_LARGEST = (1 << 63) - 1  # bytes in a file
_SECTOR = 512  # bytes
_PROTECTIVE = 0xEE  # in an MBR: what counts is a GPT
_EXT_64BIT = 0x80


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


def uncompressed_size(
    kind: str, size: int, read_at: ReadAt, *, least: int = 0, most: int | None = None
) -> int | None:
    """Bytes in a compressed file of ``size`` bytes; None when that cannot be known for certain.

    ``least`` is what the content says itself to be at least (:func:`least_disk_size`), 0 for
    nothing; ``most`` is what it can be at most. Raises only what ``read_at`` raises.
    """
    found = None
    with contextlib.suppress(struct.error, IndexError, ValueError):
        if kind == "xz":
            found = _xz_size(size, read_at)
        elif kind == "gzip":
            found = _gzip_size(size, read_at, least)
        elif kind == "zstd":
            found = _zstd_size(size, _exactly(read_at, 0, min(size, _ZSTD_HEADER)))
    if found is None or found > (_LARGEST if most is None else most):
        return None
    return found


def least_disk_size(head: bytes) -> int:
    """Bytes that a raw disk must have by what its first bytes say; 0 when they say nothing.

    The end of a partition table (GPT, MBR), else that of a file system (ISO 9660, ext2 to ext4).
    """
    for told in (_gpt_size, _mbr_size, _iso_size, _ext_size):
        with contextlib.suppress(struct.error, IndexError):
            if 0 < (found := told(head)) <= _LARGEST:
                return found
    return 0


def _gpt_size(head: bytes) -> int:
    """Up to the second copy of the table (UEFI specification, section 5.3.2)."""
    (length,) = struct.unpack_from("<I", head, _SECTOR + 12)
    if head[_SECTOR : _SECTOR + 8] != b"EFI PART" or not 92 <= length <= _SECTOR:
        return 0
    header = bytearray(head[_SECTOR : _SECTOR + length])
    (checksum,) = struct.unpack_from("<I", header, 16)
    header[16:20] = bytes(4)
    if binascii.crc32(header) != checksum:
        return 0
    (backup,) = struct.unpack_from("<Q", header, 32)
    return int(backup + 1) * _SECTOR


def _mbr_size(head: bytes) -> int:
    if head[510:512] != b"\x55\xaa":
        return 0
    ends = [0]
    for entry in range(446, 510, 16):
        status, kind = head[entry], head[entry + 4]
        start, count = struct.unpack_from("<II", head, entry + 8)
        if status not in (0, 0x80) or kind == _PROTECTIVE:
            return 0
        if kind and count:
            ends.append((start + count) * _SECTOR)
    return max(ends)


def _iso_size(head: bytes) -> int:
    """What the primary volume descriptor says (ECMA-119, section 8.4)."""
    if head[32768:32774] != b"\x01CD001":
        return 0
    blocks, size = struct.unpack_from("<I", head, 32848)[0], struct.unpack_from("<H", head, 32896)
    return int(blocks * size[0])


def _ext_size(head: bytes) -> int:
    """What the superblock says (Linux, Documentation/filesystems/ext4)."""
    if head[1080:1082] != b"\x53\xef":
        return 0
    blocks, shift = struct.unpack_from("<I16xI", head, 1028)
    (features,) = struct.unpack_from("<I", head, 1024 + 96)
    if features & _EXT_64BIT:
        blocks += struct.unpack_from("<I", head, 1024 + 336)[0] << 32
    return int(blocks << (10 + shift)) if shift <= 6 else 0


def _exactly(read_at: ReadAt, offset: int, count: int) -> bytes:
    data = read_at(offset, count) if offset >= 0 else None
    if data is None or len(data) != count:
        raise ValueError("the source cannot tell")
    return data


def _fits(content: int, size: int) -> bool:
    """Whether ``size`` bytes are not more than one stream needs that cannot be made smaller.

    More of them means more streams, of which only one tells its size.
    """
    return size <= content + content // 64 + _SLACK


def _gzip_size(size: int, read_at: ReadAt, least: int) -> int | None:
    """The size at the end of the file, which is one modulo 4 GiB (RFC 1952, ISIZE)."""
    head = _exactly(read_at, 0, 10)
    if head[:3] != b"\x1f\x8b\x08" or head[3] & _GZIP_EXTRA_OR_UNKNOWN:
        return None  # an extra field: bgzip writes many members, of which the last one tells
    (told,) = struct.unpack("<I", _exactly(read_at, size - 4, 4))
    most = size * _GZIP_RATIO + _GZIP_RATIO
    if most >= _FOUR_GIB and not least:
        return None
    found = int(told if most < _FOUR_GIB else least + (told - least) % _FOUR_GIB)
    return found if least <= found <= most and _fits(found, size) else None


def _zstd_size(size: int, head: bytes) -> int | None:
    """What the first frame says (RFC 8878, section 3.1.1.1)."""
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor & 0x20
    if head[:4] != b"\x28\xb5\x2f\xfd" or descriptor & 8 or not (flag or single):
        return None
    width = {0: 1, 1: 2, 2: 4, 3: 8}[flag]
    start = 5 + (0 if single else 1) + {0: 0, 1: 1, 2: 2, 3: 4}[descriptor & 3]
    field = head[start : start + width]
    found = int.from_bytes(field, "little") + (256 if flag == 1 else 0)
    return found if len(field) == width and _fits(found, size) else None


def _xz_size(size: int, read_at: ReadAt) -> int | None:
    """The sum over all streams, found from the end (The .xz File Format, sections 2 and 4)."""
    total, end = 0, size
    for _ in range(_XZ_STREAMS):
        end = _without_padding(read_at, end)
        content, end = _xz_stream(read_at, end)
        total += content
        if end == 0:
            return total
    return None


def _without_padding(read_at: ReadAt, end: int) -> int:
    """The end of the stream that ends before ``end``: between streams are words of zeros."""
    data = _exactly(read_at, max(0, end - 12), min(end, 12))
    if data[8:] != bytes(4):
        return end
    data = _exactly(read_at, max(0, end - _XZ_PADDING), min(end, _XZ_PADDING))
    return end - (len(data) - len(data.rstrip(b"\0"))) // 4 * 4


def _xz_stream(read_at: ReadAt, end: int) -> tuple[int, int]:
    """The uncompressed size of the stream that ends at ``end``, and where it begins."""
    footer = _exactly(read_at, end - 12, 12)
    checksum, backward, flags = struct.unpack("<II2s", footer[:10])
    if footer[10:] != b"YZ" or binascii.crc32(footer[4:10]) != checksum:
        raise ValueError("no end of a stream")
    index_size = (backward + 1) * 4
    if index_size > _XZ_INDEX:
        raise ValueError("too large an index")
    index = _exactly(read_at, end - 12 - index_size, index_size)
    content, packed = _xz_index(index)
    start = end - 12 - index_size - packed - 12
    header = struct.pack("<6s2sI", b"\xfd7zXZ\x00", flags, binascii.crc32(flags))
    if _exactly(read_at, start, 12) != header:
        raise ValueError("no begin of a stream")
    return content, start


def _xz_index(index: bytes) -> tuple[int, int]:
    """Uncompressed and packed size of all blocks of one stream."""
    body = index[:-4]
    if body[0] != 0 or binascii.crc32(body) != struct.unpack("<I", index[-4:])[0]:
        raise ValueError("no index")
    position = 1

    def number() -> int:
        nonlocal position
        found = 0
        for shift in range(0, 63, 7):
            byte = body[position]
            position += 1
            found |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return found
        raise ValueError("no number")

    content = packed = 0
    for _ in range(number()):
        packed += -(-number() // 4) * 4
        content += number()
    if len(body) - position > 3 or any(body[position:]):
        raise ValueError("something behind the index")
    return content, packed


def _by_library(kind: str, blocks: Iterator[bytes], step: str) -> Iterator[bytes]:
    new, failures = _library(kind)
    current: Any = None
    missing = CHUNK  # bytes up to the end of a chunk: whole ones need not be put together
    for block in blocks:
        while True:
            if current is None:
                block = block.lstrip(b"\0")  # padding between and behind streams
                if not block:
                    break
                current = new()
            try:
                plain = current.decompress(block, missing)
            except failures as error:
                raise TransferFailed(step, f"the {kind} data is damaged: {error}") from None
            block = b""
            if plain:
                missing = missing - len(plain) or CHUNK
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
