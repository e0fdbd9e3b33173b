"""Compressed sources: what they are, how large they are, and taking them in."""

from __future__ import annotations

import functools
import hashlib
import random
import struct
import subprocess
import threading
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onestor_lib.agent import compression, image_format
from onestor_lib.agent.errors import CommandFailed, InvalidInput, OnestorError, TransferFailed
from tests.tool.conftest import MB, draw, listing
from tests.tool.importing import Importing

KINDS = ("gzip", "bzip2", "xz", "zstd")
NOISE = random.Random(7).randbytes
CONTENT = NOISE(2 * MB)


def pack(kind: str, content: bytes, *options: str) -> bytes:
    argv = [kind, "-c", *options]
    return subprocess.run(argv, input=content, capture_output=True, check=True).stdout


@functools.cache
def packed_content(kind: str) -> bytes:
    """CONTENT, in blocks as small as the program makes them: packing noise takes long."""
    return pack(kind, CONTENT, "-1")


def size_of(kind: str, packed: bytes, least: int = 0) -> int | None:
    def read_at(offset: int, count: int) -> bytes:
        return packed[offset : offset + count]

    return compression.uncompressed_size(kind, len(packed), read_at, least=least)


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_H10_a_compressed_image_is_stored_uncompressed(importing: Importing, kind: str) -> None:
    raw = draw(importing.incoming / "raw", "A0-B", NOISE(1000))
    importing.file.write_bytes(pack(kind, raw.read_bytes()))
    content = importing.file.read_bytes()
    importing.asked["digests"] = {"sha256": hashlib.sha256(content).hexdigest()}  # as received
    assert importing.run() == "raw"
    assert importing.image.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_NO_DECOMPRESS_keeps_the_file(importing: Importing, kind: str) -> None:
    importing.file.write_bytes(pack(kind, b"x" * 5000))
    importing.asked["decompress"] = False
    assert importing.measure() == importing.file.stat().st_size
    importing.run()
    assert importing.image.read_bytes() == importing.file.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_H2_H3_a_cut_off_file_is_refused(importing: Importing, kind: str, keep: float) -> None:
    packed = packed_content(kind)
    importing.file.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises((CommandFailed, TransferFailed), match=kind):
        importing.run()
    assert listing(importing.datastore) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused(importing: Importing, kind: str) -> None:
    packed = bytearray(packed_content(kind))
    packed[MB] ^= 0xFF
    packed[-9] ^= 0xFF  # zstd has a checksum only where it was asked for: its frame breaks here
    importing.file.write_bytes(packed[:-4])
    with pytest.raises((CommandFailed, TransferFailed)):
        importing.run()
    assert listing(importing.datastore) == []


@pytest.mark.parametrize("kind", KINDS)
def test_J6_what_is_inside_is_inspected(importing: Importing, kind: str) -> None:
    inner = importing.incoming / "inner"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd"]
    subprocess.run([*argv, str(inner), "1M"], check=True)
    importing.file.write_bytes(pack(kind, inner.read_bytes()))
    for work in (importing.measure, importing.run):
        with pytest.raises(OnestorError, match="refers to a backing file"):
            work()
    assert listing(importing.datastore) == []


class TestSizes:
    @pytest.mark.parametrize("kind", ["gzip", "xz"])
    @pytest.mark.parametrize("size", [0, 1, 70_000, MB + 5])
    def test_H10_the_file_tells(self, kind: str, size: int) -> None:
        assert size_of(kind, pack(kind, NOISE(size))) == size

    @pytest.mark.parametrize("size", [1, 70_000, 3 * MB + 5])
    def test_H10_zstd_tells_when_it_knew(self, tmp_path: Path, size: int) -> None:
        plain = tmp_path / "plain"
        plain.write_bytes(NOISE(size))
        subprocess.run(["zstd", "-q", str(plain)], check=True)
        assert size_of("zstd", (tmp_path / "plain.zst").read_bytes()) == size
        assert size_of("zstd", pack("zstd", NOISE(70_000))) is None, "from a pipe"

    def test_H10_several_streams_of_xz(self) -> None:
        one, two = pack("xz", NOISE(50_000)), pack("xz", NOISE(70_001), "--block-size=10KiB")
        assert size_of("xz", one + two) == 120_001
        assert size_of("xz", one + bytes(8) + two + bytes(4)) == 120_001

    def test_bzip2_does_not_tell(self) -> None:
        assert size_of("bzip2", pack("bzip2", b"x" * 100)) is None

    def test_H10_gzip_counts_modulo_4_GiB(self) -> None:
        def read_at(offset: int, count: int) -> bytes:
            head = b"\x1f\x8b\x08" + bytes(7)
            return head if offset == 0 else struct.pack("<I", 5 * MB)

        def size(packed: int, least: int = 0) -> int | None:
            return compression.uncompressed_size("gzip", packed, read_at, least=least)

        assert size(3 * MB) == 5 * MB, "nothing larger is possible"
        assert size(5 * MB) is None
        assert size(5 * MB, least=MB) == 5 * MB
        assert size(5 * MB, least=6 * MB) == 5 * MB + (4 << 30)
        assert size(30 * MB, least=20 << 30) == 5 * MB + (20 << 30)

    def test_bgzip_has_many_members(self) -> None:
        packed = bytearray(pack("gzip", b"x" * 100))
        packed[3] |= 4
        assert size_of("gzip", bytes(packed)) is None

    @pytest.mark.parametrize("label", ["gpt", "dos"])
    def test_H10_a_partition_table_tells_the_least(self, tmp_path: Path, label: str) -> None:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(50 * MB)
        subprocess.run(
            ["/usr/sbin/sfdisk", "-q", str(disk)], input=f"label: {label}\n,40M\n".encode(),
            check=True,
        )  # fmt: skip
        found = compression.least_disk_size(disk.read_bytes()[: 1 << 16])
        assert found == (50 * MB if label == "gpt" else 41 * MB)
        assert compression.least_disk_size(bytes(1 << 16)) == 0

    @pytest.mark.parametrize("features", ["64bit", "^64bit"])
    def test_H10_a_file_system_tells_the_least(self, tmp_path: Path, features: str) -> None:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(50 * MB)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-O", features, str(disk)], check=True)
        assert compression.least_disk_size(disk.read_bytes()[: 1 << 16]) == 50 * MB

    def test_H10_the_last_of_several_gzip_files_does_not_tell(self) -> None:
        assert size_of("gzip", pack("gzip", NOISE(300_000)) + pack("gzip", b"x")) is None

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(KINDS), st.binary(max_size=3000), st.integers(0, 3000))
    def test_damage_gives_no_answer_or_some_but_no_error(
        self, kind: str, noise: bytes, cut: int
    ) -> None:
        packed = pack("xz", b"x" * 5000)[:cut] + noise
        size_of(kind, packed)


class TestStat:
    @pytest.mark.parametrize("kind", KINDS)
    def test_H10_a_compressed_qcow2_says_its_size_itself(
        self, importing: Importing, kind: str
    ) -> None:
        inner = importing.incoming / "inner"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", inner, "77M"], check=True)
        importing.file.write_bytes(pack(kind, inner.read_bytes()))
        assert importing.measure() == 77 * MB

    def test_H10_SIZE_counts_where_the_file_does_not_tell(self, importing: Importing) -> None:
        importing.file.write_bytes(packed_content("bzip2"))
        with pytest.raises(InvalidInput, match="give SIZE in MB"):
            importing.measure()
        assert importing.measure(told=2 * MB) == 2 * MB

    def test_H12_it_ends_in_time(
        self, importing: Importing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        never = threading.Event()
        monkeypatch.setattr(image_format, "compression_of", lambda head: never.wait())
        draw(importing.file, "A")
        with pytest.raises(TransferFailed, match="no answer within 0 s"):
            importing.measure(timeout=0.1)
        never.set()


def test_the_head_of_a_stream_that_is_not_here_whole() -> None:
    for kind in KINDS:
        packed = packed_content(kind)[: MB + (MB >> 1)]
        assert compression.head_of(kind, packed, 1 << 16, step="x") == CONTENT[: 1 << 16]


def test_every_kind_is_detected() -> None:
    found: Callable[[bytes], str] = image_format.compression_of
    assert [found(pack(kind, b"x")) for kind in KINDS] == list(KINDS)
    assert found(b"QFI\xfb") == found(b"") == ""
