"""What the doctor says: one finding for each thing that was looked at."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"


class Finding(NamedTuple):
    """``mend`` is a command, or what to do, where something is wrong."""

    level: str
    host: str
    check: str
    text: str
    mend: str = ""


def good(host: str, check: str, text: str) -> Finding:
    return Finding(OK, host, check, text)


def warn(host: str, check: str, text: str, mend: str) -> Finding:
    return Finding(WARNING, host, check, text, mend)


def bad(host: str, check: str, text: str, mend: str) -> Finding:
    return Finding(ERROR, host, check, text, mend)


def counted(count: int, noun: str) -> str:
    """So many of them, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
