"""What OpenNebula's shell library gives driver writers, for drivers in Python.

The names are those of ``scripts_common.sh`` as the manual has them (docs/writing-a-driver.md).
Commands are argv lists, never shell text, and every one has a deadline. Where the shell function
ends the script, these raise; the boundary turns that into the message for oned and the exit status.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from onestor_lib.agent import process
from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend.arguments import arg_host, arg_path
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services.hosts import Hosts

__all__ = [
    "arg_host", "arg_path", "error_message", "exec_and_log", "log", "ssh_exec_and_log",
    "timeout_exec_and_log",
]  # fmt: skip

NO_HURRY = 3600.0  # seconds: the deadline of a command that was given none


def log(request: Request, message: str) -> None:
    """One line for the log of the VM."""
    request.log.info(message)


def error_message(request: Request, message: str) -> NoReturn:
    """End the action: ``message`` is what oned shows."""
    raise OnestorError(request.action, message)


def exec_and_log(request: Request, argv: Sequence[str], error: str = "") -> str:
    """Run a program here and return what it printed; ``error`` is the step named if it fails."""
    return timeout_exec_and_log(request, NO_HURRY, argv, error)


def timeout_exec_and_log(
    request: Request, seconds: float, argv: Sequence[str], error: str = ""
) -> str:
    """As :func:`exec_and_log`, with a deadline: its whole process group ends then."""
    step = error or f"run {argv[0]}"
    result = process.run(argv, timeout=seconds, step=step)
    request.log.line("DEBUG", f"{result} ({result.seconds:.2f} s)")
    return result.check(step).stdout.decode("utf-8", "replace")


def ssh_exec_and_log(
    request: Request, host: str, argv: Sequence[str], error: str = "", *, seconds: float = NO_HURRY
) -> str:
    """As :func:`timeout_exec_and_log` on ``host``: the program gets exactly these arguments."""
    with Hosts(request.settings, request.log).agent(host) as agent:
        answer = agent.call(
            "program.run", argv=list(argv), timeout=seconds, step=error or f"run {argv[0]}"
        )
    return str(answer["stdout"])
