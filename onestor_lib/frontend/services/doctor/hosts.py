"""Judging what hosts have said of themselves, and of each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.space import MB
from onestor_lib.frontend import parallel
from onestor_lib.frontend.services.doctor import asking
from onestor_lib.frontend.services.doctor.asking import Answers
from onestor_lib.frontend.services.doctor.findings import Finding, bad, good, warn
from onestor_lib.frontend.services.fleet import Fleet, Machine

_PYTHON = [3, 9]
_SKEW_WARNING, _SKEW_ERROR = 2.0, 60.0  # seconds
_LITTLE, _FULL = 10, 2  # percent that are free
_FEW = 1000  # inodes that are free
# A rule of apparmor.d(5) that allows to write: /var/lib/one/** rwk,
_RULE = re.compile(r'\s*(?:owner\s+)?"?(/[^\s"]*)"?\s+[a-z]*w[a-z]*,')
_MOST_RULES, _LONGEST_RULE = 1 << 18, 1000  # characters; a host may say anything
_KEYS = "as oneadmin: ssh-keyscan {host} >> ~/.ssh/known_hosts, once you have compared the key"


def judge(fleet: Fleet, answers: Answers) -> Iterator[Finding]:
    """The findings of every host."""
    ways = fleet.ways()
    for machine in fleet.machines:
        if machine.wrong:
            yield bad(machine.name, "attributes", machine.wrong, f"onehost update {machine.name}")
        if error := answers.unreachable.get(machine.name):
            yield _unreachable(machine.name, error)
            continue
        yield good(machine.name, "ssh", "the front-end gets there")
        yield from _mesh(machine.name, answers, ways)
        try:
            with parallel.understood(machine.name):
                found = [*_facts(fleet, machine, answers)]
        except OnestorError as error:
            yield _unreachable(machine.name, error)
        else:
            yield from found


def _facts(fleet: Fleet, machine: Machine, answers: Answers) -> Iterator[Finding]:
    """What a host says of itself; raises anything for an answer that makes no sense."""
    facts = answers.facts[machine.name]
    yield _clock(machine.name, answers.skew[machine.name])
    yield from _programs(machine, facts)
    yield from _qemu(machine.name, facts, fleet)
    datastores = asking.paths(fleet.systems) + asking.paths(fleet.images)
    said = {path: facts["datastores"][path] for path in datastores}  # no path but those asked for
    yield from _datastores(machine.name, said)
    if not any(each["wrong"] for each in said.values()):
        yield _links(machine.name, facts)
    yield _scripts(machine.name, facts)


def _unreachable(name: str, error: OnestorError) -> Finding:
    cause = error.cause
    if error.step == parallel.NONSENSE:
        mend = f"on {name}: look who answers there, and with which python3"
        return bad(name, "answer", cause, mend)
    if "host key" in cause.lower():
        return bad(name, "host key", cause, _KEYS.format(host=name))
    if "python" in cause.lower():
        mend = f"install python3 (3.9 or newer) on {name}, or set HOST_PYTHON in onestorrc"
        return bad(name, "python3", cause, mend)
    return bad(name, "ssh", cause, f"as oneadmin: ssh {name} true")


def _mesh(name: str, answers: Answers, ways: dict[str, str]) -> Iterator[Finding]:
    """Each host must get to each other one, and to itself: for migrations, and from replicas.

    ``ways`` are those of :class:`Fleet`.
    """
    if error := answers.no_mesh.get(name):
        yield bad(name, "ssh mesh", error.cause, "start the ssh-agent of OpenNebula's service")
        return
    found = answers.mesh[name]
    wrong = {
        way: cause
        for way, cause in found.items()  # its keys are who was asked about, not what came back
        if cause and ways[way] not in answers.unreachable  # that is told already
    }
    for way, cause in sorted(wrong.items()):
        where = f"to {way}" if way != name else "to itself"
        if ways[way] != way:
            where += f", REPLICA_STORAGE_IP of {ways[way]}"
        mend = f"as oneadmin on {name}: ssh {way} true"
        if "host key" in cause.lower():
            mend = f"on {name}, {_KEYS.format(host=way)}"
        yield bad(name, "ssh mesh", f"{where}: {cause}", mend)
    if not wrong:
        causes = [cause for way, cause in found.items() if ways[way] == way]
        yield good(name, "ssh mesh", f"gets to {causes.count('')} of {len(causes)} hosts")


def _clock(name: str, skew: float) -> Finding:
    if abs(skew) < _SKEW_WARNING:
        return good(name, "clock", "agrees")
    text = f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the front-end's"
    mend = f"on {name}: systemctl restart chronyd, or another NTP service"
    return (bad if abs(skew) > _SKEW_ERROR else warn)(name, "clock", text, mend)


def _programs(machine: Machine, facts: dict[str, Any]) -> Iterator[Finding]:
    version = [int(part) for part in facts["python"][:2]]
    text = ".".join(map(str, version))
    if version >= _PYTHON:
        yield good(machine.name, "python3", text)
    else:
        mend = f"install python3 (3.9 or newer) on {machine.name}, or set HOST_PYTHON"
        yield bad(machine.name, "python3", f"{text}, 3.9 is needed", mend)
    packages = {"qemu_img": "qemu-utils (qemu-img)", "libvirt": "libvirt-clients (libvirt-client)"}
    for fact, package in packages.items():
        check, said = fact.replace("_", "-"), facts[fact]
        if said["wrong"]:
            mend = f"on {machine.name}: systemctl status libvirtd, or install {package}"
            if fact == "qemu_img":
                mend = f"on {machine.name}: install {package}"
            yield bad(machine.name, check, str(said["wrong"]), mend)
        else:
            yield good(machine.name, check, str(said["is"]))


def _qemu(name: str, facts: dict[str, Any], fleet: Fleet) -> Iterator[Finding]:
    """qemu must be able to open what the drivers' user makes, and the other way round."""
    owner = facts["qemu_owner"]
    mend = f"on {name}, in /etc/libvirt/qemu.conf: user and group as the drivers', restart libvirtd"
    if owner is None:
        if not facts["libvirt"]["wrong"]:
            yield warn(name, "qemu", "libvirt does not say whom it runs qemu as", mend)
    elif owner[0] in (0, facts["uid"]):
        yield good(name, "qemu", "runs as root" if owner[0] == 0 else "runs as the drivers' user")
    else:
        text = f"runs as user {owner[0]}, the drivers as {facts['uid']}"
        yield bad(name, "qemu", text, mend)
    if facts["apparmor"] is not None:
        roots = {os.path.dirname(each.text("BASE_PATH").rstrip("/")) for each in fleet.systems}
        rules = str(facts["apparmor"])[:_MOST_RULES]
        missing = [root for root in sorted(roots) if not _admits(rules, root)]
        if missing:
            line = f"{missing[0]}/** rwk,"
            file = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
            text = f"no rule admits qemu to {missing[0]}"
            yield warn(name, "apparmor", text, f"on {name}: add {line!r} to {file}")
        else:
            yield good(name, "apparmor", "admits qemu to the datastores")


def _admits(rules: str, directory: str) -> bool:
    """Whether a rule lets qemu write to all below a directory, or one that it lies in."""
    for line in rules.splitlines():
        rule = _RULE.match(line[:_LONGEST_RULE])
        path = rule[1] if rule else ""
        beginning, stars, _ = path.partition("**")
        if stars and f"{directory}/".startswith(f"{beginning.rstrip('/')}/"):
            return True
    return False


def judge_datastore(name: str, path: str, said: dict[str, Any], mend: str) -> Iterator[Finding]:
    """Whether a directory can be used, and what is free there; ``mend`` makes room."""
    if said["wrong"]:
        yield bad(
            name, "permissions", f"{path}: {said['wrong']}", f"on {name}: chown oneadmin: {path}"
        )
        return
    share = int(said["free"]) * 100 // max(int(said["size"]), 1)
    text = f"{path}: {int(said['free']) // MB} MB free, {share} %"
    few = said["inodes"] is not None and int(said["inodes"]) < _FEW
    if few:
        text = f"{path}: {int(said['inodes'])} free inodes"
    if share < _FULL:
        yield bad(name, "space", text, mend)
    elif share < _LITTLE or few:
        yield warn(name, "space", text, mend)
    else:
        yield good(name, "space", text)


def _datastores(name: str, datastores: dict[str, Any]) -> Iterator[Finding]:
    for path, said in datastores.items():
        mend = f"onestor cache prune --host {name}, or more room at {path}"
        yield from judge_datastore(name, path, said, mend)
    if any(said.get("shares") for said in datastores.values()):
        yield good(name, "reflink", "copies of raw images share their blocks")
    else:
        yield good(name, "reflink", "not here: a raw disk is a whole copy (XFS and btrfs can)")


def _links(name: str, facts: dict[str, Any]) -> Finding:
    wrong = sorted({cause for cause in facts["links"] if cause})
    if not wrong:
        return good(name, "hard links", "disks share their image with the cache")
    text = f"disks cannot share their image with the cache: {'; '.join(wrong)}"
    mend = f"on {name}: have all datastores on one file system, a copy is made of each image else"
    return warn(name, "hard links", text, mend)


def _scripts(name: str, facts: dict[str, Any]) -> Finding:
    if facts["scripts"]:
        missing = ", ".join(sorted(map(str, facts["scripts"])))
        text = f"not as on the front-end: {missing}"
        return bad(name, "remotes", text, f"as oneadmin: onehost sync -f {name}")
    return good(name, "remotes", "as on the front-end")
