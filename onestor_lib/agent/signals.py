"""Ending by an exception: ``with`` blocks clean up when a signal asks the process to end."""

from __future__ import annotations

import signal
from types import FrameType

from onestor_lib.agent.errors import Terminated

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_by_exception() -> None:
    """Let the signals that end a process raise :class:`Terminated` in its main thread, once."""
    for signum in _ENDING:
        signal.signal(signum, _terminate)


def _terminate(signum: int, frame: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not break the clean-up
    raise Terminated
