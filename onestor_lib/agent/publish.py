"""Files that appear whole or not at all.

A temporary lies beside its final name, belongs to a living process, and gets the final name only
when it is complete and on the disk. What a dead process left behind is recognised by its name and
taken away by :func:`sweep`, so a crash costs space for a while and nothing else.

A temporary's name is ``.<final>.<host>-<boot>-<pid>-<start>-<random>.tmp``: host, boot and start
time make sure that a process id met later is really the owner (known failure K16), the random
part that nobody can plant the name (J12). No lock on the file is needed for that, which matters
because qemu-img takes locks of its own on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from onestor_lib.agent import crashpoints

# What link(2) says where there are no hard links, or not to that file.
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_NAME = re.compile(
    r"^\.(?P<final>.+)\.(?P<host>[\w-]*)-(?P<boot>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)"
    r"-[0-9a-f]{16}\.tmp$"
)


def temporary_name(final: str) -> str:
    """A fresh name for something unfinished that shall be called ``final``."""
    pid = os.getpid()
    owner = f"{_host()}-{_boot()}-{pid}-{_start_time(pid)}"
    return f".{final}.{owner}-{os.urandom(8).hex()}.tmp"


def is_temporary(name: str) -> bool:
    """Whether ``name`` has the form of :func:`temporary_name`."""
    return bool(final_name(name))


def final_name(name: str) -> str:
    """What something unfinished shall be called; "" when it is no :func:`temporary_name`."""
    match = _NAME.match(name)
    return match["final"] if match else ""


# What this process has created and not yet published or removed: see discard_unfinished().
_unfinished: set[Path] = set()


class Temporary:
    """An unfinished file beside ``final``, removed at the end of the ``with`` unless published.

    It is created exclusively and readable by its owner only. Raises ``OSError``.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.parent / temporary_name(final.name)
        _unfinished.add(self.path)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        crashpoints.reach("publish.created")

    def __enter__(self) -> Temporary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            remove(self.path)
        except OSError:
            if error is None:
                raise
            return  # the sweep takes it; what went wrong first is what matters
        _unfinished.discard(self.path)

    def renew(self) -> None:
        """Go on under a new name, which nobody knows who knew the old one."""
        path = self.path.with_name(temporary_name(self.final.name))
        _unfinished.add(path)
        self.path.rename(path)
        _unfinished.discard(self.path)
        self.path = path

    def become_link(self, other: Path) -> bool:
        """Be another name of the file ``other`` instead; False where that is not possible."""
        link = self.path.with_name(temporary_name(self.final.name))
        try:
            os.link(other, link, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        link.rename(self.path)
        return True

    def publish(self, *, mode: int = 0o660, replace: bool = False) -> None:
        """Give the complete content its final name, durably.

        Without ``replace`` an existing final name is an error (``FileExistsError``): link(2) makes
        that one atomic step, which rename(2) does not.
        """
        sync_file(self.path, mode=mode)
        crashpoints.reach("publish.synced")
        if replace:
            self.path.rename(self.final)
            crashpoints.reach("publish.renamed")
        else:
            _link(self.path, self.final)
        sync_dir(self.final.parent)
        crashpoints.reach("publish.done")


@contextlib.contextmanager
def temporary_directory(final: Path) -> Iterator[Path]:
    """A private directory beside ``final``, removed at the end unless it was renamed."""
    path = final.parent / temporary_name(final.name)
    _unfinished.add(path)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        remove(path)
        _unfinished.discard(path)


def take_away(path: Path) -> bool:
    """Remove ``path`` so that its name is free in one step; whether it was there.

    It is renamed to a temporary first: whoever is at work below it loses the name at once, and if
    we are killed half-way the next sweep does the rest.
    """
    trash = path.parent / temporary_name(path.name)
    _unfinished.add(trash)
    try:
        path.rename(trash)
    except FileNotFoundError:
        _unfinished.discard(trash)
        return False
    crashpoints.reach("delete.renamed")
    remove(trash)
    _unfinished.discard(trash)
    return True


def discard_unfinished() -> None:
    """Remove every temporary of this process: the last thing a terminated process does.

    The ``with`` blocks have done so already, but for a signal between two instructions.
    """
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            remove(path)


def write_file(final: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``final`` by ``content``, whole and durable."""
    with Temporary(final) as temporary:
        temporary.path.write_bytes(content)
        temporary.publish(mode=mode, replace=True)


def sync_file(path: Path, *, mode: int | None = None) -> None:
    """Flush a file to the disk; ``mode`` is set first, while the name is still private."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_dir(path: Path) -> None:
    """Flush a directory, so that names survive a power cut (rename(2) alone does not say so)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> bool:
    """Remove a file, link or whole directory; whether there was one. Symlinks are not followed.

    A directory that somebody still writes into is emptied again, a few times.
    """
    import shutil  # not at start-up: it loads all kinds of compression

    for attempt in range(5):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            return True
        except FileNotFoundError:
            if attempt == 0 and not path.is_symlink() and not path.exists():
                return False
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    if path.exists():
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
    return True


def sweep(directory: Path) -> list[str]:
    """Remove temporaries in ``directory`` whose owner is dead; return their final names.

    Those of other hosts (a shared file system) are left to those hosts. An entry that cannot be
    removed is left for the next time: clean-up never fails the action that runs it.
    """
    swept = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _NAME.match(entry.name)
            if match and _is_dead(match):
                with contextlib.suppress(OSError):
                    remove(Path(entry.path))
                    swept.append(match["final"])
    return swept


def _is_dead(owner: re.Match[str]) -> bool:
    if owner["host"] != _host():
        return False
    return owner["boot"] != _boot() or owner["start"] != _start_time(int(owner["pid"]))


def _link(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        # A file system without hard links: as close as one can get there.
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        temporary.rename(final)
        return
    crashpoints.reach("publish.linked")
    temporary.unlink()


def _host() -> str:
    return re.sub(r"[^\w-]", "-", os.uname().nodename, flags=re.ASCII)[:64]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; "gone" when there is none (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "gone"
    return stat.rpartition(b")")[2].split()[19].decode("ascii")
