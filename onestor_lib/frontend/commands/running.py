"""Running a command as an action is run: with settings, log, one line for an error, exit status."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn, Union

from onestor_lib.frontend import boundary

_ALL_LINES = (7, 0)  # people see what oned is told from that version on
_BAD = 1  # exit status when the answer is that something is wrong


class Report(NamedTuple):
    """An answer that says whether all is well."""

    text: str
    is_good: bool


Work = Callable[[boundary.Request], Union[str, Report, None]]


def run(name: str, work: Work) -> NoReturn:
    """Do the work; its answer goes to standard output, the log's lines to standard error."""
    status = 0

    def told(request: boundary.Request) -> str | None:
        nonlocal status
        request.log.version = _ALL_LINES
        answer = work(request)
        if isinstance(answer, Report):
            status = 0 if answer.is_good else _BAD
            answer = answer.text
        return answer or None  # nothing to tell is not an empty line

    outcome = boundary.run("tm", name, [], told)
    boundary.leave(outcome or status)
