"""Which local files may be registered as images: RESTRICTED_DIRS and SAFE_DIRS.

Rules are compared by whole path components on paths whose links are resolved, and once more on
the file that was really opened, so that nothing can be swapped in between (known failures J7-J9).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed, from_os_error


class Rules(NamedTuple):
    """Directories images may not come from, and the exceptions from that."""

    restricted: Sequence[str]
    safe: Sequence[str]

    def check(self, resolved: str, *, step: str, path: str) -> None:
        """Raise :class:`NotAllowed`, naming the rule, when ``resolved`` may not be read."""
        if any(_below(resolved, rule) for rule in self.safe):
            return
        for rule in self.restricted:
            if _below(resolved, rule):
                safe = " ".join(self.safe) or "no directory"
                raise NotAllowed(
                    step, f"{rule} is in RESTRICTED_DIRS and SAFE_DIRS allows only {safe}",
                    path=path,
                )  # fmt: skip


ANYWHERE = Rules((), ())  # for files that OpenNebula itself has put where they are


def open_image(path: str, rules: Rules, *, step: str) -> int:
    """Open the regular file ``path`` for reading under ``rules``; the caller closes it.

    The rules come first: about a file that may not be read nothing is told, not even whether it
    exists (known failure J8).
    """
    if not path.startswith("/"):
        raise InvalidInput(step, "not an absolute path", path=path)
    rules.check(os.path.realpath(path), step=step, path=path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise Missing(step, "no such file", path=path) from None
    except OSError as error:
        raise from_os_error(step, error, path=path) from error
    try:
        rules.check(str(Path(f"/proc/self/fd/{fd}").readlink()), step=step, path=path)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInput(step, "not a regular file", path=path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def inside(path: str, base: str, *, step: str) -> Path:
    """``path`` as a file directly in the directory ``base``; raises :class:`NotAllowed`.

    The directories are compared with their links resolved, so ``//`` and ``..`` neither hide nor
    forge anything (known failure H7); the file itself may be a link or be missing.
    """
    name = os.path.basename(os.path.normpath(path))
    parent = os.path.realpath(os.path.dirname(os.path.normpath(path)))
    if parent != os.path.realpath(base) or name in ("", ".", "..") or name.startswith("."):
        raise NotAllowed(step, f"not an image in {base}", path=path)
    return Path(parent, name)


def _below(path: str, directory: str) -> bool:
    rule = os.path.realpath(directory)
    return path == rule or path.startswith(rule.rstrip("/") + "/")
