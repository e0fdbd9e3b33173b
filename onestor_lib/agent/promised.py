"""What the disks and images of a datastore may grow to: the sizes that guests see, in bytes."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent import vm_directory

_QCOW2 = struct.Struct(">4s20xQ")  # magic, and at 24 the virtual size
_MOST = 1 << 50  # bytes: a raw disk whose guest has written such a header promises nothing


def of_disks(datastore: Path) -> int:
    """Of all disks of all VMs in the directory of a system datastore."""
    total = 0
    for directory in _entries(datastore):
        if directory.name.isdigit():
            total += sum(
                _size(file) for file in _entries(directory) if vm_directory.is_disk(file.name)
            )
    return total


def of_images(datastore: Path) -> int:
    """Of all images in the directory of an image datastore."""
    return sum(_size(file) for file in _entries(datastore) if file.name[0] != ".")


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from directory.iterdir()


def _size(file: Path) -> int:
    """What vanishes meanwhile, and what is no file, promises nothing."""
    with contextlib.suppress(OSError):
        if not file.is_file():
            return 0
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            head, size = os.pread(fd, _QCOW2.size, 0), os.fstat(fd).st_size
        finally:
            os.close(fd)
        if len(head) == _QCOW2.size:
            magic, virtual = _QCOW2.unpack(head)
            if magic == b"QFI\xfb" and virtual < _MOST:
                return int(virtual)
        return size
    return 0
