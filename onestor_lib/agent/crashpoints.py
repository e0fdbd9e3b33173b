"""Crash points: named places where a test kills the process, doing nothing otherwise.

A point that is reached while it is the chosen one notes its name in a file and dies by SIGKILL,
as a power cut would: no handler, no clean-up. The list below is complete: a test compares it with
the calls of :func:`reach` in the source, and the crash tests are generated from it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "ONESTOR_CRASH_AT"
NOTE = Path("/var/tmp/onestor-crashed-at")

_ALL_PLACING = ("tm.clone", "tm.ln")
_ALL_IMPORTING = ("datastore.cp",)

POINTS: dict[str, tuple[str, ...]] = {
    "place.prepared": _ALL_PLACING,
    "place.received": _ALL_PLACING,
    "place.recorded": _ALL_PLACING,
    "place.snapshots": ("tm.ln",),
    "publish.created": _ALL_PLACING + _ALL_IMPORTING,
    "publish.synced": _ALL_PLACING + _ALL_IMPORTING,
    "publish.linked": _ALL_PLACING + _ALL_IMPORTING,
    "publish.renamed": _ALL_PLACING,
    "publish.done": _ALL_PLACING + _ALL_IMPORTING,
    "send.started": _ALL_PLACING,
    "send.half": _ALL_PLACING,
    "send.ended": _ALL_PLACING,
    "receive.started": _ALL_PLACING,
    "receive.half": _ALL_PLACING,
    "receive.ended": _ALL_PLACING,
    "import.copied": _ALL_IMPORTING,
    "import.inspected": _ALL_IMPORTING,
    "delete.renamed": ("tm.delete",),
    "delete.removed": ("tm.delete",),
    "delete.disk": ("tm.delete",),
    "rm.companions": ("datastore.rm",),
    "rm.image": ("datastore.rm",),
    "frontend.decided": _ALL_PLACING,
    "frontend.sent": _ALL_PLACING,
    "frontend.placed": _ALL_PLACING,
}

_chosen = ""


def names(action: str) -> list[str]:
    """The points that ``action`` ("tm.clone", "datastore.cp") passes, in no order."""
    return [name for name, actions in POINTS.items() if action in actions]


def choose(name: str) -> None:
    """Make ``name`` the point to die at ("" for none); a name not in the list is an error."""
    global _chosen
    if name and name not in POINTS:
        raise ValueError(f"no crash point is called {name!r}")
    _chosen = name


def reach(name: str) -> None:
    """Die here if ``name`` is the chosen point."""
    if name != _chosen:
        return
    with NOTE.open("a", encoding="ascii") as note:
        note.write(name + "\n")
    os.kill(os.getpid(), signal.SIGKILL)
