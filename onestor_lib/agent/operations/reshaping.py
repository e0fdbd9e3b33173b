"""What a disk is made of, and changing that: a file of its own, or an overlay on its image's base.

The VM must be off. The new file is compared with the disk before it takes its place, and until then
no program of qemu may open the disk for writing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    chain,
    crashpoints,
    layout,
    new_disk,
    priority,
    publish,
    qemu_img,
    space,
    vm_directory,
)
from onestor_lib.agent.cache import fill
from onestor_lib.agent.disk_files import DiskFiles, held
from onestor_lib.agent.errors import (
    CommandFailed,
    InvalidInput,
    NotAllowed,
    OnestorError,
    from_os_error,
)
from onestor_lib.agent.server import Call


def describe(call: Call, *, path: str, formats: dict[str, str]) -> list[dict[str, Any]]:
    """What the disks ``formats`` ("disk.0": "qcow2") of the VM directory are made of.

    Of each the files from the topmost on, with sizes in bytes; ``shared`` says how many other
    names the lowest has; ``own`` whether the layout is ours. A disk that cannot be read says why.
    """
    found = []
    for name, image_format in formats.items():
        try:
            found.append(_described(Path(path, name), image_format))
        except OnestorError as error:
            found.append({"disk": name, "error": str(error)})
        except OSError as error:
            found.append({"disk": name, "error": str(from_os_error("look at disk", error))})
    return found


def _described(disk: Path, image_format: str) -> dict[str, Any]:
    step = "look at disk"
    layers = chain.layers(disk, image_format, within=disk.parent.parent.parent, step=step)
    files = []
    for layer in layers:
        facts = layer.path.stat()
        files.append(
            {"path": str(layer.path), "format": layer.image_format, "bytes": facts.st_blocks * 512}
        )
    directory = vm_directory.snapshots_path(disk)
    snapshots: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for each in sorted(directory.iterdir()):
            if vm_directory.is_snapshot(each.name):
                snapshots[each.name] = each.stat().st_blocks * 512
    record = vm_directory.read_record(disk)
    base = record.get("base") if len(layers) > 1 else None
    return {
        "disk": disk.name,
        "error": "",
        "size": chain.virtual_size(layers[0].path, image_format, step=step),
        "files": files,
        "shared": layers[-1].path.stat().st_nlink - 1 if len(layers) > 1 else 0,
        "own": not disk.is_symlink() and layout.is_own(disk, layers, image_format, step=step),
        "base": str(base["digest"]) if isinstance(base, dict) else "",
        "snapshots": snapshots,
    }


def flatten(
    call: Call,
    *,
    path: str,
    image_format: str,
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Let a disk be one complete file; whether that was to be ``done``, and its ``bytes``.

    The front-end is asked whether it is ``wanted`` still before the disk is replaced.
    """
    with _off(call, path, image_format, "flatten disk", lock_timeout, bulk) as found:
        disk, layers, bitmaps = found
        done = len(layers) > 1 or disk.file.is_symlink()
        if done:
            if check_space:
                space.require(disk.file.parent, chain.allocated(layers))
            with publish.Temporary(disk.file) as temporary:
                chain.flatten(layers, temporary.path, image_format, step=disk.step, timeout=timeout)
                top = [chain.Layer(temporary.path, image_format)]
                _require_equal(disk, top, layers, timeout)
                crashpoints.reach("flatten.compared")
                call.ask("wanted")
                disk.warn_of_backups(bitmaps)
                disk.replace(temporary, layers)
                crashpoints.reach("flatten.replaced")
        record = vm_directory.read_record(disk.file)
        if record.pop("base", None):
            vm_directory.write_record(disk.file, record)
        disk.tidy()
        return {"done": done, "bytes": disk.file.stat().st_blocks * 512}


def thin(
    call: Call,
    *,
    path: str,
    image: dict[str, Any],
    qcow2_options: list[str],
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Let a complete qcow2 disk be an overlay on the cached ``image`` again; answers as flatten.

    The cache is filled first if need be (``content``, see ``disk.place``).
    """
    with contextlib.ExitStack() as stack:
        disk, layers, bitmaps = stack.enter_context(
            _off(call, path, "qcow2", "make disk thin", lock_timeout, bulk)
        )
        if len(layers) > 1:
            if disk.is_ours(layers) and not disk.file.is_symlink():
                return {"done": False, "bytes": chain.allocated(layers[:1])}
            cause = "it lies on other files than its base: flatten it first"
            raise NotAllowed(disk.step, cause, path=path)
        wanted = fill.Wanted.from_json(image)
        had = stack.enter_context(fill.held(call, wanted, wanted.path.parent.parent))
        base = _base(disk, had, stack, check_space)
        lowest = [chain.Layer(base.path, "qcow2")]
        if qemu_img.virtual_size(base.path, "qcow2", step=disk.step) > chain.virtual_size(
            layers[0].path, "qcow2", step=disk.step
        ):
            raise InvalidInput(disk.step, "the image is larger than the disk", path=path)
        if check_space:
            space.require(disk.file.parent, chain.allocated(layers))
        temporary = stack.enter_context(publish.Temporary(disk.file))
        qemu_img.create_difference(
            temporary.path, layers[0].path, base.path, qcow2_options,
            timeout=timeout, step=disk.step,
        )  # fmt: skip
        top = [chain.Layer(temporary.path, "qcow2"), *lowest]
        _require_equal(disk, top, layers, timeout)
        final = vm_directory.base_path(disk.file)
        qemu_img.rename_backing(temporary.path, final.name, step=disk.step)
        crashpoints.reach("thin.compared")
        call.ask("wanted")
        record = vm_directory.read_record(disk.file)
        record["base"] = {"image": str(had.entry.path), "digest": had.record.digest}
        vm_directory.write_record(disk.file, record)
        base.publish(mode=0o444, replace=os.path.lexists(final))
        crashpoints.reach("thin.based")
        disk.warn_of_backups(bitmaps)
        disk.replace(temporary, layers)
        disk.tidy()
        return {"done": True, "bytes": disk.file.stat().st_blocks * 512}


@contextlib.contextmanager
def _off(
    call: Call, path: str, image_format: str, step: str, lock_timeout: float, bulk: dict[str, Any]
) -> Iterator[tuple[DiskFiles, list[chain.Layer], list[str]]]:
    """The disk of a VM that is off and stays so: nobody opens it for writing meanwhile.

    With its layers, and its bitmaps, which are lost when it is replaced.
    """
    with held(call, path, image_format, step, lock_timeout) as disk:
        priority.lower(**bulk)
        layers = disk.layers(disk.file)
        if disk.file.is_symlink():
            layout.require_within(disk.file, layers, step=step)
        for layer in layers:
            if chain.internal_snapshots(*layer, step=step):
                cause = "it has internal snapshots, which would be lost"
                raise NotAllowed(step, cause, path=str(layer.path))
        with qemu_img.barred(layers[0].path, step=step):
            yield disk, layers, disk.require_unused()


def _base(
    disk: DiskFiles, had: fill.Had, stack: contextlib.ExitStack, check_space: bool
) -> publish.Temporary:
    """The cached image beside the disk, where no snapshot needs another base than that."""
    final = vm_directory.base_path(disk.file)
    is_other = os.path.lexists(final) and not os.path.samefile(final, had.entry.image)
    if is_other and (users := disk.users(final)):
        cause = f"{', '.join(map(str, users))} cannot be read without what is there"
        raise NotAllowed(disk.step, cause, path=str(final))
    return new_disk.take_base(had.entry.image, disk.file, stack, check_space=check_space)


def _require_equal(
    disk: DiskFiles, new: list[chain.Layer], old: list[chain.Layer], timeout: float
) -> None:
    """Raise :class:`CommandFailed` unless a guest sees the same, of the same size."""
    qemu_img.require_equal(new, old, timeout=timeout, step=disk.step)
    sizes = [
        chain.virtual_size(each[0].path, each[0].image_format, step=disk.step)
        for each in (new, old)
    ]
    if sizes[0] != sizes[1]:
        cause = f"it would have {sizes[0]} bytes instead of {sizes[1]}"
        raise CommandFailed(disk.step, cause, path=str(disk.file))
