"""agent.signals: what must be done to its end, and ends after that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from onestor_lib.agent import signals
from onestor_lib.agent.errors import Terminated


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in signals._ENDING}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    signals.end_by_exception()
    done = []
    with pytest.raises(Terminated):
        with signals.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("thawed")
        done.append("never")
    assert done == ["thawed"]


def test_without_one_nothing_happens() -> None:
    signals.end_by_exception()
    handler = signal.getsignal(signal.SIGTERM)
    with signals.postponed():
        pass
    assert signal.getsignal(signal.SIGTERM) is handler


def test_other_threads_leave_the_signals_alone() -> None:
    """They may not set handlers; a signal reaches only the main thread anyway."""
    signals.end_by_exception()
    done = []

    def work() -> None:
        with signals.postponed():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signals._terminate]
