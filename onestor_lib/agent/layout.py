"""How a disk is made up: the layout that is ours, and those of others."""

from __future__ import annotations

import os
from pathlib import Path

from onestor_lib.agent import chain, vm_directory


def is_own(disk: Path, layers: list[chain.Layer], image_format: str, *, step: str) -> bool:
    """Whether a copy of the topmost file is enough to have the disk, or a snapshot of it, again.

    So it is of a complete file, and of an overlay on the base that lies beside ``disk``.
    """
    name = chain.backing_name(layers[0].path, image_format, step=step)
    base = vm_directory.base_path(disk)
    on_base = len(layers) > 1 and layers[1].path == Path(os.path.realpath(base))
    return len(layers) == 1 or (on_base and name == base.name)
