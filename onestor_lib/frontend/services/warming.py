"""Bringing an image into the caches of many machines: each link is used once, and all at once.

The machines form chains. The first of a chain fetches from the nearest machine that has the image:
one of its cluster, a replica, or the origin. Each next one fetches from the one before it while
that is still being filled (cut-through), so that a chain takes hardly longer than one fill. Where
a link of it fails, the rest fetches from elsewhere.

No host is believed about what is in the image, see :class:`_Content`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from onestor_lib.agent.errors import InvalidInput, NotAllowed, OnestorError
from onestor_lib.frontend import arguments, parallel, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import bridges, transfer
from onestor_lib.frontend.services.fleet import REPLICA, Fleet, Machine
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts
from onestor_lib.frontend.services.origin import Origin
from onestor_lib.frontend.services.supply import goes_beside, require_content, wanted

FAILED = "failed"
_LONGEST = 16  # machines in one chain
_PERSISTENT = "1"
_STEP = "warm the cache"

# Of a chain, by the name of its last machine: how many bytes that has, of how many.
Progress = Callable[[str, int, int], None]


def describe(request: Request, fleet: Fleet, image: xml.Element) -> dict[str, Any]:
    """The image as its origin has it, see ``onestor_lib.agent.origin.describe``."""
    with _origin(Hosts(request.settings, request.log), fleet, image) as origin:
        return origin.describe(_format(image), snapshots=False)


def warm(
    request: Request,
    fleet: Fleet,
    image: xml.Element,
    machines: list[Machine],
    progress: Progress = lambda chain, done, total: None,
) -> list[dict[str, Any]]:
    """Fill the caches of ``machines``; for each whether it had the image, and its error.

    ``progress`` is told the name of a chain, and how many bytes of how many it has. Raises
    :class:`InvalidInput` for an image that is never cached.
    """
    if image.text("PERSISTENT") == _PERSISTENT:
        raise InvalidInput(_STEP, "a persistent image never goes through a cache")
    facts = describe(request, fleet, image)
    path = arguments.checked_path(image.text("SOURCE"))
    held, unreachable = fleet.ask(
        fleet.machines, lambda machine: _digest_on(fleet, machine, path, facts["version"])
    )
    cold = [machine for machine in machines if held.get(machine.name) == ""]
    outcome = {
        machine.name: {"result": "hit", "error": ""}
        for machine in machines
        if held.get(machine.name)
    }
    for machine in machines:
        if machine.name in unreachable:
            outcome[machine.name] = _failed(unreachable[machine.name])
    near = [each for each in fleet.machines if held.get(each.name)]
    of_replicas = [held[each.name] for each in near if each.tier == REPLICA]
    content = _Content(facts["digest"] or next(iter(of_replicas), ""))
    chains = {
        chain[0].name: _Chain(fleet, image, facts, content, chain, near, progress)
        for chain in _chains(cold)
    }
    filled, broken = parallel.ask(
        list(chains), lambda first: chains[first].run(), at_once=max(1, len(chains))
    )
    for found in filled.values():
        outcome.update(found)
    for first, error in broken.items():
        outcome.update({each.name: _failed(error) for each in chains[first].machines})
    return [{"host": machine.name, **outcome[machine.name]} for machine in machines]


def _failed(error: OnestorError) -> dict[str, Any]:
    return {"result": FAILED, "error": str(error)}


def _chains(machines: list[Machine]) -> list[list[Machine]]:
    """One for each cluster, replicas first; long ones are divided."""
    clusters: dict[str, list[Machine]] = {}
    for machine in sorted(machines, key=lambda each: each.tier != REPLICA):
        clusters.setdefault(machine.cluster, []).append(machine)
    return [
        chain[begin : begin + _LONGEST]
        for chain in clusters.values()
        for begin in range(0, len(chain), _LONGEST)
    ]


def _digest_on(fleet: Fleet, machine: Machine, path: str, version: dict[str, int]) -> str:
    """The digest of the image as a machine has it; "" where it has not."""
    root = os.path.dirname(os.path.dirname(path))
    for each in fleet.call(machine, "cache.entries", root=root):
        if each["path"] == path and each["version"] == version:
            return str(each["digest"])
    return ""


class _Content:
    """What is in the image: the origin has its digest on record, a replica has told us, or the
    origin says it with the content.

    Until then none but these may send. What a host has received it tells itself, so that counts for
    nothing. Chains share it.
    """

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._lock = threading.Lock()

    @property
    def is_known(self) -> bool:
        return bool(self._digest)

    def came_from(self, machine: Machine, found: dict[str, Any]) -> None:
        """Raise :class:`TransferFailed` unless what a machine has sent is the image."""
        require_content(self._digest or "not known", found, machine.name)

    def came_from_origin(self, found: dict[str, Any]) -> None:
        with self._lock:
            self._digest = str(found["digest"])


class _Chain:
    """Machines that are filled one from the other, at the same time."""

    def __init__(
        self,
        fleet: Fleet,
        image: xml.Element,
        facts: dict[str, Any],
        content: _Content,
        machines: list[Machine],
        near: list[Machine],
        progress: Progress,
    ) -> None:
        self._fleet, self._facts, self.machines = fleet, facts, machines
        self._image, self._content = image, content
        self._path = arguments.checked_path(image.text("SOURCE"))
        cluster = machines[0].cluster
        self._near = sorted(near, key=lambda each: (each.cluster != cluster, each.tier != REPLICA))
        self._progress = progress
        waits = machines[0].settings.seconds("REPLICA_COPY_LOCK_TIMEOUT")
        self._hosts = fleet.hosts(machines[0], patience=PATIENCE + waits)
        self._begin = time.monotonic()
        self.outcome: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, dict[str, Any]]:
        """Fill from the last one on: it has the one before it filled, and so on. The outcome."""
        last, size = self.machines[-1].name, int(self._facts["version"]["size"])
        self._progress(last, 0, size)
        try:
            with _origin(self._watched(self.machines[0]), self._fleet, self._image) as self._origin:
                for number in reversed(range(len(self.machines))):
                    self._attempt(number)
        except OnestorError as error:
            for machine in self.machines:
                self.outcome.setdefault(machine.name, _failed(error))
        self._progress(last, size, size)
        return self.outcome

    def _attempt(self, number: int) -> None:
        name = self.machines[number].name
        try:
            with parallel.understood(name):
                self._fill(number)
        except OnestorError as error:
            self.outcome[name] = _failed(error)

    def _fill(self, number: int) -> None:
        machine = self.machines[number]
        with self._watched(machine).agent(machine.name) as agent:
            agent.call(
                "cache.have",
                on_ask=lambda question: self._answer(number, question),
                image=self._wanted(machine),
            )
        seconds = time.monotonic() - self._begin
        self.outcome[machine.name] = {"result": "filled", "error": "", "seconds": seconds}

    def _watched(self, machine: Machine) -> Hosts:
        """What connects to a machine: all of the chain hear of each other's progress."""
        hosts = self._hosts.under(machine.settings)
        if machine is self.machines[-1]:  # whatever it has, those before it have, too
            size = int(self._facts["version"]["size"])
            hosts.watch = lambda done, total: self._progress(machine.name, min(done, size), size)
        return hosts

    def _answer(self, number: int, question: dict[str, Any]) -> dict[str, Any]:
        """What the machine ``number`` asks while it is filled."""
        if question["ask"] == "gone":
            names = [str(name) for name in question["names"]]
            return {"names": self._origin.missing(os.path.dirname(self._path), names)}
        machine = self.machines[number]
        target = {name: question[name] for name in ("temporary", "manifest", "reuse")}
        if not goes_beside(self._path, str(target["temporary"]), str(target["manifest"])):
            cause, path = "the host asks for what it must not have", str(target["temporary"])
            raise NotAllowed("bring content", cause, host=machine.name, path=path)
        for source in self._sources(number):
            try:
                found = self._pull(source, machine, target)
                self._content.came_from(source, found)
            except OnestorError as error:
                self._hosts.log.warn(f"{source.name} does not send to {machine.name}: {error}")
                target["reuse"] = True
                continue
            return {**found, "source": source.name}
        version = self._facts["version"]
        agent = self._origin.agent()
        found = transfer.bring(
            self._watched(machine), agent, self._path, host=machine.name, version=version, **target
        )
        self._content.came_from_origin(found)
        return {**found, "source": self._origin.host}

    def _sources(self, number: int) -> Iterator[Machine]:
        """From whom the machine ``number`` may fetch, the best first."""
        if number:  # when it asks the origin in turn, that is done before it has sent the end
            yield self.machines[number - 1]
        yield from [each for each in self._near if self._content.is_known or each.tier == REPLICA][
            :2
        ]

    def _pull(self, source: Machine, machine: Machine, target: dict[str, Any]) -> dict[str, Any]:
        before = self.machines.index(source) if source in self.machines else None

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if before is None:
                raise NotAllowed(_STEP, "it has lost the image meanwhile", host=source.name)
            return self._answer(before, question)

        return transfer.pull(
            self._watched(machine),
            source.name,
            source.address,
            host=machine.name,
            image=self._wanted(source),
            answer=answer,
            **target,
        )

    def _wanted(self, machine: Machine) -> dict[str, Any]:
        is_replica = machine.tier == REPLICA
        prefix = "REPLICA" if is_replica else "HOST_CACHE"
        purpose = f"warm image {self._image.text('ID')}"
        hosts = self._fleet.hosts(machine)
        return wanted(hosts, self._path, self._facts, is_replica, prefix, purpose)


@contextlib.contextmanager
def _origin(hosts: Hosts, fleet: Fleet, image: xml.Element) -> Iterator[Origin]:
    datastore = fleet.client.datastore(int(image.text("DATASTORE_ID")))
    path = arguments.checked_path(image.text("SOURCE"))
    location = arguments.Location("localhost", path)
    with Origin(hosts, location, bridges.of(datastore)) as origin:
        yield origin


def _format(image: xml.Element) -> str:
    return (image.text("FORMAT") or image.text("TEMPLATE/DRIVER") or "raw").lower()
