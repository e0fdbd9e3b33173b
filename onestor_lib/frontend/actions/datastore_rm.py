"""datastore rm: remove an image with all that belongs to it (contract section 1.3)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.images import require_no_bridge


def run(request: Request) -> None:
    """A missing file is removed already: that is success, with a warning (known failure H8)."""
    message = request.message()
    require_no_bridge(message)
    source = arguments.checked_path(message.required("IMAGE/SOURCE"))
    base = arguments.checked_path(message.base_path)
    with Hosts(request.settings, request.log).local_agent() as here:
        removed = here.call("image.remove", path=source, base=base)["removed"]
    if removed:
        request.log.info(f"{source} removed")
    else:
        request.log.warn(f"{source} was not there")
