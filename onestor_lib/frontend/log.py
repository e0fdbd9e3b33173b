"""The log of an action: lines for oned on stderr, and all of them in onestor's own log file.

What oned does with stderr depends on its version (contract section 1.5): from 7.0 lines that begin
with a severity go to the log of the VM and the rest is the error message; before, the user is
shown all of stderr. So only 7.0 and later get log lines there.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path
from typing import TextIO

from onestor_lib.agent.errors import one_line
from onestor_lib.frontend.tally import Tally

SEVERITIES = ("DEBUG", "INFO", "WARN", "ERROR")

_MARKER_BEGIN = "ERROR MESSAGE --8<------"
_MARKER_END = "ERROR MESSAGE ------>8--"


class Log:
    """Where the lines of one action go.

    ``name`` is the action's. A digit must never follow a severity (oned from 7.0 on takes it for
    the id of a VM, contract section 8, trap 1): the name stands in between, always.
    """

    def __init__(
        self, name: str, *, stderr: TextIO | None = None, file: Path | None = None
    ) -> None:
        self._name = name
        self._stderr = stderr
        self._file = file
        self.version: tuple[int, ...] = (7, 0)
        self.tally = Tally()

    def write_to(self, file: Path) -> None:
        """Use this log file from now on."""
        self._file = file

    def be_quiet(self) -> None:
        """Write to the file only from now on."""
        self._stderr = io.StringIO()

    def info(self, text: str) -> None:
        self.line("INFO", text)

    def warn(self, text: str) -> None:
        self.line("WARN", text)

    def line(self, severity: str, text: str) -> None:
        """One line of the log; DEBUG goes to the file only and may have several lines."""
        if severity == "DEBUG" or severity not in SEVERITIES:
            # Some of it comes from hosts: continuation lines must not look like entries.
            self._append("DEBUG", "\n    ".join(text.splitlines()))
            return
        text = one_line(text)
        self._append(severity, text)
        if self.version >= (7, 0):
            self._tell(f"{severity}: {self._name}: {text}\n")

    def summary(self, outcome: str) -> None:
        """The last line of the log file about an action: what it was about, and what it took."""
        self._append("INFO", self.tally.summary(self._name, outcome))
        self.tally.keep()

    def failure(self, text: str) -> None:
        """The final line: why the action failed, in the dialect of oned's version."""
        text = one_line(text)
        self._append("ERROR", text)
        if self.version < (6, 2):
            text = f"{_MARKER_BEGIN}\n{text}\n{_MARKER_END}"
        self._tell(text + "\n")

    def _tell(self, text: str) -> None:
        # After a cancel nobody reads any more (contract section 8, trap 8): no reason to stop.
        # Nothing may stay in a buffer: a flush that fails at exit would change the exit status.
        if self._stderr is not None:
            self._stderr.write(text)
            return
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(2, view) :]

    def _append(self, severity: str, text: str) -> None:
        if self._file is None:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = f"{stamp} [{os.getpid()}] {severity} {self._name}: {text}\n"
        with contextlib.suppress(OSError), self._file.open("ab") as file:
            file.write(line.encode("utf-8", "backslashreplace"))


def opennebula_version(remotes: Path, *, unknown: tuple[int, ...] = (7, 0)) -> tuple[int, ...]:
    """The version in ``remotes/VERSION``; ``unknown``, today's by default, when it is not told."""
    try:
        text = (remotes / "VERSION").read_text(encoding="ascii").strip()
        return tuple(int(part) for part in text.split(".")[:2])
    except (OSError, ValueError):
        return unknown
