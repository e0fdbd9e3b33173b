"""What an image file is, told from its first bytes; images that name other files are refused.

Only ever used where an image enters (``datastore cp`` and ``stat``) or on content we wrote: a
guest can write any header into a raw disk, so later the format is what OpenNebula has recorded
(contract section 8, trap 35). The qcow2 header is read here, not by qemu-img, because opening a
hostile image is what must not happen (known failures J6, J15). The layout is
that of qemu's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from onestor_lib.agent.errors import InvalidInput, NotAllowed

FORMATS = ("raw", "qcow2")  # what disks of VMs are stored in

NAMES = (*FORMATS, "vmdk", "vdi", "vpc", "vhdx")  # what images may come in

HEAD = 1 << 16  # bytes that are enough for every signature and the qcow2 header

_QCOW2 = struct.Struct(">4sIQIIQ")  # magic, version, backing offset and size, cluster bits, size
_SNAPSHOTS = struct.Struct(">I")  # at 60: how many internal snapshots there are
_INCOMPATIBLE = struct.Struct(">Q")  # at 72, from version 3
_EXTERNAL_DATA = 1 << 2
_KNOWN_BITS = 0x1F  # dirty, corrupt, external data file, compression type, extended L2

_SIGNATURES = {
    b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_UNKNOWN = {b"COWD": "vmdk of ESX", b"QED\x00": "qed"}
_ARCHIVES = {
    b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar",
    b"070701": "cpio", b"070702": "cpio", b"070707": "cpio",
}  # fmt: skip
_TAR = (257, b"ustar")
_VDI = (64, b"\x7f\x10\xda\xbe")
_VDI_END = 456  # bytes of its header that are read
_VDI_OWN = {1: "dynamic", 2: "static"}  # types that are whole
_VDI_CHILDREN = {3: "undo", 4: "differencing"}
_VHD_END = 64
_VHD_DYNAMIC, _VHD_DIFFERENCING = 3, 4
# Magic, version, flags, capacity, grain size, where the descriptor is, its size (in sectors).
_VMDK = struct.Struct("<4sIIQQQQ")
_VMDK_START, _VMDK_READ = 512, 20 * 512  # where qemu reads a descriptor, and how much of it


_EXTENT = re.compile(r"\s*(RW|RDONLY|NOACCESS)\s", re.IGNORECASE)


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


def describe(
    head: bytes, file_size: int, *, step: str, path: str, keeps_compressed: bool = False
) -> Description:
    """Tell format and virtual size of an image from its first :data:`HEAD` bytes.

    ``keeps_compressed``: compressed files are images, too (NO_DECOMPRESS), raw ones.
    A size of 0 cannot be told from there. Raises :class:`NotAllowed` for an image that refers to
    another file, :class:`InvalidInput` for a damaged header and for what is no image.
    """
    if head.startswith(b"QFI\xfb"):
        return describe_qcow2(head, step=step, path=path)
    if is_luks(head):
        return Description("raw", file_size, convertible=False)
    if (kind := compression_of(head)) and keeps_compressed:
        return Description("raw", file_size, convertible=False)
    if kind:
        cause = f"the file is compressed ({kind}); decompress it first"
        raise InvalidInput(step, cause, path=path)
    if head.startswith(b"KDMV"):
        return Description("vmdk", _vmdk_size(head, step, path))
    if head.startswith(b"# Disk Descriptor"):
        raise NotAllowed(step, "the vmdk image refers to other files", path=path)
    if head[64:68] == _VDI[1]:
        return Description("vdi", _vdi_size(head, step, path))
    if head.startswith(b"conectix"):
        return Description("vpc", _vhd_size(head, step, path))
    if head.startswith(b"vhdxfile"):
        return Description("vhdx", 0)  # what has a parent is refused by qemu itself
    _refuse_others(head, step, path)
    return Description("raw", file_size)


def compression_of(head: bytes) -> str:
    """The compression of a file by its first bytes: gzip, bzip2, xz, zstd or ""."""
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    return ""


def is_luks(head: bytes) -> bool:
    """Whether it is encrypted as a whole: raw to everybody but its guest."""
    return head.startswith(b"LUKS\xba\xbe")


def _refuse_others(head: bytes, step: str, path: str) -> None:
    archive = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), "")
    if head[_TAR[0] :].startswith(_TAR[1]):
        archive = "tar"
    if archive:
        cause = f"the file is a {archive} archive; archives are not supported"
        raise InvalidInput(step, cause, path=path)
    for magic, name in _UNKNOWN.items():
        if head.startswith(magic):
            raise InvalidInput(step, f"the file is a {name} image; convert it first", path=path)


def _vmdk_size(head: bytes, step: str, path: str) -> int:
    """The size of a vmdk that is one file; any that names another one is refused (J6)."""
    _require_length(head, _VMDK.size, "vmdk", step, path)
    _, _, _, capacity, _, start, length = _VMDK.unpack_from(head)
    descriptor = head[start * 512 : (start + length) * 512]
    if not capacity or not start or len(descriptor) != length * 512:
        raise NotAllowed(step, "the vmdk image may refer to other files", path=path)
    # qemu looks for a parent anywhere in a line, and in these sectors whatever the header says.
    looked_at = (
        descriptor,
        head[start * 512 :][:_VMDK_READ],
        head[_VMDK_START:][:_VMDK_READ],
    )
    has_parent = any(b"parentfilenamehint" in part.lower() for part in looked_at)
    lines = descriptor.rstrip(b"\0").decode("latin-1").splitlines()
    facts = {
        name.strip().lower(): value.strip().strip('"').lower()
        for name, equals, value in (line.partition("=") for line in lines)
        if equals
    }
    extents = [line.split() for line in lines if _EXTENT.match(line)]
    is_whole = (
        not has_parent
        and facts.get("createtype") in ("monolithicsparse", "streamoptimized")
        and facts.get("parentcid", "ffffffff") == "ffffffff"
        and len(extents) == 1
        and extents[0][2:3] == ["SPARSE"]
        and "/" not in " ".join(extents[0][3:])
    )
    if not is_whole:
        raise NotAllowed(step, "the vmdk image refers to other files", path=path)
    return int(capacity) * 512


def _vdi_size(head: bytes, step: str, path: str) -> int:
    _require_length(head, _VDI_END, "vdi", step, path)
    kind, size = struct.unpack_from("<I", head, 76)[0], struct.unpack_from("<Q", head, 368)[0]
    parents = head[424:_VDI_END]  # two ids, behind those of the image and of its last snapshot
    if kind in _VDI_CHILDREN or any(parents):
        raise NotAllowed(step, "the vdi image refers to another one", path=path)
    if kind not in _VDI_OWN:
        raise InvalidInput(step, "the vdi header is damaged", path=path)
    return int(size)


def _vhd_size(head: bytes, step: str, path: str) -> int:
    _require_length(head, _VHD_END, "vhd", step, path)
    size, kind = struct.unpack_from(">Q", head, 48)[0], struct.unpack_from(">I", head, 60)[0]
    if kind == _VHD_DIFFERENCING:
        raise NotAllowed(step, "the vhd image refers to another one", path=path)
    if kind != _VHD_DYNAMIC:
        raise InvalidInput(step, "the vhd header is damaged", path=path)
    return int(size)


def _require_length(head: bytes, count: int, name: str, step: str, path: str) -> None:
    if len(head) < count:
        raise InvalidInput(step, f"the {name} header is damaged", path=path)


def describe_qcow2(head: bytes, *, step: str, path: str) -> Description:
    """As :func:`describe`, for a file that is known to be qcow2."""
    size = read_qcow2(head, step=step, path=path).virtual_size
    (encryption,) = struct.unpack_from(">I", head, 32)
    return Description("qcow2", size, convertible=not encryption)


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
