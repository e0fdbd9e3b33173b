"""Copying the disk of a VM that runs: consistent, bounded, and the guest goes on in any case.

Four ways, each when the one before is not possible or has failed: a raw file shares its blocks with
the copy, where the file system can; the hypervisor copies the disk while the guest works; the
guest's agent freezes its file systems while the topmost file of the disk is copied; the guest
stands still for that time. The last two have a limit each, and what was stopped goes on whatever
happens (known failures E7 and E8).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent import chain, extents, process, publish, qemu_img, space
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import CommandFailed, OnestorError
from onestor_lib.agent.virsh import Domain, Stuck

_STEP = "copy the running disk"
_MARGIN = 1 << 20  # bytes that are free where nothing has failed for want of space


class Live(NamedTuple):
    """The running VM ``domain`` of the hypervisor at ``uri``, and what copying may take.

    ``stall`` is how long the hypervisor's copy may stand still, ``patience`` how long another block
    job is waited for, ``freeze_limit`` and ``suspend_limit`` how long the guest may stand still,
    all in seconds; ``bytes_per_second`` is 0 for no limit.
    """

    domain: str
    uri: str
    stall: float
    patience: float
    freeze_limit: float
    suspend_limit: float
    bytes_per_second: int


def copy(
    call: Dialogue,
    layers: list[chain.Layer],
    target: Path,
    image_format: str,
    live: Live,
    *,
    shallow: bool,
    timeout: float,
    options: Sequence[str] = (),
) -> None:
    """Write what the guest sees on the disk of ``layers`` to the existing file ``target``.

    A ``shallow`` copy has what the topmost file has, and the same backing file, whose name leads
    to it from where ``target`` is, too; it is made with the qcow2 ``options``. ``timeout``, in
    seconds, is that of qemu-img. Raises the failure of the last way, with those of the others.
    """
    domain = Domain(live.domain, live.uri)
    disk = layers[0].path
    _let_go_on(domain, disk)
    domain.settle(disk, patience=live.patience, step=_STEP)
    is_raw = image_format == "raw" and [layer.image_format for layer in layers] == ["raw"]
    if is_raw and _share(domain, disk, target, live):
        return
    failures = []
    try:
        _prepare(target, layers[0], image_format, options, shallow=shallow)
        domain.copy_disk(
            disk, target, image_format, shallow=shallow, stall=live.stall,
            bytes_per_second=live.bytes_per_second, on_progress=call.progress,
            at_end=domain.frozen(), at_most=live.freeze_limit,
        )  # fmt: skip
        # libvirt does not tell of a job that meets a full disk while it is being ended.
        space.require(target.parent, _MARGIN)
        return
    except Stuck:
        raise
    except OnestorError as error:
        failures.append(str(error))
    stopping = (
        (_must_freeze(domain), live.freeze_limit),
        (_standing_still(domain, disk), live.suspend_limit),
    )
    for stopped, limit in stopping:
        try:
            if shallow:
                _copy_file(stopped, limit, disk, target)
            else:
                _copy_stopped(stopped, limit, layers, target, image_format, timeout)
            call.log("WARN", f"{'; '.join(failures)}; copied another way")
            return
        except Stuck:
            raise
        except OnestorError as error:
            failures.append(str(error))
    raise CommandFailed(_STEP, "; ".join(failures), path=str(disk))


def _share(domain: Domain, disk: Path, target: Path, live: Live) -> bool:
    """Let ``target`` share all blocks of a raw file; the state at one moment (ioctl_ficlone(2)).

    All that the hypervisor has told its guest is written is in that file. False where that is not
    possible, or takes longer than a guest may be frozen.
    """
    if not extents.can_share(target.parent):
        return False
    argv = ["cp", "--reflink=always", str(disk), str(target)]
    publish.sync_file(disk)  # what is written meanwhile is all that has to be flushed then
    with domain.frozen() as froze:
        limit = live.freeze_limit if froze else live.stall
        done = process.run(argv, timeout=limit, step=_STEP)
    if not done.ok:
        os.truncate(target, 0)
    return done.ok


def _copy_stopped(
    stopped: contextlib.AbstractContextManager[object],
    limit: float,
    layers: list[chain.Layer],
    target: Path,
    image_format: str,
    timeout: float,
) -> None:
    """Copy the topmost file while the guest stands still; what lies below it never changes."""
    top = layers[0]
    with publish.Temporary(top.path) as still:
        _copy_file(stopped, limit, top.path, still.path)
        found = [chain.Layer(still.path, top.image_format), *layers[1:]]
        os.truncate(target, 0)
        chain.flatten(found, target, image_format, step=_STEP, timeout=timeout)


def _copy_file(
    stopped: contextlib.AbstractContextManager[object], limit: float, file: Path, target: Path
) -> None:
    argv = ["cp", "--reflink=auto", "--sparse=always", str(file), str(target)]
    with stopped:
        process.run(argv, timeout=limit, step=_STEP).check(_STEP, path=str(file))


@contextlib.contextmanager
def _standing_still(domain: Domain, disk: Path) -> Iterator[None]:
    """Suspend the guest, with a note for whoever comes next if we are killed meanwhile."""
    if domain.state() != "running":
        yield
        return
    publish.write_file(_note(disk), b"")
    try:
        with domain.suspended():
            yield
    finally:
        if domain.state() == "running":
            publish.remove(_note(disk))


def _let_go_on(domain: Domain, disk: Path) -> None:
    """Resume a guest that an action has suspended which is dead: we have the disk's lock."""
    if _note(disk).exists():
        if domain.state() == "paused":
            domain.resume()
        publish.remove(_note(disk))


def _note(disk: Path) -> Path:
    return disk.parent / f".{disk.name}.suspended"


@contextlib.contextmanager
def _must_freeze(domain: Domain) -> Iterator[None]:
    with domain.frozen() as froze:
        if not froze:
            raise CommandFailed("freeze the guest", "its agent does not answer")
        yield


def _prepare(
    target: Path, top: chain.Layer, image_format: str, options: Sequence[str], *, shallow: bool
) -> None:
    """What the hypervisor copies into: it is told to use a file that is ours."""
    size = chain.virtual_size(top.path, top.image_format, step=_STEP)
    backing = chain.backing_name(top.path, top.image_format, step=_STEP) if shallow else ""
    if backing:
        qemu_img.create_overlay(target, backing, size, options, step=_STEP)
    elif image_format == "raw":
        os.truncate(target, size)
    else:
        qemu_img.create(target, image_format, size, step=_STEP, options=options)
