"""Scripts of other drivers in OpenNebula's ``remotes``: found, run, or given our place to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NoReturn

from onestor_lib.agent import process
from onestor_lib.agent.errors import Missing, from_os_error
from onestor_lib.frontend import boundary


def find(driver: str, action: str, step: str) -> Path:
    """The script of a transfer manager driver; raises :class:`Missing`."""
    script = boundary.remotes_directory() / "tm" / driver / action
    if not os.access(script, os.X_OK):
        raise Missing(step, "no such script", path=str(script))
    return script


def run(script: Path, argv: list[str], stdin: bytes, step: str, *, timeout: float) -> None:
    """Run a script to its end; raises :class:`CommandFailed` when it fails, or takes too long."""
    process.run([str(script), *argv], timeout=timeout, step=step, stdin=stdin).check(
        step, path=str(script)
    )


def become(script: Path, argv: list[str], stdin: bytes, step: str) -> NoReturn:
    """Let the script run in this process, under its own name, with ``stdin`` once more."""
    with tempfile.TemporaryFile() as again:
        again.write(stdin)
        again.seek(0)
        os.dup2(again.fileno(), 0)
    try:
        os.execv(script, [str(script), *argv])
    except OSError as error:
        raise from_os_error(step, error, path=str(script)) from error
