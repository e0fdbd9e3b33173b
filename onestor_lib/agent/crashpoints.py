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

# Clones by way of the host's cache: of a raw image, and of a qcow2 image as an overlay.
_WHOLE, _THIN = ("tm.clone",), ("tm.clone thin",)
_CLONING = (*_WHOLE, *_THIN)
_PLACING = (*_CLONING, "tm.ln")
_IMPORTING = ("datastore.cp",)
# Directories that move, one of them over a leftover; disks that go back to an image, or become one
# as an overlay on a base.
_MOVING = ("tm.mv",)
_SAVING = ("tm.mvds", "tm.cpds")
_SNAPSHOT = ("tm.snap_create", "tm.snap_create_live")
_RECOVERY = ("recovery",)  # one pass that replaces a copy
_REVERT = ("tm.snap_revert",)

POINTS: dict[str, tuple[str, ...]] = {
    "room.made": _CLONING,
    "fill.noted": _CLONING,
    "fill.started": _CLONING,
    "fill.received": _CLONING,
    "fill.synced": _CLONING,
    "fill.recorded": _CLONING,
    "fill.renamed": _CLONING,
    "evict.image": ("eviction",),
    "evict.sidecar": ("eviction",),
    "place.prepared": _PLACING,
    "place.received": (*_WHOLE, "tm.ln"),
    "place.overlaid": _THIN,
    "place.recovered": ("tm.clone recovery",),
    "place.recorded": _PLACING,
    "place.snapshots": ("tm.ln",),
    "place.based": _THIN,
    "publish.created": (*_PLACING, *_IMPORTING, *_SAVING, *_SNAPSHOT, *_REVERT),
    "publish.synced": (*_PLACING, *_IMPORTING, *_SAVING, *_SNAPSHOT, *_REVERT),
    "publish.linked": (*_PLACING, *_IMPORTING, *_SAVING, *_SNAPSHOT),
    "publish.renamed": (*_PLACING, *_SAVING, *_REVERT),
    "publish.done": (*_PLACING, *_IMPORTING, *_SAVING, *_SNAPSHOT, *_REVERT),
    "send.started": (*_PLACING, *_SAVING),
    "send.half": (*_PLACING, *_MOVING, *_SAVING),
    "send.ended": (*_PLACING, *_SAVING),
    "receive.started": (*_PLACING, *_MOVING, *_SAVING),
    "receive.half": (*_PLACING, *_MOVING, *_SAVING),
    "receive.ended": (*_PLACING, *_MOVING, *_SAVING),
    "intake.half": _IMPORTING,
    "import.copied": _IMPORTING,
    "import.inspected": _IMPORTING,
    "move.received": _MOVING,
    "move.complete": _MOVING,
    "move.aside": _MOVING,
    "move.renamed": _MOVING,
    "move.sent": _MOVING,
    "move.taken": _MOVING,
    "save.flattened": ("tm.cpds",),
    "save.received": _SAVING,
    "save.noted": ("tm.mvds",),
    "save.removed": ("tm.mvds",),
    "replace.prepared": _SAVING,
    "replace.decided": _SAVING,
    "replace.forgotten": _SAVING,
    "replace.snapshots": _SAVING,
    "replace.image": _SAVING,
    "snapshot.copied": _SNAPSHOT,
    "snapshot.aside": _SNAPSHOT,
    "snapshot.removed": ("tm.snap_delete",),
    "revert.copied": _REVERT,
    "recovery.received": _RECOVERY,
    "recovery.renamed": _RECOVERY,
    "flatten.compared": ("flatten",),
    "flatten.replaced": ("flatten",),
    "thin.compared": ("thin",),
    "thin.based": ("thin",),
    "delete.renamed": (*_RECOVERY, "tm.delete", *_MOVING, *_SAVING),
    "delete.removed": ("tm.delete", *_MOVING),
    "delete.disk": ("tm.delete",),
    "rm.companions": ("datastore.rm",),
    "rm.image": ("datastore.rm",),
    "frontend.decided": _PLACING,
    "frontend.moving": _MOVING,
    "frontend.prepared": _SAVING,
    "frontend.sent": _PLACING,
    "frontend.placed": _PLACING,
    "frontend.moved": _MOVING,
    "frontend.saved": _SAVING,
}

_chosen = ""


def names(action: str) -> list[str]:
    """The points that ``action`` ("tm.clone thin", "datastore.cp") passes, in no order."""
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
