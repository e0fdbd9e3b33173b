"""Paths of a node as they are reached from the real machine."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path, PurePosixPath

MOST_LINKS = 40


def in_root(root: Path, path: str, *, follow_last: bool) -> Path:
    """The file `path` of a node whose root is `root`.

    Links on the way are followed as the node would: left to the kernel, an absolute one would
    lead into the real machine.
    """
    pending = deque(_parts(path))
    done: list[str] = []
    links = 0
    while pending:
        part = pending.popleft()
        here = root.joinpath(*done, part)
        if part == "..":
            del done[-1:]
        elif here.is_symlink() and (pending or follow_last):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(here)
            if target.startswith("/"):
                done.clear()
            pending.extendleft(reversed(_parts(target)))
        else:
            done.append(part)
    return root.joinpath(*done)


def _parts(path: str) -> list[str]:
    return [part for part in PurePosixPath(path).parts if part != "/"]
