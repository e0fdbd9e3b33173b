"""datastore monitor: used, total and free space of an image datastore (contract section 1.3)."""

from __future__ import annotations

from onestor_lib.agent import usage
from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.images import require_no_bridge


def run(request: Request) -> str:
    """Answers three KEY=VALUE lines."""
    message = request.message()
    require_no_bridge(message)
    path = arguments.checked_path(message.base_path)
    with Hosts(request.settings, request.log).local_agent() as here:
        return usage.capacity_text(here.call("usage.capacity", path=path))
