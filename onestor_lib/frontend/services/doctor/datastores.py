"""Judging what the templates of onestor's datastores say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, xml
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import recovery
from onestor_lib.frontend.services.doctor.findings import Finding, bad, counted, good, warn
from onestor_lib.frontend.services.fleet import REPLICA, Fleet
from onestor_lib.frontend.services.supply import limits

# What a system datastore may say, each with what reads it.
_READERS: tuple[Callable[[Settings], object], ...] = (
    lambda settings: limits(settings, "REPLICA"),
    lambda settings: limits(settings, "HOST_CACHE"),
    lambda settings: settings.options("REPLICA_SSH_OPTS"),
    lambda settings: settings.options("REPLICA_SSH_FE_OPTS"),
    lambda settings: settings.megabytes("REPLICA_BWLIMIT_MB_S"),
    lambda settings: settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
    lambda settings: settings.path("REPLICA_RECOVERY_SNAPS_DIR"),
    recovery.replicas_of,
    lambda settings: [arguments.host(word) for word in settings.words("CACHE_UPSTREAMS")],
)


def judge(fleet: Fleet) -> Iterator[Finding]:
    """The findings about datastores."""
    if not fleet.systems:
        mend = "onedatastore create: TYPE = SYSTEM_DS, TM_MAD = onestor"
        yield warn("oned", "datastores", "no system datastore has TM_MAD=onestor", mend)
    known = {host.text("NAME") for host in fleet.client.hosts().all("HOST")}
    for system in fleet.systems:
        yield from _system(fleet, system, known)


def _system(fleet: Fleet, system: xml.Element, known: set[str]) -> Iterator[Finding]:
    name, mend = f"datastore {system.text('ID')}", f"onedatastore update {system.text('ID')}"
    settings = fleet.settings_of(system)
    problems: list[str] = []
    for read in _READERS:
        try:
            read(settings)
        except OnestorError as error:
            problems.append(error.cause)
    for problem in dict.fromkeys(problems):
        yield bad(name, "attributes", problem, mend)
    if problems:
        return
    replicas = recovery.replicas_of(settings)
    for replica in replicas:
        if replica not in known:
            text = f"oned does not know the REPLICA_HOST {replica}"
            yield warn(name, "replica", text, f"onehost create {replica}, or {mend}")
    clusters = {each.text(".") for each in system.all("CLUSTERS/ID")}
    others = [each for each in fleet.machines if each.cluster in clusters and each.tier != REPLICA]
    if replicas and not others:
        text = "every host of its clusters is a REPLICA_HOST: none fetches from another"
        yield warn(name, "replica", text, mend)
    elif all(replica in known for replica in replicas):
        text = f"{counted(len(replicas), 'replica')}, {len(others)} hosts"
        yield good(name, "replica", text)
