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
        (b"070702", "cpio archive"), (b"070707", "cpio archive"), (b"PK\x05\x06", "zip archive"),
    ],
)  # fmt: skip
def test_H25_other_formats_are_refused_by_name(head: bytes, name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        describe(head.ljust(512, b"\0"))


DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=8b2ac686
parentCID=ffffffff
createType="monolithicSparse"
RW 20480 SPARSE "a.vmdk"
"""


def vmdk(
    descriptor: bytes = DESCRIPTOR,
    *,
    start: int = 1,
    sectors: int = 20,
    capacity: int = SIZE // 512,
    also: tuple[int, bytes] = (0, b""),
) -> bytes:
    """`also`: text somewhere else (at a byte, what)."""
    fields = (b"KDMV", 1, 3, capacity, 128, start, sectors)
    head = bytearray(struct.pack("<4sIIQQQQ", *fields).ljust(1 << 16, b"\0"))
    head[start * 512 : start * 512 + len(descriptor)] = descriptor
    head[also[0] : also[0] + len(also[1])] = also[1]
    return bytes(head)


def vdi(kind: int = 1, link: bytes = bytes(16), parent: bytes = bytes(16)) -> bytes:
    head = bytearray(512)
    head[64:68] = b"\x7f\x10\xda\xbe"
    struct.pack_into("<I", head, 76, kind)
    struct.pack_into("<Q", head, 368, SIZE)
    head[424:456] = link + parent
    return bytes(head)


def vhd(kind: int = 3) -> bytes:
    return struct.pack(">8s40xQ4xI", b"conectix", SIZE, kind).ljust(512, b"\0")


HINT = b'parentFileNameHint="/etc/x"\n'


def test_H11_sizes_of_images_of_other_hypervisors() -> None:
    stream = DESCRIPTOR.replace(b"monolithicSparse", b"streamOptimized")
    for head in (vmdk(), vmdk(stream), vmdk(start=60)):
        assert describe(head) == Description("vmdk", SIZE)
    assert describe(vdi(1)) == describe(vdi(2)) == Description("vdi", SIZE)
    assert describe(vhd()) == Description("vpc", SIZE)
    assert describe(b"vhdxfile".ljust(512, b"\0")) == Description("vhdx", 0)


@pytest.mark.parametrize(
    "head",
    [
        vmdk(DESCRIPTOR + HINT),
        vmdk(DESCRIPTOR + b"x " + HINT),
        vmdk(DESCRIPTOR + HINT.upper()),
        vmdk(sectors=2, also=(512 + 1024, HINT)),
        vmdk(start=60, also=(512, HINT)),
        vmdk(start=60, sectors=2, also=(62 * 512, HINT)),
        vmdk(DESCRIPTOR.replace(b"ffffffff", b"00000001")),
        vmdk(DESCRIPTOR.replace(b"monolithicSparse", b"monolithicFlat")),
        vmdk(DESCRIPTOR.replace(b"a.vmdk", b"/etc/x")),
        vmdk(DESCRIPTOR.replace(b" SPARSE ", b" FLAT ")),
        vmdk(DESCRIPTOR + b'rw 1 FLAT "b" 0\n'),
        vmdk(b""), vmdk(capacity=0), vmdk(start=0), vmdk(sectors=1 << 40), vmdk(start=1 << 40),
        b"# Disk DescriptorFile\n".ljust(512, b"\0"),
        vdi(4), vdi(3), vdi(link=b"x" * 16), vdi(parent=b"x" * 16), vhd(4),
    ],
)  # fmt: skip
def test_J6_images_of_other_hypervisors_that_name_files_are_refused(head: bytes) -> None:
    with pytest.raises(NotAllowed, match=r"^stat /i: the (vmdk|vdi|vhd) image (may )?refers? to"):
        describe(head)


@pytest.mark.parametrize("head", [vmdk(), vdi(), vhd(), vdi(9), vhd(2)])
@pytest.mark.parametrize("length", [8, 40, 63, 70, 79, 375, 455, 512])
def test_J15_cut_off_and_odd_headers_are_no_other_error(head: bytes, length: int) -> None:
    try:
        describe(head[:length])
    except (InvalidInput, NotAllowed) as error:
        assert error.path == "/i"


def test_J15_an_encrypted_qcow2_is_not_converted() -> None:
    head = bytearray(qcow2())
    struct.pack_into(">I", head, 32, 2)
    assert describe(bytes(head)) == Description("qcow2", SIZE, convertible=False)


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
