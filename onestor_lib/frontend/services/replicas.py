"""All replica hosts there are: what is removed for good leaves their caches, too.

As well as it can be done: what a replica keeps that cannot be asked just now is evicted there when
room is needed, or as an orphan.
"""

from __future__ import annotations

import copy
from typing import Any

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, boundary, config, oned, parallel
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import systems
from onestor_lib.frontend.services.hosts import Hosts


def known(request: Request) -> list[str]:
    """REPLICA_HOST of every system datastore and of onestorrc; what cannot be read is left out."""
    words = []
    try:
        words += config.load("tm", boundary.remotes_directory()).words("REPLICA_HOST")
        for datastore in oned.Client().datastores().all("DATASTORE"):
            if systems.is_system(datastore):
                words += datastore.text("TEMPLATE/REPLICA_HOST").split()
    except OnestorError as error:
        request.log.warn(f"replicas may keep the image: {error}")
    found = []
    for word in dict.fromkeys(words):
        try:
            found.append(arguments.host(word))
        except OnestorError as error:
            request.log.warn(f"REPLICA_HOST: {error}")
    return found


def drop(request: Request, path: str, *, origin: str = "") -> None:
    """Let all replicas forget the image ``path``; trouble is a warning and never an error.

    The machine the image lay on, ``origin`` ("" for this one), has done so already. All are asked
    at once, and none is waited for longer than CONNECT_TIMEOUT.
    """
    here = Hosts(request.settings, request.log)
    names = [
        host
        for host in known(request)
        if host != origin and not (here.is_here(host) and not origin)
    ]
    for host, warning in ask(request, request.settings, names, "cache.drop", path=path).items():
        request.log.warn(f"{host} may keep {path}: {warning}")


def ask(
    request: Request, settings: Settings, names: list[str], operation: str, **facts: Any
) -> dict[str, str]:
    """Have one operation done on all hosts ``names`` at once; why it was not, by host.

    None is waited for longer than CONNECT_TIMEOUT.
    """
    logs = {host: copy.copy(request.log) for host in names}

    def work(host: str) -> None:
        with Hosts(settings, logs[host]).agent(host) as agent:
            agent.call(operation, **facts)

    patience = request.settings.seconds("CONNECT_TIMEOUT")
    _, failed = parallel.ask(names, work, at_once=len(names), within=patience)
    for log in logs.values():
        log.be_quiet()  # nothing may come behind the last line for oned
    return {host: str(error) for host, error in failed.items()}
