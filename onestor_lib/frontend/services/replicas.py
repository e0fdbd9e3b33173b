"""All replica hosts there are: what is removed for good leaves their caches, too.

As well as it can be done: what a replica keeps that cannot be asked just now is evicted there when
room is needed, or as an orphan.
"""

from __future__ import annotations

import copy
import threading
import time

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, boundary, config, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.hosts import Hosts

_SYSTEM_DATASTORE = "1"


def known(request: Request) -> list[str]:
    """REPLICA_HOST of every system datastore and of onestorrc; what cannot be read is left out."""
    words = []
    try:
        words += config.load("tm", boundary.remotes_directory()).words("REPLICA_HOST")
        for datastore in oned.Client().datastores().all("DATASTORE"):
            if datastore.text("TYPE") == _SYSTEM_DATASTORE:
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
    asked = [
        _Asked(request, host, path)
        for host in known(request)
        if host != origin and not (here.is_here(host) and not origin)
    ]
    deadline = time.monotonic() + request.settings.seconds("CONNECT_TIMEOUT")
    for each in asked:
        each.join(max(0.0, deadline - time.monotonic()))
        each.log.be_quiet()  # nothing may come behind the last line for oned
        if warning := each.warning:
            request.log.warn(f"{each.host} may keep {path}: {warning}")


class _Asked(threading.Thread):
    """One replica that is asked; a thread of its own, with connections nobody shares."""

    def __init__(self, request: Request, host: str, path: str) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.warning = "no answer in time"
        self._request, self._path = request, path
        self.log = copy.copy(request.log)
        self.start()

    def run(self) -> None:
        try:
            with Hosts(self._request.settings, self.log).agent(self.host) as agent:
                agent.call("cache.drop", path=self._path)
            self.warning = ""
        except Exception as error:  # noqa: BLE001 - a thread's traceback would go to oned
            self.warning = str(error)
