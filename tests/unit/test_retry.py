"""frontend.retry: how long one tries, and in which rhythm; nobody sleeps here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onestor_lib.frontend import retry


class Clock:
    """Stands in for the module `time`: sleeping makes it later."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(retry, "time", found)
    return found


def exhaust(pauses: Iterator[float], clock: Clock, work: float = 0.0) -> list[float]:
    """Fail after `work` seconds each time, until it is time to give up; the pauses."""
    before = len(clock.slept)
    clock.now += work
    while retry.after(pauses):
        clock.now += work
    return clock.slept[before:]


def test_K8_pauses_grow_up_to_a_limit_and_end(clock: Clock) -> None:
    slept = exhaust(retry.pauses(), clock)
    lengths = [min(0.1 * 2**n, 2.0) for n in range(len(slept))]
    for seconds, length in zip(slept, lengths):
        assert 0.5 * length <= seconds <= 1.5 * length
    assert len(slept) > 10 and lengths[-1] == 2.0
    assert retry.FOR - 4 < sum(slept) < retry.FOR + 1


@pytest.mark.parametrize("work", [1.0, 5.0])
def test_K8_tries_that_take_long_count(clock: Clock, work: float) -> None:
    begin = clock.now
    slept = exhaust(retry.pauses(), clock, work)
    assert len(slept) >= 3
    assert clock.now - begin < retry.FOR + 2 * work + 1


def test_a_first_try_that_takes_longer_than_all_tries_is_followed_by_one_more(
    clock: Clock,
) -> None:
    """The time counts from the first failure on."""
    pauses = retry.pauses()
    clock.now += 2 * retry.FOR
    assert retry.after(pauses) is True


def test_many_do_not_meet(clock: Clock) -> None:
    rhythms = {tuple(round(pause, 6) for pause in exhaust(retry.pauses(), clock)) for _ in range(9)}
    assert len(rhythms) == 9


def test_giving_up_does_not_sleep(clock: Clock) -> None:
    pauses = iter([0.25])
    assert retry.after(pauses) is True
    assert retry.after(pauses) is False
    assert retry.after(pauses) is False
    assert clock.slept == [0.25]
