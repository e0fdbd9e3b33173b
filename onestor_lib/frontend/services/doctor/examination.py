"""The whole examination: ask, judge, and put the findings in an order for people."""

from __future__ import annotations

from onestor_lib.agent.errors import InvalidInput, OnestorError
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import recovery
from onestor_lib.frontend.services.doctor import asking, datastores, frontend, hosts
from onestor_lib.frontend.services.doctor.findings import ERROR, OK, WARNING, Finding, bad
from onestor_lib.frontend.services.fleet import Fleet

_ORDER = {ERROR: 0, WARNING: 1, OK: 2}


def run(request: Request) -> list[Finding]:
    """All findings, the worst first."""
    try:
        fleet = Fleet(request)
    except OnestorError as error:
        mend = "systemctl status opennebula, and look at ~oneadmin/.one/one_auth"
        return [bad(frontend.HERE, "oned", str(error), mend)]
    try:
        for machine in fleet.machines:
            asking.uri(machine)
    except InvalidInput as error:
        return [bad(frontend.HERE, "attributes", str(error), "edit onestorrc")]
    answers = asking.ask(request, fleet)
    asks = any(
        recovery.asks(disk)
        for vm in fleet.client.vms().all("VM")
        for disk in vm.all("TEMPLATE/DISK")
    )
    found = [
        *frontend.judge(answers, asks_for_copies=asks),
        *datastores.judge(fleet),
        *hosts.judge(fleet, answers),
    ]
    return sorted(found, key=lambda each: _ORDER[each.level])
