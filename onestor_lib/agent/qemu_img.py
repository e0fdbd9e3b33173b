"""qemu-img, each call with its formats given: nothing is ever probed (qemu-img(1), -f and -O)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed, NotAllowed

QEMU_IMG = "qemu-img"
QUICK = 60.0  # seconds for work on metadata
_FLOCK = struct.Struct("hhxxxxqqixxxx")  # struct flock of fcntl(2), 64 bits
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_PAUSE = 0.2  # seconds between two looks
_WRITER = 101  # the byte that whoever writes to an image has locked
_NO_WRITERS = 201  # that of those who share it with no writer


class InUse(CommandFailed):
    """A running VM has the image open."""


def require_unused(path: Path, *, step: str) -> None:
    """Raise :class:`InUse` when a program of qemu has the image open for writing.

    Such a program holds a lock on one byte of the file, whatever the format (block/file-posix.c of
    qemu: RAW_LOCK_PERM_BASE, BLK_PERM_WRITE); looking takes no lock and starts nothing.
    """
    with path.open("rb") as file:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER, 1, 0)
        found = fcntl.fcntl(file, _F_OFD_GETLK, wanted)
    if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
        raise InUse(step, "a running VM uses it", path=str(path))


@contextlib.contextmanager
def barred(path: Path, *, step: str) -> Iterator[None]:
    """Keep every program of qemu from opening the image for writing, as long as the block lasts.

    As a program of qemu does that cannot share it with a writer (RAW_LOCK_SHARED_BASE): a VM that
    is started fails to get its lock instead of losing what it writes. Raises :class:`InUse`.
    """
    with path.open("rb") as file:
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _NO_WRITERS, 1, 0)
        try:
            fcntl.fcntl(file, _F_OFD_SETLK, lock)
        except BlockingIOError:
            raise InUse(step, "a program of qemu uses it", path=str(path)) from None
        require_unused(path, step=step)
        yield


def await_unused(path: Path, *, patience: float, step: str) -> None:
    """:func:`require_unused`, once ``patience`` seconds are over."""
    deadline = time.monotonic() + patience
    while True:
        try:
            require_unused(path, step=step)
            return
        except InUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def bitmaps(path: Path, *, step: str) -> list[str]:
    """The names of the bitmaps in a qcow2 image that no VM uses: they are for backups.

    Raises :class:`CommandFailed` when it is no whole image.
    """
    facts = _info(str(path), "qcow2", step, str(path))
    try:
        found = facts.get("format-specific", {}).get("data", {}).get("bitmaps", [])
        return [str(bitmap["name"]) for bitmap in found]
    except (KeyError, TypeError, AttributeError):
        raise CommandFailed(step, "qemu-img info gave no bitmaps", path=str(path)) from None


def remove_bitmap(path: Path, name: str, *, step: str) -> None:
    """Remove a bitmap from a qcow2 image."""
    argv = [QEMU_IMG, "bitmap", "--remove", "-f", "qcow2", "--", str(path), name]
    process.run(argv, timeout=QUICK, step=step).check(step, path=str(path))


def virtual_size(path: Path, image_format: str, *, step: str) -> int:
    """The size a guest sees, in bytes. Runs under limits: the image may come from outside.

    Raises :class:`CommandFailed`, and :class:`NotAllowed` for an image that names another file.
    """
    return _size(str(path), image_format, step, str(path))


def virtual_size_of_open(fd: int, image_format: str, *, step: str, path: str) -> int:
    """As :func:`virtual_size`, of an open file, which ``path`` names in errors."""
    return _size(f"/proc/self/fd/{fd}", image_format, step, path, pass_fds=[fd])


def _size(
    file: str, image_format: str, step: str, path: str, *, pass_fds: Sequence[int] = ()
) -> int:
    facts = _info(file, image_format, step, path, pass_fds=pass_fds)
    try:
        size = facts["virtual-size"]  # others, further down, are those of the file itself
        names_files = _names_files(facts)
    except (KeyError, TypeError, AttributeError):
        size = None
    if not isinstance(size, int):
        raise CommandFailed(step, "qemu-img info gave no virtual size", path=path)
    if names_files:
        raise NotAllowed(step, "the image refers to another file", path=path)
    return size


def _info(
    file: str, image_format: str, step: str, path: str, *, pass_fds: Sequence[int] = ()
) -> dict[str, Any]:
    """What qemu-img says of an image, under limits."""
    argv = [QEMU_IMG, "info", "--output=json", "-f", image_format, file]
    result = process.run(argv, timeout=QUICK, step=step, limits=process.Limits(), pass_fds=pass_fds)
    result.check(step, path=path)
    try:
        facts = json.loads(result.stdout)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise CommandFailed(step, "qemu-img info gave no JSON object", path=path)
    return facts


def _names_files(facts: dict[str, Any]) -> bool:
    """Whether an image is more than one file, by what qemu-img says (known failure J6)."""
    details = facts.get("format-specific", {}).get("data", {})
    extents = [extent["filename"] for extent in details.get("extents", [])]
    return (
        "backing-filename" in facts
        or "full-backing-filename" in facts
        or "data-file" in details
        or any(name != facts.get("filename") for name in extents)
    )


def grow(
    path: Path,
    image_format: str,
    size: int,
    *,
    step: str,
    allocate: bool = False,
    base: Path | None = None,
) -> None:
    """Make the image ``size`` bytes large for the guest.

    The new part is a hole, or with ``allocate`` has blocks of its own. ``base`` is the qcow2 file
    that an overlay lies on, as long as that has not got its name.
    """
    more = ["--preallocation=falloc"] if allocate else []
    image = ["-f", image_format, str(path)]
    if base:
        image = [_described([(path, image_format), (base, "qcow2")])]
    argv = [QEMU_IMG, "resize", "-q", *more, *image, str(size)]
    process.run(argv, timeout=QUICK, step=step).check(step, path=str(path))


def create(
    path: Path, image_format: str, size: int, *, step: str, options: Sequence[str] = ()
) -> None:
    """Make ``path`` an empty image of ``size`` bytes; ``options`` are ``name=value`` pairs."""
    more = ["-o", ",".join(options)] if options else []
    argv = [QEMU_IMG, "create", "-q", "-f", image_format, *more, str(path), str(size)]
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
    below: Sequence[tuple[Path, str]] = (),
) -> None:
    """Write the content of ``source`` to ``target`` as a standalone image in another format.

    ``below`` are the files that ``source`` lies on, with their formats: what the headers say of
    them is not looked at.
    ``allocate`` gives every byte of the guest's disk a block on the host's disk; ``options``
    are ``name=value`` pairs for a qcow2 target; of two for one name the last counts.
    """
    wanted = [*options, *(["preallocation=falloc"] if allocate else [])]
    arguments = ["-o", ",".join(wanted)] if wanted else []
    if allocate:
        arguments += ["-S", "0"]  # write zeros out instead of leaving holes
    argv = [QEMU_IMG, "convert", "-q"]
    if below:
        name = _described([(source, source_format), *below])
    else:
        name, argv = str(source), [*argv, "-f", source_format]
    argv += ["-O", target_format, *arguments, name, str(target)]
    process.run(argv, timeout=timeout, step=step).check(step, path=str(target))


def create_difference(
    path: Path, disk: Path, base: Path, options: Sequence[str], *, timeout: float, step: str
) -> None:
    """Make ``path`` a qcow2 overlay on ``base`` that shows what the qcow2 file ``disk`` does.

    It has only the clusters in which the two differ (qemu-img(1), rebase in its safe mode).
    """
    argv = [QEMU_IMG, "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", "qcow2"]
    if options:
        argv += ["-o", ",".join(options)]
    process.run([*argv, str(path)], timeout=QUICK, step=step).check(step, path=str(path))
    argv = [QEMU_IMG, "rebase", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(path)]
    process.run(argv, timeout=timeout, step=step).check(step, path=str(path))


def rename_backing(path: Path, name: str, *, step: str) -> None:
    """Let the overlay ``path`` find the same backing file by another name, which is not opened."""
    argv = [QEMU_IMG, "rebase", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", str(path)]
    process.run(argv, timeout=QUICK, step=step).check(step, path=str(path))


def require_equal(
    one: Sequence[tuple[Path, str]],
    other: Sequence[tuple[Path, str]],
    *,
    timeout: float,
    step: str,
) -> None:
    """Raise :class:`CommandFailed` unless a guest reads the same from two chains of files.

    Where one is longer the rest of it has to be zeros (qemu-img(1), compare).
    """
    names = [_described(one), _described(other)]
    argv = [QEMU_IMG, "compare", "-q", *names]
    process.run(argv, timeout=timeout, step=step).check(step, path=str(one[0][0]))


def _described(layers: Sequence[tuple[Path, str]]) -> str:
    """A chain of files as one name, with all formats given (qemu(1), "json:" file names)."""
    node: dict[str, Any] | None = None
    for path, image_format in reversed(layers):
        file = {"driver": "file", "filename": str(path)}
        node = {"driver": image_format, "file": file, **({"backing": node} if node else {})}
    return "json:" + json.dumps(node)
