"""datastore rm: remove an image with all that belongs to it (contract section 1.3)."""

from __future__ import annotations

from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images, replicas
from onestor_lib.frontend.services.datastore import Datastore
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> None:
    """A missing file is removed already: that is success, with a warning (known failure H8)."""
    message = request.message()
    settings = images.settings(message, request.settings)
    datastore = Datastore(message, settings, Hosts(request.settings, request.log))
    source = arguments.checked_path(message.required("IMAGE/SOURCE"))
    with datastore.agent() as store:
        removed = store.call(
            "image.remove",
            path=source,
            base=datastore.base,
            require_mount=settings.yes("REQUIRE_MOUNT"),
        )["removed"]
    if removed:
        request.log.info(f"{source} removed")
    else:
        request.log.warn(f"{source} was not there")
    replicas.drop(request, source, origin=datastore.bridge)
