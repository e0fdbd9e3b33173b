"""The files a disk is made of: an overlay, the file it lies on, and so on down to a complete one.

Names of backing files are read from the qcow2 header here, never by qemu-img, which would open
what they name. Only files below one directory may be in a chain: that of the VM, of the image's
snapshots, or of the datastores, by what an image may rightly be made of.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent import extents, qemu_img
from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed
from onestor_lib.agent.image_format import FORMATS

# Magic, version, offset and size of the backing file's name, cluster bits, virtual size; at 60 the
# number of internal snapshots, at 72 the incompatible features.
_HEADER = struct.Struct(">4sIQIIQ28xI8xQ")
_EXTERNAL_DATA = 1 << 2
_FORMAT_NAME = 0xE2792ACA  # the extension that has the format of the backing file
_EXTENSIONS = 4096  # bytes that are looked at for it
_MAX_NAME = 1023  # bytes, as the qcow2 specification has it
_LONGEST = 200  # files; no driver makes chains that long


def backing(file: Path, image_format: str, *, step: str) -> Path | None:
    """What a qcow2 overlay lies on, with links resolved; None for a complete image.

    Raises :class:`InvalidInput` and :class:`NotAllowed`, and ``OSError``.
    """
    name = backing_name(file, image_format, step=step)
    if not name:
        return None
    if ":" in name.partition("/")[0] or "\0" in name:
        raise NotAllowed(step, f"its backing file is {name!r}", path=str(file))
    # A relative name counts from the directory of the file itself, not of a link to it.
    where = os.path.dirname(os.path.realpath(file))
    return Path(os.path.realpath(os.path.join(where, name)))


def backing_name(file: Path, image_format: str, *, step: str) -> str:
    """The name of the backing file as it stands in the header; "" for none."""
    if image_format != "qcow2":
        return ""
    return _read_header(file, step).backing


def virtual_size(file: Path, image_format: str, *, step: str) -> int:
    """How many bytes the guest sees; of an overlay its own header tells."""
    if image_format != "qcow2":
        return file.stat().st_size
    return _read_header(file, step).size


def internal_snapshots(file: Path, image_format: str, *, step: str) -> int:
    """How many snapshots there are within the file, where no driver makes any."""
    return _read_header(file, step).snapshots if image_format == "qcow2" else 0


class _Header(NamedTuple):
    backing: str
    size: int
    snapshots: int


def _read_header(file: Path, step: str) -> _Header:
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        head = extents.read_exactly(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        magic, version, offset, length, _, size, snapshots, features = _HEADER.unpack(head)
        if magic != b"QFI\xfb" or length > _MAX_NAME:
            raise InvalidInput(step, "not a qcow2 image", path=str(file))
        if version > 2 and features & _EXTERNAL_DATA:
            raise NotAllowed(step, "it refers to an external data file", path=str(file))
        name = os.fsdecode(extents.read_exactly(fd, length, offset)) if offset else ""
    finally:
        os.close(fd)
    return _Header(name, size, snapshots)


class Layer(NamedTuple):
    """One file of a chain."""

    path: Path
    image_format: str


def layers(file: Path, image_format: str, *, within: Path, step: str) -> list[Layer]:
    """``file`` with its links resolved, and every file below it in its chain, the lowest last.

    The format of a backing file is what the overlay's header says; one that says nothing lies on
    its like. Raises :class:`Missing` for a file that is not there, :class:`NotAllowed` for one that
    is not below the directory ``within`` or a datastore linked there, and :class:`InvalidInput` for
    what is no file.
    """
    allowed = _roots(within)
    found: list[Layer] = []
    each: Layer | None = Layer(Path(os.path.realpath(file)), image_format)
    while each is not None:
        path = each.path
        if not any(str(path).startswith(root) for root in allowed):
            raise NotAllowed(step, f"it lies on {path}, outside of {within}", path=str(file))
        if path in [layer.path for layer in found] or len(found) == _LONGEST:
            raise InvalidInput(step, "its chain of backing files has no end", path=str(file))
        require_regular(path, step=step)
        found.append(each)
        below = backing(path, each.image_format, step=step)
        each = Layer(below, _backing_format(path, step)) if below else None
    return found


def _roots(within: Path) -> list[str]:
    """Where files of a chain may lie: a datastore, a numbered directory, may itself be a link."""
    found = [within]
    with contextlib.suppress(OSError):
        found += [each for each in within.iterdir() if each.name.isdigit() and each.is_symlink()]
    return [os.path.realpath(each) + "/" for each in found]


def allocated(found: list[Layer]) -> int:
    """The bytes that the files of a chain take on their disks: a flat copy takes no more."""
    return sum(layer.path.stat().st_blocks * 512 for layer in found)


def require_regular(file: Path, *, step: str) -> None:
    """Raise :class:`Missing` or :class:`InvalidInput` unless ``file`` is a regular file."""
    try:
        facts = file.lstat()
    except FileNotFoundError:
        raise Missing(step, "no such file", path=str(file)) from None
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidInput(step, "not a regular file", path=str(file))


def _backing_format(file: Path, step: str) -> str:
    """The format of the backing file by the header's extension; "qcow2" where there is none."""
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        head = extents.read_exactly(fd, _EXTENSIONS, 0)
    finally:
        os.close(fd)
    (version,) = struct.unpack_from(">I", head, 4)
    (position,) = struct.unpack_from(">I", head, 100) if version > 2 else (72,)
    while position + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, position)
        position += 8
        if kind == 0:
            break
        if kind == _FORMAT_NAME:
            name = head[position : position + length].decode("ascii", "replace")
            if name not in FORMATS:
                raise NotAllowed(
                    step, f"the format of its backing file is {name!r}", path=str(file)
                )
            return name
        position += (length + 7) // 8 * 8
    return "qcow2"


def flatten(
    found: list[Layer], target: Path, image_format: str, *, step: str, timeout: float
) -> None:
    """Write all content of a chain to the existing file ``target``, as a complete image."""
    top = found[0]
    if len(found) > 1 or top.image_format != image_format:
        qemu_img.convert(
            top.path, top.image_format, target, image_format,
            allocate=False, step=step, timeout=timeout, below=found[1:],
        )  # fmt: skip
        return
    extents.copy_path(top.path, target, sparse=True, step=step)


def users(file: Path, among: Iterable[Path], image_format: str, *, step: str) -> list[Path]:
    """Those of the files ``among`` that have ``file`` as their backing file.

    What is no image of that format has none.
    """
    using = []
    for each in among:
        with contextlib.suppress(InvalidInput):
            if backing(each, image_format, step=step) == file:
                using.append(each)
    return using
