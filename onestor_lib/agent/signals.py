"""Ending by an exception: ``with`` blocks clean up when a signal asks the process to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from onestor_lib.agent.errors import Terminated

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_by_exception() -> None:
    """Let the signals that end a process raise :class:`Terminated` in its main thread, once."""
    for signum in _ENDING:
        signal.signal(signum, _terminate)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Let the signals that end a process wait for the end of the block, which is bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield  # they reach only the main thread
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: came.append(signum)) for each in _ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            os.kill(os.getpid(), came[0])


def _terminate(signum: int, frame: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not break the clean-up
    raise Terminated
