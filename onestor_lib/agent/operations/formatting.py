"""Empty images: plain ones, and ones with a file system or swap space in them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from onestor_lib.agent import extents, mounts, process, publish, qemu_img, space
from onestor_lib.agent.errors import InvalidInput, from_os_error
from onestor_lib.agent.server import Call
from onestor_lib.agent.space import MB

SWAP = "swap"
_STEP = "make image"


def make(
    call: Call,
    *,
    base: str,
    name: str,
    size: int,
    image_format: str,
    filesystem: str,
    options: list[str],
    sparse: bool,
    check_space: bool,
    timeout: float,
    require_mount: bool,
) -> None:
    """Make the image ``name`` of ``size`` MB in the image datastore ``base``.

    ``filesystem`` is "" for none, "swap", or one that mkfs makes with ``options``. The front-end
    is asked at the end whether the image is ``wanted`` still (known failure H6).
    """
    _require_name(filesystem)
    directory, bytes_wanted = Path(base), size * MB
    mounts.require(base, required=require_mount, step=_STEP)
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        publish.sweep(directory)
        if check_space and not sparse:
            space.require(directory, bytes_wanted)
        with contextlib.ExitStack() as stack:
            final = stack.enter_context(publish.Temporary(directory / name))
            if image_format == "qcow2" and not filesystem:
                _create_qcow2(final.path, bytes_wanted, sparse)
            else:
                os.truncate(final.path, bytes_wanted)
                if filesystem:
                    make_filesystem(final.path, filesystem, options, timeout=timeout)
                if image_format == "qcow2":
                    plain, final = final, stack.enter_context(publish.Temporary(directory / name))
                    qemu_img.convert(
                        plain.path, "raw", final.path, "qcow2",
                        allocate=not sparse, step=_STEP, timeout=timeout,
                    )  # fmt: skip
                elif not sparse:
                    _allocate(final.path, bytes_wanted)  # now: mkfs gives back what it can
            call.ask("wanted")
            final.publish(mode=0o660)
    except OSError as error:
        raise from_os_error(_STEP, error, path="" if error.filename else base) from error


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


def _create_qcow2(path: Path, size: int, sparse: bool) -> None:
    allocation = [] if sparse else ["-o", "preallocation=falloc"]
    argv = [qemu_img.QEMU_IMG, "create", "-q", "-f", "qcow2", *allocation, str(path), str(size)]
    process.run(argv, timeout=qemu_img.QUICK, step=_STEP).check(_STEP, path=str(path))


def _allocate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        extents.allocate(fd, size)
    finally:
        os.close(fd)
