"""Making the disk of a VM larger that does not run."""

from __future__ import annotations

from pathlib import Path

from onestor_lib.agent import chain, qemu_img, space
from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.server import Call

_STEP = "resize disk"


def resize(
    call: Call, *, path: str, image_format: str, size: int, sparse: bool, check_space: bool
) -> dict[str, bool]:
    """Give the guest ``size`` bytes; a disk that has as many or more stays as it is.

    ``sparse`` False gives the new part its blocks at once (known failure C4).
    """
    disk = Path(path)
    within = disk.parent.parent.parent
    file = chain.layers(disk, image_format, within=within, step=_STEP)[0].path
    before = chain.virtual_size(file, image_format, step=_STEP)
    if before >= size:
        return {"grown": False}
    if check_space and not sparse:
        space.require(file.parent, size - before)
    qemu_img.grow(file, image_format, size, allocate=not sparse, step=_STEP)
    after = chain.virtual_size(file, image_format, step=_STEP)
    if after != size:
        raise OnestorError(_STEP, f"it has {after} bytes instead of {size}", path=path)
    return {"grown": True}
