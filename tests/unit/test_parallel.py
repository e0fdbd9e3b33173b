"""frontend.parallel: many are asked at once, and none spoils it for the others."""

from __future__ import annotations

import threading

import pytest

from onestor_lib.agent.errors import Missing, OnestorError
from onestor_lib.frontend import parallel


def test_answers_and_failures() -> None:
    def question(name: str) -> int:
        if name == "missing":
            raise Missing("look", "nothing there")
        return {"one": 1, "two": 2}[name]

    answers, failed = parallel.ask(["one", "missing", "mad", "two"], question)
    assert answers == {"one": 1, "two": 2}
    assert isinstance(failed["missing"], Missing)
    assert str(failed["mad"]) == "understand the answer mad: KeyError: 'mad'"
    assert parallel.ask([], question) == ({}, {})


def test_all_at_once_but_not_more_than_that() -> None:
    barrier = threading.Barrier(3, timeout=10)  # breaks unless three are there together
    running, most, lock = 0, 0, threading.Lock()

    def question(name: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait()
        with lock:
            running -= 1

    _, failed = parallel.ask(list(range(9)), question, at_once=3)
    assert failed == {} and most == 3


def test_who_does_not_answer_in_time_has_failed() -> None:
    end = threading.Event()

    def question(name: str) -> str:
        if name == "slow":
            end.wait(60)
        return name

    try:
        answers, failed = parallel.ask(["slow", "quick"], question, within=0.5)
    finally:
        end.set()
    assert answers == {"quick": "quick"}
    assert str(failed["slow"]) == "ask slow: no answer in time"


def test_what_makes_no_sense_is_an_error_of_the_host() -> None:
    with (
        pytest.raises(OnestorError, match="host01: ValueError: no number"),
        parallel.understood("host01"),
    ):
        raise ValueError("no number")
    with pytest.raises(Missing), parallel.understood("host01"):
        raise Missing("look", "nothing there")
