"""How a disk is made up: the layout that is ours, and those of others."""

from __future__ import annotations

import os
from pathlib import Path

from onestor_lib.agent import chain, vm_directory
from onestor_lib.agent.errors import NotAllowed

PLAIN, THIN, RECOVERY, CHAIN = "plain", "thin", "recovery layout", "chain"


def is_own(disk: Path, layers: list[chain.Layer], image_format: str, *, step: str) -> bool:
    """Whether a copy of the topmost file is enough to have the disk, or a snapshot of it, again.

    So it is of a complete file, and of an overlay on the base that lies beside ``disk``.
    """
    name = chain.backing_name(layers[0].path, image_format, step=step)
    base = vm_directory.base_path(disk)
    on_base = len(layers) > 1 and layers[1].path == Path(os.path.realpath(base))
    return len(layers) == 1 or (on_base and name == base.name)


def kind(disk: Path, image_format: str, *, step: str) -> str:
    """Which of the layouts that the actions understand a disk has (contract section 6.1).

    Raises :class:`Missing`, :class:`NotAllowed` and :class:`InvalidInput` for any other, and
    ``OSError``.
    """
    layers = chain.layers(disk, image_format, within=disk.parent, step=step)
    if not disk.is_symlink():
        if not is_own(disk, layers, image_format, step=step):
            cause = f"it lies on {layers[1].path}, as no driver makes a disk"
            raise NotAllowed(step, cause, path=str(disk))
        return PLAIN if len(layers) == 1 else THIN
    require_within(disk, layers, step=step)
    is_recovery = [layer.path.name for layer in layers] == ["base.1", "base"]
    return RECOVERY if is_recovery else CHAIN


def require_within(disk: Path, layers: list[chain.Layer], *, step: str) -> None:
    """Raise :class:`NotAllowed` when a disk that is a link is not made of its snapshots' files.

    What it leads to may be an image that is written to in its place, of another driver's; and a
    live migration would not bring it.
    """
    snapshots = os.path.realpath(vm_directory.snapshots_path(disk))
    for layer in layers:
        if os.path.dirname(layer.path) != snapshots:
            cause = f"it is a link, and {layer.path} is not in the directory of its snapshots"
            raise NotAllowed(step, cause, path=str(disk))
