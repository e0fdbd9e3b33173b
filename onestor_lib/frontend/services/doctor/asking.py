"""Asking the front-end and all hosts, each in a thread of its own."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, boundary, openssh, parallel, retry
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.fleet import Fleet, Machine

_SCRIPTS = "/var/tmp/one"  # where hosts have the remotes, unless oned.conf says otherwise
_NEEDED = (  # what oned's probes run there
    "tm/onestor/monitor_ds",
    "onestor_lib/__init__.py",
    "onestor_lib/agent/__init__.py",
    "onestor_lib/agent/usage.py",
)
_AT_ONCE = 64
_HERE, _FACTS, _MESH = "here", "facts", "mesh"  # what is asked for


@dataclass
class Answers:
    """What all have said; whoever is not in ``facts`` has failed, see ``unreachable``."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skew: dict[str, float] = field(default_factory=dict)  # seconds that a host's clock is ahead
    unreachable: dict[str, OnestorError] = field(default_factory=dict)
    # By host and way (``Fleet.ways``): why it does not get there, "" where it does.
    mesh: dict[str, dict[str, str]] = field(default_factory=dict)
    no_mesh: dict[str, OnestorError] = field(default_factory=dict)
    here: dict[str, Any] = field(default_factory=dict)  # the front-end
    missing: list[str] = field(default_factory=list)  # of the remotes of the front-end

    def all_is_reached(self) -> bool:
        """Whether each host gets to each, with whichever keys."""
        failed = [*self.unreachable.values(), *self.no_mesh.values()]
        causes = [cause for found in self.mesh.values() for cause in found.values()]
        return bool(self.mesh) and not failed and not any(causes)


def ask(request: Request, fleet: Fleet) -> Answers:
    """Ask all at once; raises only what asking this machine does."""
    answers = Answers()
    scripts, answers.missing = _scripts()
    machines = {machine.name: machine for machine in fleet.machines}
    questions: dict[tuple[str, str], Callable[[], Any]] = {
        (_HERE, ""): lambda: _examine_here(request, fleet)
    }
    for name, machine in machines.items():
        questions[_FACTS, name] = partial(_examine, fleet, machine, scripts)
        questions[_MESH, name] = partial(_get_to, fleet, machine)
    done, failed = parallel.ask(list(questions), lambda each: questions[each](), at_once=_AT_ONCE)
    if (_HERE, "") in failed:
        raise failed[_HERE, ""]
    answers.here = done[_HERE, ""]
    for name in machines:
        if (_FACTS, name) in done:
            answers.facts[name], answers.skew[name] = done[_FACTS, name]
        else:
            answers.unreachable[name] = failed[_FACTS, name]
        if (_MESH, name) in done:
            answers.mesh[name] = done[_MESH, name]
        else:
            answers.no_mesh[name] = failed[_MESH, name]
    return answers


def _examine_here(request: Request, fleet: Fleet) -> Any:
    own = Machine("", "", "", "", request.settings)
    with fleet.hosts(own).local_agent() as here:
        return here.call(
            "host.examine", uri=uri(own), datastores=paths(fleet.images), pairs=[], scripts={}
        )


def _examine(
    fleet: Fleet, machine: Machine, scripts: dict[str, str]
) -> tuple[dict[str, Any], float]:
    systems, images = paths(fleet.systems), paths(fleet.images)
    with fleet.hosts(machine).agent(machine.name) as agent:
        begin = time.time()
        clock = float(agent.call("host.clock"))  # by itself: what follows takes seconds
        end = time.time()
        facts = agent.call(
            "host.examine",
            uri=uri(machine),
            datastores=[*systems, *images],
            pairs=[[system, image] for system in systems for image in images],
            scripts=scripts,
        )
    return facts, 0.0 if begin <= clock <= end else clock - (end if clock > end else begin)


def _get_to(fleet: Fleet, machine: Machine) -> dict[str, str]:
    """Whom a machine gets to, itself included, with the ssh-agent that it is lent.

    By names, and by REPLICA_STORAGE_IP where images come from there. All machines try at once: each
    begins with another peer, and tries again where sshd has dropped the connection because there
    were too many (MaxStartups of sshd_config(5)).
    """
    hosts = fleet.hosts(machine)
    timeout = machine.settings.seconds("CONNECT_TIMEOUT")
    options = machine.settings.options("REPLICA_SSH_OPTS")
    ways = list(fleet.ways())
    begin = ways.index(machine.name)
    peers = {
        way: openssh.probe_argv(way, options=options, connect_timeout=timeout)
        for way in [*ways[begin:], *ways[:begin]]
    }
    found = {}
    pauses = retry.pauses()
    with hosts.agent(machine.name, sends=True) as agent:
        while peers:
            answer = agent.call("host.reach", peers=peers, timeout=timeout + 1)
            found.update({way: str(answer[way]) for way in peers})
            peers = {way: peers[way] for way in peers if openssh.tells_of_drop(found[way])}
            if peers and not retry.after(pauses):
                break
    return found


def etc() -> Path:
    """Where oned.conf is."""
    location = os.environ.get("ONE_LOCATION")
    return Path(location, "etc") if location else Path("/etc/one")


def _scripts() -> tuple[dict[str, str], list[str]]:
    """What hosts should have of the remotes: paths there, with digests of what is here.

    And what cannot be read here, which no host can have rightly.
    """
    there, remotes = _SCRIPTS, boundary.remotes_directory()
    try:
        text = (etc() / "oned.conf").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^\s*SCRIPTS_REMOTE_DIR\s*=\s*\"?([^\"\s#]+)", text, re.MULTILINE):
            there = match[1]
    except OSError:
        pass  # is told elsewhere
    found, missing = {}, []
    for name in _NEEDED:
        try:
            content = (remotes / name).read_bytes()
        except OSError as error:
            missing.append(f"{remotes / name}: {error.strerror}")
        else:
            found[f"{there}/{name}"] = hashlib.sha256(content).hexdigest()
    return found, missing


def paths(datastores: list[Any]) -> list[str]:
    """Where datastores lie, on every machine."""
    return [arguments.checked_path(each.text("BASE_PATH")) for each in datastores]


def uri(machine: Machine) -> str:
    """How virsh reaches the hypervisor of a machine; raises :class:`InvalidInput`."""
    return machine.settings.text("LIBVIRT_URI", r"[A-Za-z0-9+]+:[^\s]*", "a libvirt URI")
