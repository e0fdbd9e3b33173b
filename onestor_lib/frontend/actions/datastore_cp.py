"""datastore cp: take a file into the image datastore as a new image (contract section 1.3)."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from onestor_lib.agent.errors import Missing, OnedUnavailable, Superseded
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """Answers ``SOURCE FORMAT``."""
    begin = time.monotonic()
    message = request.message()
    images.require_no_bridge(message)
    settings = images.settings(message, request.settings)
    image_id = arguments.number(message.required("IMAGE/ID"), "IMAGE/ID")
    path = images.local_path(message.required("IMAGE/PATH"), "copy image")
    base = message.base_path
    # Whole names of "-", a to f and digits are what OpenNebula's probe counts as images.
    unique = f"{time.time_ns()}:{image_id}".encode("ascii")
    name = hashlib.md5(unique, usedforsecurity=False).hexdigest()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        _require_wanted(request, image_id)
        return {}

    with Hosts(request.settings, request.log).local_agent() as here:
        found = here.call(
            "image.import",
            on_ask=answer,
            path=path,
            rules=images.rules(settings),
            base=arguments.checked_path(base),
            name=name,
            inspect=images.is_disk_image(message),
            wanted_format=images.wanted_format(message, settings),
            digests=images.digests(message),
            sparse=settings.yes("SPARSE"),
            check_space=settings.yes("CHECK_FREE_SPACE"),
            convert_timeout=settings.seconds("CONVERT_TIMEOUT"),
        )
    seconds = time.monotonic() - begin
    request.log.info(f"image {image_id} from {path}: {found['format']}, {seconds:.2f} s")
    return f"{base}/{name} {found['format']}"


def _require_wanted(request: Request, image_id: int) -> None:
    """Raise :class:`Superseded` when the image was deleted meanwhile (known failure H6)."""
    try:
        oned.Client().image(image_id)
    except Missing as error:
        raise Superseded("copy image", f"image {image_id} was deleted meanwhile") from error
    except OnedUnavailable as error:
        request.log.warn(f"{error}; the image is kept")
