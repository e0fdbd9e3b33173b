"""benchmarks.measure: what is made of the runs; nothing is timed here."""

from __future__ import annotations

import json
import time

import pytest

from tests.benchmarks import measure
from tests.benchmarks.measure import Yardstick, against, compare, in_turn


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which works move on by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_median_and_spread() -> None:
    made = compare("a", [3.0, 1.0, 2.0, 9.0, 2.5], "b", [5.0, 4.0, 6.0], limit=None)
    assert (made.seconds, made.spread, made.runs) == (2.5, 8.0, 5)
    assert (made.yardstick_seconds, made.yardstick_spread) == (5.0, 2.0)
    assert made.ratio == 0.5


@pytest.mark.parametrize(
    ("limit", "budget", "ok"),
    [
        (None, None, True),
        (0.5, None, True),
        (0.49, None, False),
        (None, 2.0, True),
        (None, 1.9, False),
        (0.5, 1.9, False),
        (0.49, 2.0, False),
    ],
)
def test_limit_and_budget_must_both_be_kept(
    limit: float | None, budget: float | None, ok: bool
) -> None:
    made = compare("a", [2.0], "b", [4.0], limit=limit, budget=budget)
    assert made.ok is ok
    assert made.text().endswith(": ok" if ok else ": MISSED")


def test_runs_are_in_turn_and_reset_is_not_measured(clock: list[float]) -> None:
    done = []

    def takes(name: str, seconds: float) -> None:
        done.append(name)
        clock[0] += seconds

    works = [lambda: takes("ours", 2.0), lambda: takes("theirs", 3.0)]
    taken = in_turn(works, reset=lambda: takes("reset", 50.0), runs=2)
    assert taken == [[2.0, 2.0], [3.0, 3.0]]
    assert done == ["reset", "ours", "reset", "theirs"] * 2


def test_a_figure_for_each_yardstick_which_may_count_several_times(clock: list[float]) -> None:
    def takes(seconds: float) -> None:
        clock[0] += seconds

    one = Yardstick("one", lambda: takes(1.0), 0.5)
    four = Yardstick("four times one", lambda: takes(1.0), 0.5, times=4)
    first, second = against("a", lambda: takes(2.0), one, four, at="10")
    assert (first.ratio, first.ok) == (2.0, False)
    assert (second.ratio, second.ok) == (0.5, True)
    assert {each.at for each in (first, second)} == {"10"}
    assert {each.runs for each in (first, second)} == {measure.RUNS}
    assert measure.RUNS >= 5


def test_json_is_one_object_on_a_line() -> None:
    made = compare("a", [1.0, 2.0], "b", [3.0], limit=0.6, at="64M", unit="MB")
    made.notes["of which c"] = 0.123456
    text = made.json()
    assert "\n" not in text
    read = json.loads(text)
    assert {key: read[key] for key in ("name", "at", "seconds", "yardstick", "limit", "ok")} == {
        "name": "a", "at": "64M", "seconds": 1.5, "yardstick": "b", "limit": 0.6, "ok": True,
    }  # fmt: skip
    assert (read["ratio"], read["spread"], read["unit"]) == (0.5, 1.0, "MB")
