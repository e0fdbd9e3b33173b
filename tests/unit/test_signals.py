"""agent.signals: what must be done to its end, and ends after that."""

from __future__ import annotations

import os
import signal
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
