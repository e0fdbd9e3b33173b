"""datastore cp: take a file into the image datastore as a new image (contract section 1.3)."""

from __future__ import annotations

import time

from onestor_lib.agent.space import MB
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images, sources
from onestor_lib.frontend.services.datastore import Datastore, NewImage
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "copy image"


def run(request: Request) -> str:
    """Answers ``SOURCE FORMAT``."""
    begin = time.monotonic()
    message = request.message()
    settings = images.settings(message, request.settings)
    hosts = Hosts(settings, request.log)
    digests = images.digests(message)
    content = sources.describe(message.required("IMAGE/PATH"), settings, hosts, step=_STEP)
    content["digested"] = bool(digests)
    datastore = Datastore(message, settings, hosts)
    image = NewImage(datastore, hosts, step=_STEP)
    made = image.make(
        hosts.local_agent(),
        content,
        asked=images.asked(message, settings, digests=digests, step=_STEP),
        inspect=images.is_disk_image(message),
        known_format="",
        wanted_format=images.wanted_format(message, settings),
        display=content["name"],
    )
    request.log.info(
        f"image {datastore.image_id} from {content['name']}: {made['format']},"
        f" {made['size'] / MB:.0f} MB, {time.monotonic() - begin:.2f} s"
    )
    return f"{image.source} {made['format']}"
