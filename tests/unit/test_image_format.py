"""agent.image_format: signatures and qcow2 headers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import image_format
from onestor_lib.agent.errors import InvalidInput, NotAllowed
from onestor_lib.agent.image_format import Description

SIZE = 10 << 20


def qcow2(
    *,
    version: int = 3,
    backing: int = 0,
    cluster_bits: int = 16,
    bits: int = 0,
    size: int = SIZE,
    snapshots: int = 0,
) -> bytes:
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, backing, 8, cluster_bits, size)
    head = head.ljust(60, b"\0") + struct.pack(">I", snapshots)
    return head.ljust(72, b"\0") + struct.pack(">Q", bits).ljust(200, b"\0")


def describe(head: bytes, file_size: int = 4096) -> Description:
    return image_format.describe(head, file_size, step="stat", path="/i")


def test_H11_the_size_is_what_a_guest_sees() -> None:
    assert describe(qcow2()) == Description("qcow2", SIZE)
    assert describe(qcow2(version=2, bits=1 << 60)) == Description("qcow2", SIZE)
    assert describe(b"anything else", 4097) == Description("raw", 4097)


@pytest.mark.parametrize(("bits", "size"), [(9, 512), (16, 65536), (21, 2 << 20)])
def test_what_a_qcow2_header_says(bits: int, size: int) -> None:
    head = qcow2(cluster_bits=bits, snapshots=3)
    found = image_format.read_qcow2(head, step="stat", path="/i")
    assert found == image_format.Qcow2(virtual_size=SIZE, cluster_size=size, snapshots=3)


@pytest.mark.parametrize("head", [qcow2(backing=512), qcow2(version=2, backing=1), qcow2(bits=4)])
def test_J6_images_that_name_other_files_are_refused(head: bytes) -> None:
    with pytest.raises(NotAllowed, match=r"^stat /i: the qcow2 image refers to"):
        describe(head)


@pytest.mark.parametrize(
    "head",
    [
        qcow2(version=1), qcow2(version=4), qcow2(cluster_bits=8), qcow2(cluster_bits=22),
        qcow2(bits=1 << 9), b"QFI\xfb", b"QFI\xfb" + bytes(99),
    ],
)  # fmt: skip
def test_J15_damaged_headers_are_refused(head: bytes) -> None:
    with pytest.raises(InvalidInput):
        describe(head)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x1f\x8b\x08", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"), (b"COWD", "vmdk of ESX"), (b"QED\x00", "qed"),
        (b"PK\x03\x04", "zip archive"), (b"7z\xbc\xaf", "7z archive"), (b"Rar!", "rar archive"),
        (bytes(257) + b"ustar", "tar archive"), (b"070701", "cpio archive"),
    ],
)  # fmt: skip
def test_H25_other_formats_are_refused_by_name(head: bytes, name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        describe(head.ljust(512, b"\0"))


def test_trap35_a_recorded_format_is_not_probed() -> None:
    with pytest.raises(InvalidInput, match="not a qcow2 image"):
        image_format.describe_qcow2(bytes(512), step="read", path="/i")


@given(st.binary(max_size=300), st.booleans())
def test_no_header_is_anything_but_described_or_refused(rest: bytes, is_qcow2: bool) -> None:
    head = (b"QFI\xfb" if is_qcow2 else b"") + rest
    try:
        assert describe(head).virtual_size >= 0
    except (InvalidInput, NotAllowed) as error:
        assert error.path == "/i"
