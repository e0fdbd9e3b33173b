"""How a program of install.sh fails: by one line, and exit status 1."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Failure(Exception):
    """The one line that install.sh ends with: step, path, cause."""

    def __init__(self, step: str, path: object, cause: str) -> None:
        super().__init__(f"{step}: {path}: {cause}")


def status_of(step: str, work: Callable[[], int]) -> int:
    """Do the ``work``; its exit status, or 1 when it fails, which is told."""
    try:
        return work()
    except Failure as err:
        sys.stderr.write(f"install.sh: {err}\n")
    except OSError as err:
        sys.stderr.write(f"install.sh: {step}: {err.filename}: {err.strerror}\n")
    return 1
