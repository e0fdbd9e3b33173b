"""What there is of recovery copies, for people: ``onestor recovery list`` and ``drop``."""

from __future__ import annotations

import copy
import time
from typing import Any

from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.recovery import AGE_UNKNOWN
from onestor_lib.frontend import parallel, state
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts
from onestor_lib.frontend.services.recovery import Cloud, Wanted, copies_on, root, youth

Row = dict[str, Any]
_Found = dict[tuple[int, str], tuple[str, dict[str, Any]]]


def rows(request: Request) -> list[Row]:
    """A row for every disk that asks for copies or has one; times in seconds, sizes in bytes.

    ``lag`` is how much older than asked for the youngest copy is, 0 for none.
    """
    cloud = Cloud(request)
    wanted = {each.key: each for each in cloud.wanted()}
    found, failed = _youngest(request, cloud.replicas())
    errors = state.errors()
    return [
        _row(key, wanted.get(key), found.get(key), errors.get(key, ""), failed)
        for key in sorted({*wanted, *found})
    ]


def _youngest(request: Request, replicas: dict[str, Settings]) -> tuple[_Found, dict[str, str]]:
    """The youngest copy of each disk and where it lies; the replicas that do not answer, why."""

    def ask(replica: str) -> list[tuple[tuple[int, str], dict[str, int]]]:
        copies = copies_on(replica, replicas[replica], copy.copy(request.log))
        return [
            (
                (int(each["vm"]), str(each["disk"])),
                {name: int(each[name]) for name in ("point", "allocated")},
            )
            for each in copies
            if each["disk"]
        ]

    answers, failed = parallel.ask(list(replicas), ask)
    found: _Found = {}
    now = time.time()
    for replica, answer in answers.items():
        for key, copied in answer:
            known = found.get(key)
            if known is None or youth(known[1]["point"], now) < youth(copied["point"], now):
                found[key] = replica, copied
    return found, {replica: str(error) for replica, error in failed.items()}


def _row(
    key: tuple[int, str],
    wanted: Wanted | None,
    found: tuple[str, dict[str, Any]] | None,
    error: str,
    failed: dict[str, str],
) -> Row:
    replica, copied = found if found else ("", None)
    frequency = wanted.frequency if wanted else None
    age = None
    if copied and copied["point"] != AGE_UNKNOWN:
        age = time.time() - copied["point"] / 1000
    if wanted and not error:
        silent = [failed[name] for name in wanted.replicas if name in failed]
        error = wanted.why_not or ("; ".join(silent) if copied is None else "")
    return {
        "vm": key[0],
        "disk": key[1],
        "frequency": frequency,
        "age": age,
        "lag": max(0.0, age - frequency) if age is not None and frequency else None,
        "size": copied["allocated"] if copied else None,
        "replica": replica,
        # Whether there is a copy, and which is the youngest, is known.
        "answered": wanted is None or not any(name in failed for name in wanted.replicas),
        "error": error,
    }


def drop(request: Request, vm_id: int) -> list[str]:
    """Remove all copies of a VM from all replicas; from which there were any.

    Raises :class:`OnestorError` at the end when one of them does not answer.
    """
    done, failed = [], []
    for replica, settings in Cloud(request).replicas().items():
        try:
            with Hosts(settings, request.log, patience=PATIENCE).agent(replica) as agent:
                if agent.call("recovery.forget", root=root(settings), vm=vm_id)["removed"]:
                    done.append(replica)
        except OnestorError as error:
            failed.append(str(error))
    if failed:
        where = f"removed from {', '.join(done)}" if done else "removed from none"
        raise OnestorError("remove recovery copies", f"{where}; {'; '.join(failed)}")
    return done
