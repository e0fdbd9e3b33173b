"""What the disks and images of a datastore may grow to: the sizes that guests see, in bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent import chain, vm_directory
from onestor_lib.agent.errors import OnestorError

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
    try:
        if not file.is_file():
            return 0
        size = file.stat().st_size
        virtual = chain.virtual_size(file, "qcow2", step="monitor datastore")
        return virtual if virtual < _MOST else size
    except OnestorError:
        return size  # not a qcow2 image
    except OSError:
        return 0
