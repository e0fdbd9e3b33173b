"""agent.compression: sizes told by trailers, frames, indexes and tables, never believed blindly."""

from __future__ import annotations

import binascii
import gzip
import lzma
import struct
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import compression

MB, GB = 1 << 20, 1 << 30
SECTOR = 512


def size_of(
    kind: str, packed: bytes, *, least: int = 0, most: int | None = None, size: int | None = None
) -> int | None:
    """The size told of `packed`; of a file of `size` bytes whose middle nobody may read."""
    total = len(packed) if size is None else size

    def read_at(offset: int, count: int) -> bytes:
        assert offset >= 0 and count >= 0
        start = offset if offset + count <= len(packed) else offset - (total - len(packed))
        return packed[start : start + count]

    return compression.uncompressed_size(kind, total, read_at, least=least, most=most)


def gzip_of(told: int, flags: int = 0) -> bytes:
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(10) + struct.pack("<I", told)


class TestGzip:
    def test_H10_one_candidate_is_chosen(self) -> None:
        packed = gzip_of(5 * MB)
        assert size_of("gzip", packed, size=3 * MB) == 5 * MB, "nothing larger is possible"
        assert size_of("gzip", packed, size=5 * MB) is None, "5 MB, or 4 GiB and 5 MB"
        assert size_of("gzip", packed, size=5 * MB, least=MB) == 5 * MB
        assert size_of("gzip", packed, size=5 * MB, least=6 * MB) == 4 * GB + 5 * MB
        assert size_of("gzip", packed, size=30 * MB, least=20 * GB) == 20 * GB + 5 * MB

    def test_H10_what_contradicts_is_not_believed(self) -> None:
        assert size_of("gzip", gzip_of(5 * MB), size=5 * MB, least=20 * GB) is None, "1032:1"
        assert size_of("gzip", gzip_of(5 * MB), size=3 * MB, least=6 * MB) is None
        assert size_of("gzip", gzip_of(MB), size=1000) is None
        assert size_of("gzip", gzip_of(5 * MB), size=5 * MB, least=6 * MB, most=GB) is None

    def test_H10_the_last_of_several_members_does_not_tell(self) -> None:
        noise = bytes(range(256)) * 4
        many = gzip.compress(binascii.hexlify(noise), 0) * 100 + gzip.compress(b"x")
        assert size_of("gzip", many) is None
        assert size_of("gzip", gzip.compress(noise, 0)) == len(noise), "nor is it made smaller"

    @pytest.mark.parametrize("flags", [4, 0x20, 0x40, 0x80])
    def test_H10_bgzip_and_unknown_flags(self, flags: int) -> None:
        assert size_of("gzip", gzip_of(100, flags)) is None


class TestZstd:
    @pytest.mark.parametrize(
        ("frame", "size"),
        [
            (b"\x20\x05", 5), (b"\x60\x01\x00", 257), (b"\xa0\x00\x00\x01\x00", 65536),
            (b"\x80\x58\x00\x00\x01\x00", 65536), (b"\xe0" + struct.pack("<Q", 5 * GB), 5 * GB),
            (b"\x23\x01\x02\x03\x04\x05", 5),
            (b"\x00\x58", None), (b"\x28\x05", None), (b"\xe0\x05", None), (b"", None),
        ],
    )  # fmt: skip
    def test_H10_the_first_frame_tells(self, frame: bytes, size: int | None) -> None:
        packed = b"\x28\xb5\x2f\xfd" + frame
        assert size_of("zstd", packed) == size

    def test_H10_others_do_not(self) -> None:
        skippable = b"\x50\x2a\x4d\x18" + bytes(20)
        assert size_of("zstd", skippable) is None
        assert size_of("zstd", b"\x28\xb5\x2f\xfd\x20\x05", size=MB) is None, "more frames follow"
        huge = b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8
        assert size_of("zstd", huge) is None


class TestXz:
    ONE = lzma.compress(b"one" * 1000)
    TWO = lzma.compress(b"two" * 77)

    @pytest.mark.parametrize("between", [0, 4, 12, 4096])
    @pytest.mark.parametrize("behind", [0, 4, 8, 60_000])
    def test_H10_streams_and_padding(self, between: int, behind: int) -> None:
        packed = self.ONE + bytes(between) + self.TWO + bytes(behind)
        assert size_of("xz", packed) == 3231

    @pytest.mark.parametrize("padding", [1, 2, 3, 5])
    def test_padding_is_whole_words(self, padding: int) -> None:
        assert size_of("xz", self.ONE + bytes(padding)) is None

    def test_empty_streams_and_no_stream(self) -> None:
        assert size_of("xz", lzma.compress(b"")) == 0
        assert size_of("xz", b"") is None
        assert size_of("xz", bytes(4096)) is None
        assert size_of("xz", self.ONE[4:]) is None

    def test_every_changed_byte_outside_the_data_is_noticed(self) -> None:
        noticed = [size_of("xz", changed(self.TWO, place)) for place in range(-12, 12)]
        assert noticed == [None] * 24

    @pytest.mark.parametrize(
        ("body", "cause"),
        [
            (b"\1\0", "no index"),
            (b"\0" + b"\xff" * 9, "no number"),
            (b"\0\0\1", "something behind"),
            (bytes(6), "something behind"),
        ],
    )
    def test_a_whole_index_that_can_be_none(self, body: bytes, cause: str) -> None:
        index = body + struct.pack("<I", binascii.crc32(body))
        with pytest.raises(ValueError, match=cause):
            compression._xz_index(index)

    def test_J15_a_hostile_file_costs_few_and_small_readings(self) -> None:
        asked: list[int] = []

        def of(packed: bytes) -> int | None:
            def read_at(offset: int, count: int) -> bytes:
                asked.append(count)
                return packed[offset : offset + count]

            return compression.uncompressed_size("xz", len(packed), read_at)

        assert of(lzma.compress(b"") * 20_000) is None
        assert len(asked) < 10_000
        assert of(self.ONE + bytes(50 * MB)) is None
        footer = struct.pack("<I2s", 0xFFFFFFFF, b"\x00\x04")
        assert (
            of(bytes(40 * MB) + struct.pack("<I", binascii.crc32(footer)) + footer + b"YZ") is None
        )
        assert max(asked) <= 4 * MB


def changed(packed: bytes, place: int) -> bytes:
    other = bytearray(packed)
    other[place] ^= 0x55
    return bytes(other)


@given(
    st.sampled_from(["gzip", "bzip2", "xz", "zstd"]),
    st.sampled_from([TestXz.ONE, TestXz.TWO, gzip_of(9), b"\x28\xb5\x2f\xfd\xe0", b""]),
    st.binary(max_size=64),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_J15_damage_is_never_an_error(
    kind: str, good: bytes, noise: bytes, cut: int, place: int
) -> None:
    packed = bytearray(good[: len(good) - cut])
    packed[place : place + len(noise)] = noise
    size_of(kind, bytes(packed))


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=4), st.integers(0, 3))
def test_H10_xz_is_exact(contents: list[bytes], words: int) -> None:
    packed = bytes(words * 4).join(lzma.compress(content) for content in contents)
    assert size_of("xz", packed + bytes(words * 4)) == sum(map(len, contents))


def test_a_source_that_cannot_tell() -> None:
    nothing: Callable[[int, int], None] = lambda offset, count: None  # noqa: E731
    for kind in ("gzip", "bzip2", "xz", "zstd"):
        assert compression.uncompressed_size(kind, MB, nothing) is None


def gpt(backup: int) -> bytearray:
    head = bytearray(1 << 16)
    header = struct.pack("<8sIIIIQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, backup).ljust(92, b"\0")
    head[SECTOR : SECTOR + 92] = header
    struct.pack_into("<I", head, SECTOR + 16, binascii.crc32(header))
    return head


def mbr(*entries: tuple[int, int, int, int]) -> bytearray:
    """Of (status, kind, start, count)."""
    head = bytearray(1 << 16)
    for index, (status, kind, start, count) in enumerate(entries):
        struct.pack_into("<B3xB3xII", head, 446 + 16 * index, status, kind, start, count)
    head[510:512] = b"\x55\xaa"
    return head


class TestLeastDiskSize:
    def test_H10_gpt(self) -> None:
        head = gpt(99_999)
        assert compression.least_disk_size(bytes(head)) == 100_000 * SECTOR
        head[SECTOR + 40] ^= 1
        assert compression.least_disk_size(bytes(head)) == 0, "its checksum is wrong"
        assert compression.least_disk_size(bytes(gpt((1 << 64) - 1))) == 0

    def test_H10_mbr(self) -> None:
        two = mbr((0x80, 0x83, 2048, 1000), (0, 5, 4096, 5000))
        assert compression.least_disk_size(bytes(two)) == 9096 * SECTOR
        assert compression.least_disk_size(bytes(mbr((7, 0x83, 2048, 1000)))) == 0
        whole = mbr((0, 0xEE, 1, 0xFFFFFFFF))
        assert compression.least_disk_size(bytes(whole)) == 0, "only says that there is a GPT"

    def test_H10_file_systems(self) -> None:
        iso = mbr()
        iso[32768:32774] = b"\x01CD001"
        struct.pack_into("<I", iso, 32768 + 80, 3000)
        struct.pack_into("<H", iso, 32768 + 128, 2048)
        assert compression.least_disk_size(bytes(iso)) == 3000 * 2048
        ext = mbr()
        struct.pack_into("<I16xI", ext, 1024 + 4, 7, 2)
        ext[1080:1082] = b"\x53\xef"
        assert compression.least_disk_size(bytes(ext)) == 7 * 4096
        struct.pack_into("<I", ext, 1024 + 96, 0x80)
        struct.pack_into("<I", ext, 1024 + 336, 1)
        assert compression.least_disk_size(bytes(ext)) == ((1 << 32) + 7) * 4096

    @given(st.integers(0, 40_000), st.binary(max_size=200))
    def test_J15_any_head(self, length: int, noise: bytes) -> None:
        for head in (gpt(9), mbr((0, 0x83, 1, 1)), bytearray(b"\x01CD001".rjust(32774))):
            head[:length] = head[:length] + noise
            assert compression.least_disk_size(bytes(head[:length])) >= 0
