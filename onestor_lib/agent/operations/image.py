"""Operations on images in an image datastore, and on files that become images."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    crashpoints,
    extents,
    image_format,
    locks,
    origin,
    paths,
    publish,
    qemu_img,
    space,
    transfer,
)
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import InvalidInput, OnestorError, from_os_error
from onestor_lib.agent.server import Call


def describe(call: Call, *, path: str, image_format: str, snapshots: bool) -> dict[str, Any]:
    """What has to be known of a registered image before it is copied."""
    return origin.describe(Path(path), image_format, snapshots=snapshots)


def missing(call: Call, *, directory: str, names: list[str]) -> dict[str, list[str]]:
    """Which of the files ``names`` are not in ``directory``; none when that is not there itself."""
    return {"names": origin.missing(Path(directory), names)}


def measure(call: Call, *, path: str, rules: dict[str, list[str]], inspect: bool) -> dict[str, Any]:
    """The size in bytes a file will have as an image: what a guest sees of it."""
    fd = paths.open_image(path, paths.Rules(**rules), step="stat")
    try:
        return {"size": _describe_open(fd, path, inspect, "stat").virtual_size}
    finally:
        os.close(fd)


def import_file(
    call: Call,
    *,
    path: str,
    rules: dict[str, list[str]],
    base: str,
    name: str,
    inspect: bool,
    wanted_format: str,
    digests: dict[str, str],
    sparse: bool,
    check_space: bool,
    convert_timeout: float,
) -> dict[str, str]:
    """Copy a local file into the image datastore ``base`` as ``name``; returns its format.

    ``inspect`` False takes the bytes as they are, as "raw" (CDROM images and file datastores).
    ``digests`` (algorithm to hexadecimal digest) are all compared with what was stored;
    ``wanted_format`` "" keeps the format of the file. The front-end is asked at the end whether
    the image is ``wanted`` still (known failure H6).
    """
    step = "copy image"
    directory = Path(base)
    fd = paths.open_image(path, paths.Rules(**rules), step=step)
    try:
        _describe_open(fd, path, inspect, step)  # refuse early, before a byte is copied
        directory.mkdir(mode=0o755, exist_ok=True)
        publish.sweep(directory)
        if check_space:
            facts = os.fstat(fd)
            needed = min(facts.st_blocks * 512, facts.st_size) if sparse else facts.st_size
            space.require(directory, needed)
        with publish.Temporary(directory / name) as temporary, contextlib.ExitStack() as stack:
            _copy(fd, temporary.path, path, digests, sparse, step)
            crashpoints.reach("import.copied")
            # What counts is what we have now: the source may have changed under our hands.
            stored = _describe_file(temporary.path, path, inspect, step)
            found, final = stored.format, temporary
            if inspect:
                qemu_img.virtual_size(temporary.path, found, step="inspect image")
            if stored.convertible and wanted_format not in ("", found):
                final = stack.enter_context(publish.Temporary(directory / name))
                qemu_img.convert(
                    temporary.path, found, final.path, wanted_format,
                    allocate=not sparse, step="convert image", timeout=convert_timeout,
                )  # fmt: skip
                found = wanted_format
            crashpoints.reach("import.inspected")
            call.ask("wanted")
            final.publish(mode=0o660)
            _keep_manifest(directory / name)
    except OSError as error:
        place = "" if error.filename else base  # writing by descriptor tells no name
        raise from_os_error(step, error, path=place) from error
    finally:
        os.close(fd)
    return {"format": found}


def remove(call: Call, *, path: str, base: str) -> dict[str, bool]:
    """Remove an image with its snapshots and companions; nothing there is success.

    The image itself goes last, so that a repeated call finds the rest (known failure H8).
    """
    image = paths.inside(path, base, step="remove image")
    companions = [image.parent / (image.name + ending) for ending in (".snap", ".md5sum")]
    there = [publish.remove(companion) for companion in companions]
    entry = Entry(image)
    was_cached = any(map(os.path.lexists, (entry.lock, entry.image)))
    if entry.is_hidden and was_cached:  # by this machine; else no lock file is to be made for it
        with locks.exclusive_now(entry.lock, purpose="remove") as free:
            if free:
                entry.drop()
    publish.remove(origin.manifest_path(image))
    crashpoints.reach("rm.companions")
    there.append(publish.remove(image))
    crashpoints.reach("rm.image")
    publish.sweep(image.parent)
    if any(there):
        publish.sync_dir(image.parent)
    return {"removed": any(there)}


def _keep_manifest(image: Path) -> None:
    """Digest the new image while its content is in memory still: no transfer has to do it again."""
    with contextlib.suppress(OnestorError, OSError):  # it can be made later
        stored = origin.Origin(image)
        fd = transfer.open_source(image)
        try:
            manifest = transfer.digests_of(fd, stored.version.size)
            stored.require(fd)
        finally:
            os.close(fd)
        stored.keep(manifest)


def _describe_open(fd: int, path: str, inspect: bool, step: str) -> image_format.Description:
    size = os.fstat(fd).st_size
    if not inspect:
        return image_format.Description("raw", size, convertible=False)
    head = extents.read_exactly(fd, image_format.HEAD, 0)
    if not size:
        raise InvalidInput(step, "the file is empty", path=path)
    return image_format.describe(head, size, step=step, path=path)


def _describe_file(file: Path, path: str, inspect: bool, step: str) -> image_format.Description:
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return _describe_open(fd, path, inspect, step)
    finally:
        os.close(fd)


def _copy(
    fd: int, temporary: Path, path: str, digests: dict[str, str], sparse: bool, step: str
) -> None:
    target = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
    try:
        extents.copy_file(fd, target, sparse=sparse, step=step, path=path)
        _check_digests(target, digests, path, step)
    finally:
        os.close(target)


def _check_digests(fd: int, digests: dict[str, str], path: str, step: str) -> None:
    """Compare every digest that was given (known failure H4), in one pass over the stored bytes."""
    if not digests:
        return
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in digests}
    offset = 0
    while block := extents.read_exactly(fd, CHUNK, offset):
        for each in sums.values():
            each.update(block)
        offset += len(block)
    for name, expected in digests.items():
        if (found := sums[name].hexdigest()) != expected:
            raise OnestorError(step, f"{name.upper()} is {found}, expected {expected}", path=path)
