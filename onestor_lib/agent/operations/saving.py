"""Bringing the disk of a VM back into an image datastore: the host's part, and the datastore's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    chain,
    companions,
    crashpoints,
    extents,
    live_copy,
    mounts,
    origin,
    paths,
    priority,
    publish,
    qemu_img,
    replacement,
    space,
    transfer,
    vm_directory,
)
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.errors import TransferFailed, from_os_error
from onestor_lib.agent.server import Call
from onestor_lib.agent.version import Version

_STEP = "save disk"
_DETACHING = 30.0  # seconds for a guest to let go of a disk: libvirt does not wait for that
_PATIENCE = 60.0  # seconds for another writer of a temporary to end


def prepare(
    call: Call,
    *,
    path: str,
    image_format: str,
    snapshot: int | None,
    with_snapshots: bool,
    live: dict[str, Any] | None,
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Have the content of a disk, or of one ``snapshot`` of it, in complete files.

    A file that lies on another is flattened beside the disk; these temporaries, and the disk's
    lock, last until the end of the connection. ``live`` says how to copy the disk of a VM that
    runs, see ``onestor_lib.agent.live_copy.Live``. Returns the path and size (bytes) of the
    ``image`` and of the ``snapshots`` by id; without a disk only its ``record``.
    """
    disk = Path(path)
    priority.lower(**bulk)
    publish.sweep(disk.parent)
    publish.sweep(vm_directory.snapshots_path(disk))
    source = disk if snapshot is None else vm_directory.snapshots_path(disk) / str(snapshot)
    if snapshot is None and not os.path.lexists(disk):
        return {"there": False, "record": vm_directory.read_record(disk)}
    call.keep(vm_directory.lock(disk, purpose=_STEP, timeout=lock_timeout))
    maker = _Complete(call, disk, image_format, check_space, timeout)
    try:
        if live is not None and snapshot is None:
            image = maker.temporary()
            layers = maker.layers(source)
            maker.require_space(layers)
            how = live_copy.Live(**live)
            live_copy.copy(call, layers, image, image_format, how, shallow=False, timeout=timeout)
        else:
            if snapshot is None:
                qemu_img.await_unused(Path(os.path.realpath(disk)), patience=_DETACHING, step=_STEP)
            image = maker.of(source)
        found = {}
        if with_snapshots:
            inside = os.path.realpath(disk)
            for each in _snapshots(disk):
                # In other drivers' chains the newest file is the disk itself.
                if os.path.realpath(each) != inside:
                    found[each.name] = maker.of(each)
    except OSError as error:
        raise from_os_error(_STEP, error, where=path) from error
    return {
        "there": True,
        "image": _facts(image),
        "snapshots": {name: _facts(file) for name, file in found.items()},
        "allocated": sum(file.stat().st_blocks * 512 for file in (image, *found.values())),
    }


def returned(call: Call, *, path: str, record: dict[str, Any]) -> None:
    """Remove a disk that is back in its image, with all that belongs to it.

    The note that stays says so: a repeated action that finds no disk knows why (trap 22), and no
    further call comes after a detach (known failure L6).
    """
    disk = Path(path)
    vm_directory.write_record(disk, record)
    crashpoints.reach("save.noted")
    # The disk goes first: one that is there must never lack its snapshots, it would be saved so.
    publish.remove(disk)
    vm_directory.remove_outgoing(disk)
    publish.sync_dir(disk.parent)
    crashpoints.reach("save.removed")
    for rest in (vm_directory.snapshots_path(disk), vm_directory.base_path(disk)):
        publish.remove(rest)
    publish.sync_dir(disk.parent)


def replace(
    call: Call,
    *,
    path: str,
    base: str,
    size: int,
    allocated: int,
    snapshots: dict[str, int],
    sparse: bool,
    check_space: bool,
    returned_from: dict[str, Any] | None,
    bulk: dict[str, Any],
) -> None:
    """Let the image ``path`` of the datastore ``base`` have new content, and these snapshots.

    The front-end is asked for the ``content`` of each: ``size`` and those of the snapshots are in
    bytes. Until all is there and verified the image is what it was. ``returned_from`` says which
    disk comes back, for :func:`returned_by`.
    """
    name = paths.inside(path, base, step=_STEP).name
    image = Path(os.path.dirname(path), name)  # as the front-end calls it: it checks names, too
    mounts.require(base, required=False, step=_STEP)
    priority.lower(**bulk)
    try:
        image.parent.mkdir(mode=0o755, exist_ok=True)
        publish.sweep(image.parent)
        replacement.finish(image)
        if check_space:
            space.require(image.parent, allocated if sparse else size + sum(snapshots.values()))
        with publish.temporary_directory(replacement.directory_of(image)) as prepared:
            new = prepared / replacement.IMAGE
            manifest = _receive(call, "image", new, size, sparse=sparse)
            crashpoints.reach("save.received")
            if snapshots:
                directory = prepared / replacement.SNAPSHOTS
                directory.mkdir(mode=0o755)
                for name, length in snapshots.items():
                    _receive(call, name, directory / name, length, sparse=sparse)
                publish.sync_dir(directory)
            call.ask("wanted")
            version = Version.of(new.stat())
            replacement.decide(prepared, image, has_snapshots=bool(snapshots))
        if returned_from:
            note = json.dumps(returned_from).encode("ascii") + b"\n"
            publish.write_file(companions.returned(image), note)
        with contextlib.suppress(OSError):
            kept = origin.Origin(image)
            if kept.version == version:
                kept.keep(manifest)
    except OSError as error:
        raise from_os_error(_STEP, error, where=path) from error


def returned_by(call: Call, *, path: str, base: str) -> dict[str, Any]:
    """The disk whose return was the last change of an image; nothing when it was another one.

    It tells a repeated epilog, whose VM directory is gone already, that all is well (trap 22).
    """
    note = companions.returned(paths.inside(path, base, step=_STEP))
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(note.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


class _Complete:
    """Makes complete files of what belongs to ``disk``."""

    def __init__(
        self, call: Call, disk: Path, image_format: str, check_space: bool, timeout: float
    ) -> None:
        self._call, self._disk, self._format = call, disk, image_format
        self._check_space, self._timeout = check_space, timeout

    def of(self, file: Path) -> Path:
        """``file`` itself when it is complete, else all of its chain in a temporary."""
        found = self.layers(file)
        if len(found) == 1 and found[0].image_format == self._format:
            return found[0].path
        self.require_space(found)
        target = self.temporary()
        chain.flatten(found, target, self._format, step="flatten disk", timeout=self._timeout)
        crashpoints.reach("save.flattened")
        return target

    def layers(self, file: Path) -> list[chain.Layer]:
        within = self._disk.parent.parent.parent
        return chain.layers(file, self._format, within=within, step=_STEP)

    def require_space(self, found: list[chain.Layer]) -> None:
        """Raise :class:`NoSpace` unless there is room for a flat copy."""
        if self._check_space:
            space.require(self._disk.parent, chain.allocated(found))

    def temporary(self) -> Path:
        temporary: publish.Temporary = self._call.keep(publish.Temporary(self._disk))
        return temporary.path


def _snapshots(disk: Path) -> Iterator[Path]:
    directory = vm_directory.snapshots_path(disk)
    if directory.is_dir():
        for file in sorted(directory.iterdir()):
            if vm_directory.is_snapshot(file.name):
                yield file


def _facts(file: Path) -> dict[str, Any]:
    return {"path": str(file), "size": file.stat().st_size}


def _receive(call: Call, item: str, final: Path, size: int, *, sparse: bool) -> Manifest:
    """Have the front-end bring ``item`` into the private file ``final``, durably."""
    with (
        publish.Temporary(final) as temporary,
        publish.Temporary(companions.manifest(final)) as noted,
    ):
        answer = call.ask(
            "content", item=item, temporary=str(temporary.path), manifest=str(noted.path)
        )
        with transfer.claimed(temporary.path, answer["written"], _PATIENCE):
            temporary.renew()
        try:
            manifest = Manifest(size, noted.path.read_bytes())
        except ValueError:
            manifest = Manifest(0)
        if temporary.path.stat().st_size != size or manifest.digest() != answer["digest"]:
            raise TransferFailed("receive", "it is not all there", path=str(final))
        if not sparse:
            with temporary.path.open("r+b") as file:
                extents.allocate(file.fileno(), size)
        temporary.publish(mode=0o660)
    return manifest
