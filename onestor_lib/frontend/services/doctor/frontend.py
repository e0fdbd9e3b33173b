"""Judging this machine: its keys, oned's configuration, its own programs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from onestor_lib.agent import process
from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import boundary, log, registration, state
from onestor_lib.frontend.services.doctor import asking, hosts
from onestor_lib.frontend.services.doctor.asking import Answers
from onestor_lib.frontend.services.doctor.findings import Finding, bad, counted, good, warn

HERE = "front-end"
_QUICK = 3.0  # seconds for a program
_NO_KEYS = 1  # ssh-add(1): exit status of -l when the agent has none
_OVERDUE = 600.0  # seconds since the last pass of recovery copies


def judge(answers: Answers, *, asks_for_copies: bool) -> Iterator[Finding]:
    """The findings about the front-end; ``asks_for_copies``: a disk does."""
    yield _keys(answers)
    said = answers.here["qemu_img"]
    if said["wrong"]:
        yield bad(HERE, "qemu-img", said["wrong"], "install qemu-utils (Debian) or qemu-img")
    else:
        yield good(HERE, "qemu-img", said["is"])
    for path, facts in answers.here["datastores"].items():  # this machine is not doubted
        yield from hosts.judge_datastore(HERE, path, facts, f"more room at {path}")
    for text in answers.missing:
        yield bad(HERE, "remotes", text, "./install.sh")
    yield from _registration()
    if asks_for_copies:
        yield _timer()


def _keys(answers: Answers) -> Finding:
    """Hosts have no private keys: they are lent our ssh-agent. Keys of their own do as well."""
    problem = warn if answers.all_is_reached() else bad
    mend = "systemctl start opennebula-ssh-agent"
    try:
        result = process.run(["ssh-add", "-l"], timeout=_QUICK, step="ssh-add")
    except OnestorError as error:
        return problem(HERE, "ssh-agent", error.cause, "install the OpenSSH client")
    if result.ok:
        count = len(result.stdout.splitlines())
        return good(HERE, "ssh-agent", f"has {counted(count, 'key')}")
    if result.status == _NO_KEYS:
        return problem(HERE, "ssh-agent", "has no key", "as oneadmin: ssh-add")
    return problem(HERE, "ssh-agent", result.reason, mend)


def _registration() -> Iterator[Finding]:
    version = log.opennebula_version(boundary.remotes_directory(), unknown=())
    known = registration.load(asking.etc(), version)
    found = list(registration.check(asking.etc(), known, "./install.sh --configure"))
    for each in found:
        if each.problem:
            text = f"{each.path}: {each.what}: {each.problem}" if each.what else each.problem
            yield bad(HERE, each.path.name, text, each.mend)
    if not any(each.problem for each in found):
        yield good(HERE, "oned.conf", "onestor is registered, in vmm_execrc, too")


def _timer() -> Finding:
    mend = "systemctl enable --now onestor-recovery.timer"
    try:
        age = time.time() - (state.directory() / "recovery.lock").stat().st_mtime
    except OSError:
        return bad(HERE, "recovery", "disks ask for copies, and no pass has ever run", mend)
    if age > _OVERDUE:
        return warn(HERE, "recovery", f"no pass has run for {age / 60:.0f} min", mend)
    return good(HERE, "recovery", f"the last pass began {age:.0f} s ago")
