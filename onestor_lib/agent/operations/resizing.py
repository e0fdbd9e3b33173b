"""Making the disk of a VM larger that does not run."""

from __future__ import annotations

from pathlib import Path

from onestor_lib.agent import chain, publish, qemu_img, space, vm_directory
from onestor_lib.agent.errors import OnestorError, from_os_error
from onestor_lib.agent.server import Call

_STEP = "resize disk"


def resize(
    call: Call,
    *,
    path: str,
    image_format: str,
    size: int,
    sparse: bool,
    check_space: bool,
    lock_timeout: float,
) -> dict[str, bool]:
    """Give the guest ``size`` bytes; a disk that has as many or more stays as it is.

    ``sparse`` False gives the new part its blocks at once (known failure C4).
    """
    disk = Path(path)
    with vm_directory.lock(disk, purpose=_STEP, timeout=lock_timeout):
        return {"grown": _grow(disk, image_format, size, sparse=sparse, check_space=check_space)}


def _grow(disk: Path, image_format: str, size: int, *, sparse: bool, check_space: bool) -> bool:
    within = disk.parent.parent.parent
    file = chain.layers(disk, image_format, within=within, step=_STEP)[0].path
    before = chain.virtual_size(file, image_format, step=_STEP)
    if before >= size:
        return False
    if check_space and not sparse:
        space.require(file.parent, size - before)
    qemu_img.grow(file, image_format, size, allocate=not sparse, step=_STEP)
    try:
        publish.sync_file(file)  # qemu-img resize passes over an error of its own last flush
    except OSError as error:
        raise from_os_error(_STEP, error, where=file) from error
    after = chain.virtual_size(file, image_format, step=_STEP)
    if after != size:
        raise OnestorError(_STEP, f"it has {after} bytes instead of {size}", path=str(disk))
    return True
