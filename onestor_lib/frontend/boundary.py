"""The boundary between oned and an action: everything every action has in common.

Parses nothing itself and decides nothing: it finds the settings, the log and the version of
OpenNebula, runs the action, prints its one answer, and turns whatever happens into one line and
an exit status (contract sections 1.4 and 1.5).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, NoReturn

import onestor_lib
from onestor_lib.agent import crashpoints, signals
from onestor_lib.agent.errors import OnestorError, ProgrammerError, Terminated, from_os_error
from onestor_lib.frontend import bundle, config, log, message

_GARBAGE = 50_000  # objects; imports make more, and all of them stay
_INTERRUPTED = 143  # as a shell says of a program that SIGTERM has ended


@dataclass
class Request:
    """One call of an action."""

    kind: str  # "tm" or "datastore"
    action: str
    argv: list[str]
    stdin: BinaryIO
    settings: config.Settings
    log: log.Log

    def message(self) -> message.Message:
        """The message of a datastore action."""
        found = message.read(self.argv, self.stdin)
        self.log.tally.fact(image=found.text("IMAGE/ID"))
        return found


def run(
    kind: str, action: str, argv: Sequence[str], work: Callable[[Request], str | None] | None = None
) -> int:
    """Run one action as oned calls it; returns the exit status.

    ``work`` does the work and may return the answer; by default it is the function ``run`` of
    ``onestor_lib.frontend.actions.<kind>_<action>``.
    """
    journal = log.Log(action)
    status = _attempt(kind, action, list(argv), journal, work)
    # The action is over: nothing that happens now may change what oned makes of it.
    with contextlib.suppress(Exception, Terminated):
        journal.summary("ok" if status == 0 else "failed")
    return status


def leave(status: int) -> NoReturn:
    """End the process with exit status ``status`` and nothing of the interpreter's own clean-up.

    That takes away from under the threads of libraries what they still use (OPENSSL_init_crypto(3):
    OpenSSL's handler at exit needs all other threads to be done), and who is killed by that has
    failed in oned's eyes. All that is ours is in order by then: ``with`` blocks, and no buffer.
    """
    try:
        for stream in (sys.stderr, sys.stdout):
            stream.flush()
    finally:  # also when one is closed, nobody reads it, or we are ended now
        os._exit(status)


def _attempt(
    kind: str,
    action: str,
    argv: list[str],
    journal: log.Log,
    work: Callable[[Request], str | None] | None,
) -> int:
    try:
        answer = _run(kind, action, argv, journal, work)
        if answer is not None:
            _print(answer)
        return 0
    except OnestorError as error:
        journal.failure(str(error))
        return error.exit_code
    except Terminated:
        journal.failure(f"{action}: terminated")
        return _INTERRUPTED
    except OSError as error:
        journal.failure(str(from_os_error(action, error)))
        return OnestorError.exit_code
    except Exception as error:  # noqa: BLE001 - never a traceback for oned, always one for us
        journal.line("DEBUG", traceback.format_exc())
        cause = f"{type(error).__name__}: {error} (the log has more)"
        journal.failure(str(ProgrammerError(action, cause)))
        return ProgrammerError.exit_code


def _run(
    kind: str,
    action: str,
    argv: list[str],
    journal: log.Log,
    work: Callable[[Request], str | None] | None,
) -> str | None:
    gc.set_threshold(_GARBAGE)
    signals.end_by_exception()
    warnings.simplefilter("ignore")  # a library's would go to stderr, which is oned's
    crashpoints.choose(os.environ.get(crashpoints.VARIABLE, ""))
    remotes = remotes_directory()
    journal.version = log.opennebula_version(remotes)
    settings = config.load(kind, remotes)
    bundle.choose(kind, settings.search_path("HOST_PATH"))
    if first := settings.search_path("FRONTEND_PATH"):
        os.environ["PATH"] = f"{first}:{os.environ.get('PATH', '')}"
    journal.write_to(settings.path("LOG_FILE"))
    if work is None:
        work = importlib.import_module(f"onestor_lib.frontend.actions.{kind}_{action}").run
    request = Request(kind, action, argv, sys.stdin.buffer, settings, journal)
    if kind == "tm":
        journal.tally.read_arguments(argv)
    # Whatever an action or a library prints must not become an image's SOURCE (section 1.4).
    with contextlib.redirect_stdout(sys.stderr):
        return work(request)


def remotes_directory() -> Path:
    """OpenNebula's ``remotes``: onestor_lib lies in it once it is installed."""
    return Path(onestor_lib.__file__).resolve().parent.parent


def _print(answer: str) -> None:
    # A cancelled action has no reader left; its work is done all the same. Nothing may stay in a
    # buffer: a flush that fails at exit would change the exit status to 120.
    view = memoryview(f"{answer}\n".encode("utf-8", "surrogateescape"))
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(1, view) :]
