"""Copying the disk of a VM that runs: consistent, bounded, and the guest goes on in any case.

Three ways, each when the one before has failed: the hypervisor copies the disk while the guest
works; the guest's agent freezes its file systems while the topmost file of the disk is copied; the
guest stands still for that time. The last two have a limit each, and what was stopped goes on
whatever happens (known failures E7 and E8).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent import chain, process, publish, qemu_img
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import CommandFailed, OnestorError
from onestor_lib.agent.virsh import Domain

_STEP = "copy the running disk"


def copy(
    call: Dialogue,
    layers: list[chain.Layer],
    target: Path,
    image_format: str,
    *,
    timeout: float,
    bytes_needed: int,
    domain: str,
    uri: str,
    stall: float,
    patience: float,
    freeze_limit: float,
    suspend_limit: float,
    bytes_per_second: int,
) -> None:
    """Write what the guest of ``domain`` sees on the disk of ``layers`` to the file ``target``.

    ``patience`` is how long another block job is waited for, ``freeze_limit`` and
    ``suspend_limit`` how long the guest may stand still, all in seconds; ``timeout`` is that of
    qemu-img. Raises the failure of the last way, with those of the others.
    """
    found = Domain(domain, uri)
    disk = layers[0].path
    found.settle(disk, patience=patience, step=_STEP)
    failures = []
    try:
        _prepare(target, layers[0], image_format)
        found.copy_disk(
            disk, target, image_format, stall=stall, bytes_per_second=bytes_per_second,
            on_progress=call.progress, at_end=found.frozen(),
        )  # fmt: skip
        return
    except OnestorError as error:
        failures.append(str(error))
    for stopped, limit in ((_must_freeze(found), freeze_limit), (found.suspended(), suspend_limit)):
        try:
            _copy_stopped(stopped, limit, layers, target, image_format, timeout)
            call.log("WARN", f"{'; '.join(failures)}; saved another way")
            return
        except OnestorError as error:
            failures.append(str(error))
    raise CommandFailed(_STEP, "; ".join(failures), path=str(disk))


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
        argv = ["cp", "--reflink=auto", "--sparse=always", str(top.path), str(still.path)]
        with stopped:
            process.run(argv, timeout=limit, step=_STEP).check(_STEP, path=str(top.path))
        found = [chain.Layer(still.path, top.image_format), *layers[1:]]
        os.truncate(target, 0)
        chain.flatten(found, target, image_format, step=_STEP, timeout=timeout)


@contextlib.contextmanager
def _must_freeze(domain: Domain) -> Iterator[None]:
    with domain.frozen() as froze:
        if not froze:
            raise CommandFailed("freeze the guest", "its agent does not answer")
        yield


def _prepare(target: Path, top: chain.Layer, image_format: str) -> None:
    """What the hypervisor copies into: it is told to use a file that is ours."""
    size = chain.virtual_size(top.path, top.image_format, step=_STEP)
    if image_format == "raw":
        os.truncate(target, size)
    else:
        qemu_img.create(target, image_format, size, step=_STEP)
