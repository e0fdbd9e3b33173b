"""Running one program for the front-end: the counterpart of OpenNebula's ssh_exec_and_log."""

from __future__ import annotations

from typing import Any

from onestor_lib.agent import process
from onestor_lib.agent.server import Call


def run(call: Call, *, argv: list[str], timeout: float, step: str) -> dict[str, Any]:
    """Run ``argv`` for at most ``timeout`` seconds; its failure is raised as ``step`` failing."""
    result = process.run(argv, timeout=timeout, step=step).check(step)
    return {"stdout": result.stdout.decode("utf-8", "replace"), "seconds": result.seconds}
