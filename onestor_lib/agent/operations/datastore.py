"""Operations on an image datastore: new images, how large they will be, and removing them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    companions,
    crashpoints,
    deadline,
    extents,
    locks,
    measuring,
    mounts,
    origin,
    paths,
    priority,
    publish,
    qemu_img,
    replacement,
    space,
    transfer,
)
from onestor_lib.agent import image_format as formats
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.errors import InvalidInput, OnestorError, TransferFailed, from_os_error
from onestor_lib.agent.server import Call

_PATIENCE = 60.0  # seconds for another writer of a temporary to end


def measure(
    call: Call,
    *,
    source: dict[str, Any],
    inspect: bool,
    decompress: bool,
    told: int,
    timeout: float,
) -> dict[str, int]:
    """The size in bytes a file will have as an image, which is what a guest sees of it.

    No more is read than tells it; ``told`` is the size that somebody has given, 0 for none, which
    counts when the file does not tell. All of it takes ``timeout`` seconds at most (H12).
    """
    return {
        "size": deadline.within(
            timeout,
            lambda: measuring.image_size(
                source, inspect=inspect, decompress=decompress, told=told, stall=timeout
            ),
            step="stat",
            path=str(source.get("name", source.get("path", ""))),
        )
    }


def create(
    call: Call,
    *,
    base: str,
    name: str,
    staging: str,
    inspect: bool,
    decompress: bool,
    known_format: str,
    wanted_format: str,
    foreign_to: str,
    sparse: bool,
    check_space: bool,
    convert_timeout: float,
    require_mount: bool,
    bulk: dict[str, Any],
    step: str,
    source: str,
) -> dict[str, Any]:
    """Make a new image ``name`` in the datastore ``base``; returns its format and size in bytes.

    The front-end is asked for the ``content`` of a temporary, which lies in the directory
    ``staging`` if one is given, and at the end whether the image is ``wanted`` still (known
    failure H6). ``inspect`` False takes the bytes as they are, as "raw" (CDROM images and file
    datastores); ``known_format`` "" means that the first bytes tell. ``wanted_format`` is the one
    to convert to, ``foreign_to`` that for images no disk can be made of (vmdk and the like); ""
    converts nothing. ``source`` names the content in errors.
    """
    directory = Path(base)
    mounts.require(base, required=require_mount, step=step)
    final = directory / name
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        publish.sweep(directory)
        if staging:
            publish.sweep(Path(staging))
        with contextlib.ExitStack() as stack:
            first = Path(staging or base) / name
            content, manifest = _content(call, first, companions.manifest(final), stack)
            crashpoints.reach("import.copied")
            # What counts is what we have now: the source may have changed under our hands.
            found = _describe_file(content.path, inspect, decompress, known_format, step, source)
            priority.lower(**bulk)
            size = found.virtual_size
            if inspect:  # before anything else is done with it, under limits
                size = qemu_img.virtual_size(content.path, found.format, step="inspect image")
            target = wanted_format or (foreign_to if found.format not in formats.FORMATS else "")
            if check_space and (staging or target not in ("", found.format)):
                facts = content.path.stat()
                space.require(
                    directory, facts.st_blocks * 512 if sparse else max(size, facts.st_size)
                )
            ready, kept = _ready(
                content, manifest, final, found, target, stack,
                sparse=sparse, timeout=convert_timeout,
            )  # fmt: skip
            image_format = found.format if kept else target
            kept_manifest = manifest if kept else _manifest_of(ready.path)
            crashpoints.reach("import.inspected")
            call.ask("wanted")
            ready.publish(mode=0o660)
        with contextlib.suppress(OnestorError, OSError):  # it can be made later
            origin.Origin(final).keep(kept_manifest)
    except OSError as error:
        raise from_os_error(step, error, where=base) from error
    return {"format": image_format, "size": size}


def remove(call: Call, *, path: str, base: str, require_mount: bool = False) -> dict[str, bool]:
    """Remove an image with its snapshots and companions; nothing there is success.

    The image itself goes last, so that a repeated call finds the rest (known failure H8).
    """
    image = paths.inside(path, base, step="remove image")
    mounts.require(base, required=require_mount, step="remove image")
    replacement.finish(image)
    there = [publish.remove(companions.snapshots(image))]
    entry = Entry(image)
    was_cached = any(map(os.path.lexists, (entry.lock, entry.image)))
    if entry.is_hidden and was_cached:  # by this machine; else no lock file is to be made for it
        with locks.exclusive_now(entry.lock, purpose="remove") as free:
            if free:
                entry.drop()
    companions.forget(image)
    crashpoints.reach("rm.companions")
    there.append(publish.remove(image))
    crashpoints.reach("rm.image")
    publish.sweep(image.parent)
    if any(there):
        publish.sync_dir(image.parent)
    return {"removed": any(there)}


def _content(
    call: Call, first: Path, manifest_path: Path, stack: contextlib.ExitStack
) -> tuple[publish.Temporary, Manifest]:
    """Have the front-end bring the content; the temporary that holds it, and its manifest."""
    content = stack.enter_context(publish.Temporary(first))
    with publish.Temporary(manifest_path) as noted:
        answer = call.ask("content", temporary=str(content.path), manifest=str(noted.path))
        digests = noted.path.read_bytes()
    with transfer.claimed(content.path, answer["written"], _PATIENCE):
        content.renew()
    try:
        manifest = Manifest(content.path.stat().st_size, digests)
    except ValueError:
        manifest = Manifest(0)
    if manifest.digest() != answer["digest"]:
        raise TransferFailed("receive", "the manifest is not there", path=str(first))
    return content, manifest


def _ready(
    content: publish.Temporary,
    manifest: Manifest,
    final: Path,
    found: formats.Description,
    wanted_format: str,
    stack: contextlib.ExitStack,
    *,
    sparse: bool,
    timeout: float,
) -> tuple[publish.Temporary, bool]:
    """The temporary to publish as ``final``, and whether it has the content as it came."""
    if found.convertible and wanted_format not in ("", found.format):
        converted = stack.enter_context(publish.Temporary(final))
        qemu_img.convert(
            content.path, found.format, converted.path, wanted_format,
            allocate=not sparse, step="convert image", timeout=timeout,
        )  # fmt: skip
        return converted, False
    if content.final != final:
        content = _out_of_staging(content, manifest, final, stack)
    if not sparse:
        with content.path.open("r+b") as file:
            extents.allocate(file.fileno(), manifest.size)
    return content, True


def _out_of_staging(
    content: publish.Temporary, manifest: Manifest, final: Path, stack: contextlib.ExitStack
) -> publish.Temporary:
    """The content in the datastore itself, compared with what has come."""
    moved = stack.enter_context(publish.Temporary(final))
    if moved.become_link(content.path):
        return moved
    with content.path.open("rb") as source, moved.path.open("r+b") as target:
        fds = source.fileno(), target.fileno()
        size = extents.copy_file(*fds, sparse=True, step="copy image", path=str(content.path))
        if transfer.digests_of(target.fileno(), size).digest() != manifest.digest():
            raise TransferFailed("copy image", transfer.DIFFERENT, path=str(content.path))
    return moved


def _manifest_of(file: Path) -> Manifest:
    """The manifest of a converted image: its content is in memory still."""
    fd = transfer.open_source(file)
    try:
        return transfer.digests_of(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _describe_file(
    file: Path, inspect: bool, decompress: bool, known_format: str, step: str, source: str
) -> formats.Description:
    """Format and size of what has come; ``source`` is the name that means something to people."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        head = extents.read_exactly(fd, formats.HEAD, 0)
    finally:
        os.close(fd)
    if not inspect:
        return formats.Description("raw", size, convertible=False)
    if not size:
        raise InvalidInput(step, "the file is empty", path=source)
    if known_format == "raw":
        return formats.Description("raw", size, convertible=not formats.is_luks(head))
    if known_format == "qcow2":
        return formats.describe_qcow2(head, step=step, path=source)
    return formats.describe(head, size, step=step, path=source, keeps_compressed=not decompress)
