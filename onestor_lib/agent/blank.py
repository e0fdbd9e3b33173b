"""Empty disks and images: plain ones, and ones with a file system or swap space in them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from onestor_lib.agent import extents, process, publish, qemu_img
from onestor_lib.agent.errors import InvalidInput

SWAP = "swap"
_STEP = "make image"


def make(
    final: Path,
    *,
    size: int,
    image_format: str,
    filesystem: str,
    options: list[str],
    sparse: bool,
    timeout: float,
    stack: contextlib.ExitStack,
    qcow2_options: Sequence[str] = (),
) -> publish.Temporary:
    """An empty image of ``size`` bytes as a temporary for ``final``; it goes with ``stack``.

    ``filesystem`` is "" for none, "swap", or one that mkfs makes with ``options``.
    """
    _require_name(filesystem)
    made = stack.enter_context(publish.Temporary(final))
    if image_format == "qcow2" and not filesystem:
        _create_qcow2(made.path, size, sparse, qcow2_options)
        return made
    os.truncate(made.path, size)
    if filesystem:
        make_filesystem(made.path, filesystem, options, timeout=timeout)
    if image_format == "qcow2":
        converted = stack.enter_context(publish.Temporary(final))
        qemu_img.convert(
            made.path, "raw", converted.path, "qcow2",
            allocate=not sparse, step=_STEP, timeout=timeout, options=qcow2_options,
        )  # fmt: skip
        return converted
    if not sparse:
        _allocate(made.path, size)  # now: mkfs gives back what it can
    return made


def make_filesystem(file: Path, filesystem: str, options: list[str], *, timeout: float) -> None:
    """Format a raw file that is ours; its mkfs asks nothing and has nobody to ask."""
    step = f"format with {filesystem}"
    if filesystem == SWAP:
        argv = ["mkswap", *options, str(file)]
    else:
        force = ["-F"] if filesystem.startswith("ext") else []  # it is no block device
        argv = [f"mkfs.{filesystem}", *force, *options, str(file)]
    process.run(argv, timeout=timeout, step=step).check(step)


def _require_name(filesystem: str) -> None:
    """It becomes part of a program's name (known failure J1)."""
    if not re.fullmatch(r"[a-z0-9]*", filesystem):
        raise InvalidInput(_STEP, f"{filesystem!r} is no name of a file system")


def _create_qcow2(path: Path, size: int, sparse: bool, options: Sequence[str]) -> None:
    wanted = [*options, *([] if sparse else ["preallocation=falloc"])]
    qemu_img.create(path, "qcow2", size, step=_STEP, options=wanted)


def _allocate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        extents.allocate(fd, size)
    finally:
        os.close(fd)
