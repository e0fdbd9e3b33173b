"""The marker that tells a host's probe whose a system datastore's directory is.

Clones write it, so a host without VMs has none, and one that has it keeps it when the datastore
gets another driver. The timer's pass looks after that: on hosts and for datastores that are new to
it, and on each host once in a while (known failures I3, I4; contract section 4.1).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, oned, parallel, state, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import systems, tombstones
from onestor_lib.frontend.services.hosts import Hosts

_KIND = "markers"
_PATIENCE = 15.0  # seconds
_OFTEN, _AGAIN = 3600.0, 300.0  # seconds until a host is looked at again, and a silent one


def sweep(request: Request) -> None:
    """Give each host that is due the markers it should have; nothing of this is an error."""
    noted = {str(facts.get("host")): facts for _, facts in state.every(_KIND)}
    try:
        wanted = _wanted(set(noted))
    except OnestorError as error:
        request.log.warn(f"markers are not looked at: {error}")
        return
    due = [host for host, markers in wanted.items() if _is_due(noted.get(host, {}), markers)]

    def mark(host: str) -> None:
        with Hosts(request.settings, request.log, patience=_PATIENCE).agent(host) as agent:
            agent.call("datastore.mark", markers=wanted[host])

    _, failed = parallel.ask(due, mark)
    for host in due:
        if host in failed:
            request.log.line("DEBUG", f"the markers of {host} are looked at later: {failed[host]}")
        facts = {"host": host, "at": time.time(), "good": host not in failed}
        with contextlib.suppress(OSError):
            state.write(f"{_KIND}/{host}", {**facts, "markers": wanted[host]})
    for host in set(noted) - set(wanted):
        state.remove(f"{_KIND}/{host}")


def _wanted(known: set[str]) -> dict[str, dict[str, str]]:
    """By host the content of each marker by directory: "" where ours must not stay.

    Of hosts in clusters without any datastore of ours only those ``known`` are looked at: they had
    one.
    """
    client = oned.Client()
    datastores = [each for each in client.datastores().all("DATASTORE") if systems.is_system(each)]
    found: dict[str, dict[str, str]] = {}
    for host in client.hosts().all("HOST"):
        name, cluster = host.text("NAME"), host.text("CLUSTER_ID")
        here = [
            each
            for each in datastores
            if cluster in {number.text(".") for number in each.all("CLUSTERS/ID")}
        ]
        if host.text("STATE") in tombstones.GIVEN_UP or not here:
            continue
        if not any(map(systems.is_ours, here)) and name not in known:
            continue
        with contextlib.suppress(OnestorError):  # what oned says of others is theirs
            found[arguments.host(name)] = {
                arguments.checked_path(each.text("BASE_PATH")): _content(each) for each in here
            }
    return found


def _content(datastore: xml.Element) -> str:
    """The driver whose probe looks at the disks there; none where all hosts see the same ones."""
    if systems.is_ours(datastore):
        return DRIVER
    is_shared = datastore.text("TEMPLATE/SHARED").upper() != "NO"
    return "" if is_shared else datastore.text("TM_MAD")


def _is_due(noted: dict[str, Any], markers: dict[str, str]) -> bool:
    try:
        age = time.time() - float(noted["at"])
        rest = _OFTEN if noted["good"] else _AGAIN
        return noted["markers"] != markers or not 0 <= age < rest
    except (KeyError, TypeError, ValueError):
        return True
