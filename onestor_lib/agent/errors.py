"""One family of errors: what failed, on which host and path, why, and what helps.

Every class is known to both sides: an error raised in the agent arrives at the front-end as the
same class (:func:`to_json`, :func:`from_json`), so callers decide by type, never by text.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

MAX_LINE = 1000  # characters; oned stores the line in the VM's or image's template
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# What a file that is open already fails with; others (no memory for a process, too many files, a
# broken pipe) have nothing to do with the file we are at work on.
_OF_A_DESCRIPTOR = NO_SPACE | {
    errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ESTALE,
}  # fmt: skip


def one_line(text: str) -> str:
    """Return ``text`` as one printable line that oned will show as it is.

    No control characters (oned reads line by line, contract section 1.4), no ``-`` at the start
    (oned drops such a message, section 1.5), no severity (that would make it a log line, and a
    number behind it the id of a VM: section 8, trap 1), bounded length.
    """
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()
    line = line.encode("utf-8", "replace").decode("utf-8")
    line = re.sub(r"^(?:[-\s]|(?:ERROR|WARN|INFO|DEBUG):)+", "", line)
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 3] + "..."


class OnestorError(Exception):
    """A failure an administrator can act on; ``str()`` is the line oned shows.

    ``step`` says what was being done in plain words, ``cause`` why it failed.
    """

    exit_code = 1  # 1..254: 255 means "killed by a signal" to oned (contract section 1.5)
    retryable = False  # could another source, or a later moment, succeed?

    def __init__(self, step: str, cause: str, *, host: str = "", path: str = "") -> None:
        super().__init__(step, cause, host, path)
        self.step, self.cause, self.host, self.path = step, cause, host, path

    def __str__(self) -> str:
        place = ":".join(part for part in (self.host, self.path) if part)
        return one_line(
            f"{self.step} {place}: {self.cause}" if place else f"{self.step}: {self.cause}"
        )


class InvalidInput(OnestorError):
    """An argument, message or attribute that no correct caller sends."""

    exit_code = 2


class NotAllowed(OnestorError):
    """Refused by a rule: a restricted directory, an image that names other files."""

    exit_code = 3


class Missing(OnestorError):
    """A file, image or object that should be there is not."""

    exit_code = 4


class NoSpace(OnestorError):
    """Not enough room, known before or met while writing."""

    exit_code = 5


class CommandFailed(OnestorError):
    """A program ended with an error, or could not be started."""

    exit_code = 6


class HostUnreachable(OnestorError):
    """No working connection to a host, or it stopped answering."""

    exit_code = 7
    retryable = True


class TransferFailed(OnestorError):
    """Bytes did not arrive complete and identical."""

    exit_code = 8
    retryable = True


class LockTimeout(OnestorError):
    """A lock was still held by somebody else at the deadline."""

    exit_code = 9
    retryable = True


class Superseded(OnestorError):
    """The VM or image was deleted, or moved on, while this action was at work."""

    exit_code = 10


class CacheFailed(OnestorError):
    """The cache has no room or cannot be used; the image itself may be fine."""

    exit_code = 12


class OnedUnavailable(OnestorError):
    """oned's API did not answer, or refused the request."""

    exit_code = 11
    retryable = True


class Terminated(BaseException):
    """SIGTERM, or the other side is gone: unwind, clean up, end.

    Not an :class:`Exception`, so that no handler for ordinary failures swallows it.
    """


class ProgrammerError(OnestorError):
    """Something in onestor itself is wrong; the log has the traceback."""

    exit_code = 254


_CLASSES = {
    cls.__name__: cls
    for cls in (
        OnestorError, InvalidInput, NotAllowed, Missing, NoSpace, CommandFailed, HostUnreachable,
        TransferFailed, LockTimeout, Superseded, CacheFailed, OnedUnavailable, ProgrammerError,
    )
}  # fmt: skip


def from_os_error(
    step: str, error: OSError, *, path: str | Path = "", where: str | Path = ""
) -> OnestorError:
    """Translate an ``OSError`` met in ``step``; the kernel's own words are the cause.

    It is about ``path``, or else about the file it names itself; ``where`` is what we were at work
    on, for an error that write(2), fsync(2) and the like give without a name.
    """
    place = os.fspath(path) or _place(error)
    if not place and error.errno in _OF_A_DESCRIPTOR:
        place = os.fspath(where)
    cause = error.strerror or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return Missing(step, cause, path=place)
    if error.errno in NO_SPACE:
        return NoSpace(step, cause, path=place)
    if isinstance(error, PermissionError):
        return NotAllowed(step, cause, path=place)
    return OnestorError(step, cause, path=place)


def _place(error: OSError) -> str:
    """The file that an error names; "" when it names none.

    Of the two in an error of link(2), symlink(2) or rename(2) the second one is the new name, which
    could not be made. The first one exists, or is no file at all but what a symbolic link was to
    contain. Only when link or rename find no such file, though there is the directory to put it in,
    it is the first one that is missing.
    """
    # A call that was given a descriptor names its number.
    first, second = (
        "" if name is None or isinstance(name, int) else os.fsdecode(name)
        for name in (error.filename, error.filename2)
    )
    if not second:
        return first
    is_first = error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(second) or ".")
    return first if is_first else second


def to_json(error: OnestorError) -> dict[str, str]:
    """The facts of an error, to be sent to the front-end: its class is one that is known there."""
    return {
        "type": next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _CLASSES),
        "step": error.step,
        "cause": error.cause,
        "host": error.host,
        "path": error.path,
    }


def from_json(facts: dict[str, Any], *, host: str = "") -> OnestorError:
    """The error of :func:`to_json` again, with ``host`` filled in where the agent left it open."""
    cls = _CLASSES.get(str(facts.get("type")), OnestorError)
    return cls(
        str(facts.get("step", "")),
        str(facts.get("cause", "")),
        host=str(facts.get("host") or host),
        path=str(facts.get("path", "")),
    )
