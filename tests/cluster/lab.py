"""Lab directories: all the files of one cluster, and the lock that tells whether it lives.

The lock is an flock on the directory itself, held by the cluster's supervisor. A lab nobody
holds is a leftover. Its processes, mounts and links are gone already: they end with the
supervisor, the first process of their pid namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import wait_until


def base_directory() -> Path:
    """Where labs are: a real filesystem, since overlays and loop files live there."""
    return Path(os.environ.get("ONESTOR_CLUSTER_DIR", "/var/tmp/onestor-cluster"))


def create() -> tuple[Path, int]:
    """A fresh lab and the file descriptor that holds its lock."""
    with _base_locked() as base:
        lab = Path(tempfile.mkdtemp(prefix="lab-", dir=base))
        return lab, _locked(lab)


def nodes(lab: Path) -> list[str]:
    """The directories of the lab's nodes, in the order of their names."""
    return sorted(str(plan.parent) for plan in lab.glob("*/plan.json"))


def sweep() -> list[Path]:
    """Remove the labs whose supervisor is gone; return them."""
    swept = []
    with _base_locked() as base:
        for lab in sorted(base.glob("lab-*")):
            try:
                fd = _locked(lab)
            except (BlockingIOError, FileNotFoundError):
                continue  # in use, or just being removed by its own supervisor
            try:
                remove(lab)
            finally:
                os.close(fd)
            swept.append(lab)
    return swept


def remove(lab: Path) -> None:
    """Delete a lab none of whose mounts is visible to this process.

    Processes killed a moment ago may still create a file, so ENOTEMPTY is worth another look.
    """

    def gone() -> bool:
        try:
            shutil.rmtree(lab)
        except FileNotFoundError:
            return not lab.exists()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
        return True

    wait_until(gone, f"removing {lab}")


def _locked(lab: Path) -> int:
    fd = os.open(lab, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _base_locked() -> Iterator[Path]:
    """Keep a sweep away from a lab that exists but is not locked yet."""
    base = base_directory()
    base.mkdir(parents=True, exist_ok=True)
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield base
    finally:
        os.close(fd)
