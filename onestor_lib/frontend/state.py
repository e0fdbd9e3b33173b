"""What the front-end keeps between actions, in ``~/.onestor`` of the user that oned runs as.

Small files, each whole at any time; nothing breaks when they are lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import publish


def directory() -> Path:
    """Where it is; made when something is to be kept."""
    return Path(os.environ.get("HOME") or "/var/lib/one", ".onestor")


def file(name: str) -> Path:
    """Where what has a name ("kind/name") is kept."""
    return directory() / f"{name}.json"


def write(name: str, facts: dict[str, Any]) -> None:
    """Keep ``facts`` under ``name`` ("kind/name"); raises ``OSError``."""
    path = file(name)
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    publish.sweep(path.parent)
    publish.write_file(path, json.dumps(facts).encode("ascii") + b"\n", mode=0o640)


def remove(name: str) -> None:
    """Forget it; nothing there is forgotten already."""
    with contextlib.suppress(OSError):
        file(name).unlink()


def every(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All of a kind: name ("kind/name") and facts; what is damaged is left out."""
    with contextlib.suppress(OSError):
        for path in sorted((directory() / kind).glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                facts = json.loads(path.read_bytes())
                if isinstance(facts, dict) and not path.name.startswith("."):
                    yield f"{kind}/{path.stem}", facts


def note_error(disk: tuple[int, str], cause: str) -> None:
    """Remember why a disk has no new recovery copy."""
    with contextlib.suppress(OSError):
        write(_error(disk), {"vm": disk[0], "disk": disk[1], "error": cause, "at": time.time()})


def forget_error(disk: tuple[int, str]) -> None:
    """It has one now."""
    remove(_error(disk))


def errors() -> dict[tuple[int, str], str]:
    """The errors of all disks."""
    found = {}
    for _, facts in every("recovery"):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found[int(facts["vm"]), str(facts["disk"])] = str(facts["error"])
    return found


def note_replica(replica: str) -> None:
    """Remember that a host may have copies, even when no datastore names it any more."""
    with contextlib.suppress(OSError):
        if replica not in replicas():
            write(f"replicas/{replica}", {"host": replica})


def forget_replica(replica: str) -> None:
    """It has none."""
    remove(f"replicas/{replica}")


def replicas() -> list[str]:
    """The hosts that may have copies."""
    return [str(facts["host"]) for _, facts in every("replicas") if "host" in facts]


def _error(disk: tuple[int, str]) -> str:
    return f"recovery/{disk[0]}.{disk[1]}"
