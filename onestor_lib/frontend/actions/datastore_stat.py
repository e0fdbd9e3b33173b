"""datastore stat: the size an image will have, in MB, before it is registered (section 1.3)."""

from __future__ import annotations

from onestor_lib.agent.space import MB
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images, sources
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """Answers the size a guest will see, in MB, rounded up (known failure H11)."""
    message = request.message()
    settings = images.settings(message, request.settings)
    hosts = Hosts(settings, request.log)
    content = sources.describe(message.required("IMAGE/PATH"), settings, hosts, step="stat")
    with hosts.local_agent() as here:
        size = here.call(
            "image.measure",
            source=content,
            inspect=images.is_disk_image(message),
            decompress=images.decompresses(message, settings),
            told=images.told_size(message),
            timeout=settings.seconds("STAT_TIMEOUT"),
        )["size"]
    return str(-(-size // MB))
