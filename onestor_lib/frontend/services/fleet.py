"""The machines that have something of ours: the hosts of onestor's datastores, and the replicas.

For commands that look at all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from onestor_lib.agent.errors import InvalidInput, OnestorError
from onestor_lib.frontend import arguments, oned, parallel, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import systems
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts
from onestor_lib.frontend.services.supply import storage_address

REPLICA, HOST = "replica", "host"  # tiers of the cache
_OFFLINE = "8"  # a state of a host: nobody expects an answer of it

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """A host as oned knows it, or a replica that oned may not know."""

    name: str
    address: str  # where other hosts reach it for images (REPLICA_STORAGE_IP)
    cluster: str  # "" when oned does not know it
    tier: str
    settings: Settings  # with what the system datastore that it belongs to says
    wrong: str = ""  # what is not right about its template


class Fleet:
    """All machines; raises what asking oned does."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.client = oned.Client()
        datastores = self.client.datastores().all("DATASTORE")
        self.systems = systems.of_onestor(datastores)
        self.images = [
            each for each in datastores if systems.is_ours(each) and not systems.is_system(each)
        ]
        self.machines = self._machines()

    def settings_of(self, datastore: xml.Element) -> Settings:
        """The settings with what the template of a system datastore says."""
        return systems.settings_over(self._request.settings, datastore)

    def chosen(self, names: Iterable[str]) -> list[Machine]:
        """The machines of these names, all where there are none; raises :class:`InvalidInput`."""
        wanted = list(dict.fromkeys(names))
        unknown = sorted(set(wanted) - {machine.name for machine in self.machines})
        if unknown:
            cause = f"{', '.join(unknown)}: neither a host of onestor's datastores nor a replica"
            raise InvalidInput("choose hosts", cause)
        return [each for each in self.machines if not wanted or each.name in wanted]

    def in_cluster(self, cluster: str) -> list[Machine]:
        """The machines of a cluster by its id; raises :class:`InvalidInput` when it has none."""
        found = [machine for machine in self.machines if machine.cluster == cluster]
        if not found:
            raise InvalidInput("choose hosts", f"cluster {cluster} has no host of onestor's")
        return found

    def ways(self) -> dict[str, str]:
        """How other hosts reach machines, by their names and addresses, and which machine it is."""
        found = {}
        for machine in self.machines:
            found[machine.name] = machine.name
            found.setdefault(machine.address, machine.name)
        return found

    def hosts(self, machine: Machine, patience: float = PATIENCE) -> Hosts:
        """What connects to a machine; its own, so that threads share nothing."""
        return Hosts(machine.settings, copy.copy(self._request.log), patience=patience)

    def ask(
        self, machines: Iterable[Machine], question: Callable[[Machine], T]
    ) -> tuple[dict[str, T], dict[str, OnestorError]]:
        """Ask all at once: the answers by name, and why the others have none."""
        chosen = {machine.name: machine for machine in machines}
        return parallel.ask(list(chosen), lambda name: question(chosen[name]))

    def call(
        self, machine: Machine, operation: str, *, patience: float = PATIENCE, **facts: Any
    ) -> Any:
        """One operation on one machine."""
        with self.hosts(machine, patience).agent(machine.name) as agent:
            return agent.call(operation, **facts)

    def _machines(self) -> list[Machine]:
        clusters: dict[str, xml.Element] = {}
        replicas: dict[str, Settings] = {}
        for system in self.systems:
            for each in system.all("CLUSTERS/ID"):
                clusters.setdefault(each.text("."), system)
            settings = self.settings_of(system)
            for name in self._replicas_of(system, settings):
                replicas.setdefault(name, settings)
        found = {}
        for host in self.client.hosts().all("HOST"):
            name, cluster = host.text("NAME"), host.text("CLUSTER_ID")
            if host.text("STATE") == _OFFLINE:
                replicas.pop(name, None)
            elif cluster in clusters or name in replicas:
                settings = replicas.get(name) or self.settings_of(clusters[cluster])
                tier = REPLICA if name in replicas else HOST
                try:
                    found[name] = self._machine(host, tier, settings)
                except InvalidInput as error:  # of another hypervisor, for one
                    self._request.log.warn(f"host {host.text('ID')} is left out: {error}")
        for name, settings in replicas.items():
            found.setdefault(name, Machine(name, name, "", REPLICA, settings))
        return sorted(found.values(), key=lambda each: (each.tier != REPLICA, each.name))

    def _machine(self, host: xml.Element, tier: str, settings: Settings) -> Machine:
        """A host as oned knows it; raises :class:`InvalidInput` for a name that no host can have.

        One whose REPLICA_STORAGE_IP is no address is reached by its name.
        """
        name, cluster = arguments.host(host.text("NAME")), host.text("CLUSTER_ID")
        try:
            return Machine(name, storage_address(host), cluster, tier, settings)
        except InvalidInput as error:
            wrong = f"REPLICA_STORAGE_IP: {error.cause}"
            self._request.log.warn(f"host {name}: {wrong}")
            return Machine(name, name, cluster, tier, settings, wrong)

    def _replicas_of(self, system: xml.Element, settings: Settings) -> Iterator[str]:
        """The replicas of a system datastore; a word that is no host is told and left out."""
        for word in [*settings.words("REPLICA_HOST"), *settings.words("CACHE_UPSTREAMS")]:
            try:
                yield arguments.host(word)
            except InvalidInput as error:
                self._request.log.warn(f"datastore {system.text('ID')}: {error}")
