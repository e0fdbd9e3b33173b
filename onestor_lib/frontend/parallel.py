"""Asking many at once, so that one that is slow, dead or mad costs the others nothing."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from onestor_lib.agent.errors import HostUnreachable, OnestorError

NONSENSE = "understand the answer"  # the step of errors
_AT_ONCE = 32

K = TypeVar("K")
T = TypeVar("T")


@contextlib.contextmanager
def understood(host: str) -> Iterator[None]:
    """What hosts say is not trusted: raise :class:`OnestorError` for what makes no sense."""
    try:
        yield
    except OnestorError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise OnestorError(NONSENSE, cause, host=host) from error


def ask(
    names: Sequence[K],
    question: Callable[[K], T],
    *,
    at_once: int = _AT_ONCE,
    within: float | None = None,
) -> tuple[dict[K, T], dict[K, OnestorError]]:
    """``question`` of each of ``names``: the answers, and why the others have none.

    Each is asked in a thread of its own, ``at_once`` of them at a time. A question bounds its own
    time (see ``patience`` of :class:`onestor_lib.frontend.services.hosts.Hosts`), or all have
    failed that do not answer ``within`` so many seconds; who interrupts us waits for none. An
    answer that cannot be understood is a failure of whoever gave it.
    """
    waiting: queue.SimpleQueue[K] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[K, T | OnestorError]] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                with understood(str(name)):
                    answer = question(name)
                outcomes.put((name, answer))
            except OnestorError as error:
                outcomes.put((name, error))

    for _ in range(min(at_once, len(names))):
        threading.Thread(target=work, daemon=True).start()
    answers: dict[K, T] = {}
    failed: dict[K, OnestorError] = {}
    deadline = None if within is None else time.monotonic() + within
    for _ in names:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            name, outcome = outcomes.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(outcome, OnestorError):
            failed[name] = outcome
        else:
            answers[name] = outcome
    for name in names:
        if name not in answers and name not in failed:
            failed[name] = HostUnreachable("ask", "no answer in time", host=str(name))
    return answers, failed
