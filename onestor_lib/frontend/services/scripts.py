"""Scripts of other drivers in OpenNebula's ``remotes``: found, run, or given our place to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed, Missing, from_os_error
from onestor_lib.frontend import boundary


def find(driver: str, action: str, step: str) -> Path:
    """The script of a transfer manager driver; raises :class:`Missing`."""
    script = boundary.remotes_directory() / "tm" / driver / action
    if not os.access(script, os.X_OK):
        raise Missing(step, "no such script", path=str(script))
    return script


def run(script: Path, argv: list[str], stdin: bytes, step: str, *, timeout: float) -> None:
    """Run a script to its end; raises :class:`CommandFailed` when it fails, or takes too long."""
    child = subprocess.Popen(
        [str(script), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = child.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise CommandFailed(step, f"no end within {timeout:.0f} s", path=str(script)) from None
    finally:
        process.end_group(child)
    if child.returncode:
        cause = process.last_lines(said) or "it says nothing"
        raise CommandFailed(step, f"{cause} (exit status {child.returncode})", path=str(script))


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
