"""datastore stat: the size an image will have, in MB, before it is registered (section 1.3)."""

from __future__ import annotations

from onestor_lib.agent.space import MB
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """Answers the size a guest will see, in MB, rounded up (known failure H11)."""
    message = request.message()
    images.require_no_bridge(message)
    settings = images.settings(message, request.settings)
    path = images.local_path(message.required("IMAGE/PATH"), "stat")
    with Hosts(request.settings, request.log).local_agent() as here:
        size = here.call(
            "image.measure",
            path=path,
            rules=images.rules(settings),
            inspect=images.is_disk_image(message),
        )["size"]
    return str(-(-size // MB))
