"""datastore monitor: used, total and free space of an image datastore (contract section 1.3)."""

from __future__ import annotations

from onestor_lib.agent import usage
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images
from onestor_lib.frontend.services.datastore import Datastore
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """Answers three KEY=VALUE lines, four with MONITOR_ALLOCATED (known failure I8)."""
    message = request.message()
    settings = images.settings(message, request.settings)
    datastore = Datastore(message, settings, Hosts(request.settings, request.log))
    with datastore.agent() as store:
        figures = store.call(
            "usage.capacity",
            path=datastore.base,
            require_mount=settings.yes("REQUIRE_MOUNT"),
        )
        if settings.yes("MONITOR_ALLOCATED"):
            figures |= store.call("usage.promised", path=datastore.base, is_system=False)
    return usage.capacity_text(figures)
