"""What an image file is, told from its first bytes; images that name other files are refused.

Only ever used where an image enters (``datastore cp`` and ``stat``) or on content we wrote: a
guest can write any header into a raw disk, so later the format is what OpenNebula has recorded
(contract section 8, trap 35). The qcow2 header is read here, not by qemu-img, because opening a
hostile image is what must not happen (known failures J6, J15). The layout is
that of qemu's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from onestor_lib.agent.errors import InvalidInput, NotAllowed

FORMATS = ("raw", "qcow2")  # what disks of VMs are stored in

HEAD = 1 << 16  # bytes that are enough for every signature and the qcow2 header

_QCOW2 = struct.Struct(">4sIQIIQ")  # magic, version, backing offset and size, cluster bits, size
_SNAPSHOTS = struct.Struct(">I")  # at 60: how many internal snapshots there are
_INCOMPATIBLE = struct.Struct(">Q")  # at 72, from version 3
_EXTERNAL_DATA = 1 << 2
_KNOWN_BITS = 0x1F  # dirty, corrupt, external data file, compression type, extended L2

_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_OTHER = {
    b"KDMV": "vmdk", b"COWD": "vmdk", b"# Disk Descriptor": "vmdk", b"vhdxfile": "vhdx",
    b"conectix": "vhd", b"QED\x00": "qed", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z",
}  # fmt: skip
_TAR = (257, b"ustar")
_VDI = (64, b"\x7f\x10\xda\xbe")


class Qcow2(NamedTuple):
    """What the header of a qcow2 image says; sizes in bytes."""

    virtual_size: int
    cluster_size: int
    snapshots: int


class Description(NamedTuple):
    """Format as OpenNebula names it ("raw", "qcow2") and the size a guest sees, in bytes."""

    format: str
    virtual_size: int
    convertible: bool = True  # an encrypted image is raw to everybody but its guest


def describe(head: bytes, file_size: int, *, step: str, path: str) -> Description:
    """Tell format and virtual size of an image from its first :data:`HEAD` bytes.

    Raises :class:`NotAllowed` for a qcow2 that refers to another file, :class:`InvalidInput` for
    a damaged header and for formats that KVM disks are not stored in here.
    """
    if head.startswith(b"QFI\xfb"):
        return describe_qcow2(head, step=step, path=path)
    if head.startswith(b"LUKS\xba\xbe"):
        return Description("raw", file_size, convertible=False)
    for signature, name in _COMPRESSED.items():
        if head.startswith(signature):
            raise InvalidInput(
                step, f"the file is compressed ({name}); decompress it first", path=path
            )
    other = next((name for magic, name in _OTHER.items() if head.startswith(magic)), None)
    for (offset, magic), name in ((_TAR, "tar archive"), (_VDI, "vdi")):
        if head[offset : offset + len(magic)] == magic:
            other = name
    if other:
        raise InvalidInput(
            step, f"the file is a {other}, not a raw or qcow2 image; convert it first", path=path
        )
    return Description("raw", file_size)


def describe_qcow2(head: bytes, *, step: str, path: str) -> Description:
    """As :func:`describe`, for a file that is known to be qcow2."""
    return Description("qcow2", read_qcow2(head, step=step, path=path).virtual_size)


def read_qcow2(head: bytes, *, step: str, path: str) -> Qcow2:
    """The header of a qcow2 image; raises as :func:`describe` does."""
    if len(head) < 104 or not head.startswith(b"QFI\xfb"):
        raise InvalidInput(step, "not a qcow2 image", path=path)
    _, version, backing, _, cluster_bits, size = _QCOW2.unpack_from(head)
    if version not in (2, 3) or not 9 <= cluster_bits <= 21:
        raise InvalidInput(step, "the qcow2 header is damaged", path=path)
    if backing:
        raise NotAllowed(step, "the qcow2 image refers to a backing file", path=path)
    if version == 3:
        (bits,) = _INCOMPATIBLE.unpack_from(head, 72)
        if bits & _EXTERNAL_DATA:
            raise NotAllowed(step, "the qcow2 image refers to an external data file", path=path)
        if bits & ~_KNOWN_BITS:
            raise InvalidInput(step, "the qcow2 image has unknown features", path=path)
    (snapshots,) = _SNAPSHOTS.unpack_from(head, 60)
    return Qcow2(int(size), 1 << cluster_bits, int(snapshots))
