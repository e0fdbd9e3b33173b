"""Running a command as an action is run: with settings, log, one line for an error, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from onestor_lib.frontend import boundary

_ALL_LINES = (7, 0)  # people see what oned is told from that version on

Work = Callable[[boundary.Request], "str | None"]


def run(name: str, work: Work) -> NoReturn:
    """Do the work; its answer goes to standard output, the log's lines to standard error."""

    def told(request: boundary.Request) -> str | None:
        request.log.version = _ALL_LINES
        return work(request)

    sys.exit(boundary.run("tm", name, [], told))
