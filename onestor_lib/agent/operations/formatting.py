"""Empty images in an image datastore."""

from __future__ import annotations

import contextlib
from pathlib import Path

from onestor_lib.agent import blank, mounts, publish, space
from onestor_lib.agent.errors import from_os_error
from onestor_lib.agent.server import Call
from onestor_lib.agent.space import MB

_STEP = "make image"


def make(
    call: Call,
    *,
    base: str,
    name: str,
    size: int,
    image_format: str,
    filesystem: str,
    options: list[str],
    sparse: bool,
    check_space: bool,
    timeout: float,
    require_mount: bool,
) -> None:
    """Make the image ``name`` of ``size`` MB in the image datastore ``base``.

    ``filesystem`` is "" for none, "swap", or one that mkfs makes with ``options``. The front-end
    is asked at the end whether the image is ``wanted`` still (known failure H6).
    """
    directory, bytes_wanted = Path(base), size * MB
    mounts.require(base, required=require_mount, step=_STEP)
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        publish.sweep(directory)
        if check_space and not sparse:
            space.require(directory, bytes_wanted)
        with contextlib.ExitStack() as stack:
            final = blank.make(
                directory / name, size=bytes_wanted, image_format=image_format,
                filesystem=filesystem, options=options, sparse=sparse,
                timeout=timeout, stack=stack,
            )  # fmt: skip
            call.ask("wanted")
            final.publish(mode=0o660)
    except OSError as error:
        raise from_os_error(_STEP, error, where=base) from error
