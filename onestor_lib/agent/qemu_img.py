"""qemu-img, each call with its formats given: nothing is ever probed (qemu-img(1), -f and -O)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed

QEMU_IMG = "qemu-img"
QUICK = 60.0  # seconds for work on metadata


def virtual_size(path: Path, image_format: str, *, step: str) -> int:
    """The size a guest sees, in bytes. Runs under limits: the image may come from outside."""
    argv = [QEMU_IMG, "info", "--output=json", "-f", image_format, str(path)]
    result = process.run(argv, timeout=QUICK, step=step, limits=process.Limits())
    result.check(step, path=str(path))
    try:
        size = json.loads(result.stdout)["virtual-size"]
    except (ValueError, KeyError, TypeError):
        size = None
    if not isinstance(size, int):
        raise CommandFailed(step, "qemu-img info gave no virtual size", path=str(path))
    return size


def grow(path: Path, image_format: str, size: int, *, step: str) -> None:
    """Make the image ``size`` bytes large for the guest; the new part is a hole."""
    argv = [QEMU_IMG, "resize", "-q", "-f", image_format, str(path), str(size)]
    process.run(argv, timeout=QUICK, step=step).check(step, path=str(path))


def create_overlay(
    path: Path, backing: str, size: int, options: Sequence[str], *, step: str
) -> None:
    """Make ``path`` an empty qcow2 overlay, of ``size`` bytes, on the qcow2 file ``backing``.

    ``backing`` is relative to the directory of ``path`` and need not be there yet: -u keeps
    qemu-img from opening it. ``options`` are ``name=value`` pairs (QCOW2_OPTIONS).
    """
    argv = [QEMU_IMG, "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2"]
    if options:
        argv += ["-o", ",".join(options)]
    argv += [str(path), str(size)]
    process.run(argv, timeout=QUICK, step=step).check(step, path=str(path))


def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    *,
    allocate: bool,
    step: str,
    timeout: float,
    options: Sequence[str] = (),
) -> None:
    """Write the content of ``source`` to ``target`` as a standalone image in another format.

    ``allocate`` gives every byte of the guest's disk a block on the host's disk; ``options``
    are ``name=value`` pairs for a qcow2 target; of two for one name the last counts.
    """
    wanted = [*options, *(["preallocation=falloc"] if allocate else [])]
    arguments = ["-o", ",".join(wanted)] if wanted else []
    if allocate:
        arguments += ["-S", "0"]  # write zeros out instead of leaving holes
    argv = [QEMU_IMG, "convert", "-q", "-f", source_format, "-O", target_format]
    argv += [*arguments, str(source), str(target)]
    process.run(argv, timeout=timeout, step=step).check(step, path=str(target))
