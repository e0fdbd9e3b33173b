"""An end to work that knows none itself, such as the look-up of a name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from onestor_lib.agent.errors import TransferFailed

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], *, step: str, path: str) -> T:
    """The result of ``work``, or :class:`TransferFailed` when it takes longer than ``seconds``.

    It runs in a thread, which is left alone then and ends with the process.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TransferFailed(step, f"no answer within {seconds:.0f} s", path=path)
    return found[0]
