"""A new version of an image and its snapshots in the place of the old one, as one step.

An image and its ``.snap`` directory are two names, so no single rename replaces both. The new
version is complete and on the disk in a directory of its own before anything of the old one is
touched::

    .<image>.next/image       the new content
    .<image>.next/snapshots/  its snapshots, if it has any
    .<image>.next/record      how it shall be: whether there are snapshots

That directory gets its name in one rename, and with it the replacement is decided: what follows
can only be finished, and whoever touches the image next does that first when we have been killed.
Until then the old version is whole, and every step behind it may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from onestor_lib.agent import companions, crashpoints, locks, publish

IMAGE, SNAPSHOTS = "image", "snapshots"
_RECORD, _LOCK = "record", "lock"
_TIMEOUT = 60.0  # seconds for another process to finish the same replacement


def directory_of(image: Path) -> Path:
    """Where the decided new version of ``image`` lies until it has taken its place."""
    return image.with_name(f".{image.name}.next")


def decide(prepared: Path, image: Path, *, has_snapshots: bool) -> None:
    """Replace ``image`` by what is in the private directory ``prepared``, and do not look back.

    All files in there are on the disk already. Raises ``OSError``; once the directory has its
    name, :func:`finish` does what is left.
    """
    finish(image)
    publish.write_file(
        prepared / _RECORD, json.dumps({"snapshots": has_snapshots}).encode("ascii") + b"\n"
    )
    prepared.chmod(0o755)
    publish.sync_dir(prepared)
    crashpoints.reach("replace.prepared")
    prepared.rename(directory_of(image))
    publish.sync_dir(image.parent)
    crashpoints.reach("replace.decided")
    finish(image)


def finish(image: Path) -> bool:
    """Do what is left of a replacement of ``image`` that was decided; whether there was one.

    What is known of the old version goes first (contract section 8, trap 22).
    """
    new = directory_of(image)
    if not os.path.lexists(new):
        return False
    with contextlib.ExitStack() as stack:
        try:
            lock = locks.exclusive(new / _LOCK, purpose="replace image", timeout=_TIMEOUT)
            stack.enter_context(lock)
        except FileNotFoundError:
            return True  # whoever held the lock has finished it
        record = json.loads((new / _RECORD).read_bytes())
        companions.forget(image)
        crashpoints.reach("replace.forgotten")
        old = companions.snapshots(image)
        if os.path.lexists(new / SNAPSHOTS):
            publish.take_away(old)
            (new / SNAPSHOTS).rename(old)
        elif not record["snapshots"]:
            publish.take_away(old)
        publish.sync_dir(image.parent)
        crashpoints.reach("replace.snapshots")
        if os.path.lexists(new / IMAGE):
            (new / IMAGE).rename(image)
        publish.sync_dir(image.parent)
        crashpoints.reach("replace.image")
        publish.take_away(new)
    return True
