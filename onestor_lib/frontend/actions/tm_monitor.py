"""tm monitor: space of a system datastore and of its VMs' disks, seen from the front-end.

oned calls it only for system datastores with SHARED=YES (contract sections 1.6 and 4.3).
"""

from __future__ import annotations

from onestor_lib.agent import usage
from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """``monitor`` with the datastore message; answers KEY=VALUE lines and a line for each VM."""
    message = request.message()
    path = arguments.checked_path(message.base_path)
    wants_disks = message.text("MONITOR_VM_DISKS", "1").upper() not in ("0", "NO", "FALSE")
    settings = request.settings.over(
        "system", lambda name: message.text(f"DATASTORE/TEMPLATE/{name}"), "the system datastore"
    )
    with Hosts(request.settings, request.log).local_agent() as here:
        figures = here.call("usage.capacity", path=path)
        if settings.yes("MONITOR_ALLOCATED"):
            figures |= here.call("usage.promised", path=path, is_system=True)
        lines = [usage.capacity_text(figures)]
        if wants_disks:
            lines += here.call("usage.disks", path=path)
    return "\n".join(lines)
