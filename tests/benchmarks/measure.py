"""Measuring: medians of several runs, the yardsticks' in between, so all see one machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

RUNS = 5


@dataclass
class Figure:
    """One line of output: the medians of several runs of ours and of the yardstick.

    Where something else than time is measured, ``unit`` says what stands for the seconds.
    """

    name: str
    seconds: float
    yardstick: str
    yardstick_seconds: float
    limit: float | None  # for the ratio; None: only told
    spread: float = 0.0  # slowest minus fastest run
    yardstick_spread: float = 0.0
    runs: int = 1
    at: str | None = None  # a point of a growth curve
    budget: float | None = None  # seconds it may take besides, whatever the yardstick takes
    ratio: float = field(init=False)
    ok: bool = field(init=False)
    notes: dict[str, float] = field(default_factory=dict)
    unit: str = "s"

    def __post_init__(self) -> None:
        self.ratio = self.seconds / self.yardstick_seconds
        within_limit = self.limit is None or self.ratio <= self.limit
        self.ok = within_limit and (self.budget is None or self.seconds <= self.budget)

    def json(self) -> str:
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(rounded)

    def text(self) -> str:
        unit, name = self.unit, f"{self.name} {self.at}" if self.at else self.name
        limit = "" if self.limit is None else f", limit {self.limit:.3g}x"
        budget = "" if self.budget is None else f", at most {self.budget:g} {unit}"
        verdict = "ok" if self.ok else "MISSED"
        notes = "".join(f"\n{'':22}{key}: {value:.4g}" for key, value in self.notes.items())
        return (
            f"{name:21} {self.seconds:.3f} {unit} (spread {self.spread:.3f}), "
            f"{self.ratio:.3g}x of {self.yardstick} "
            f"({self.yardstick_seconds:.3f} {unit}, spread {self.yardstick_spread:.3f})"
            f"{limit}{budget}: {verdict}{notes}"
        )


@dataclass(frozen=True)
class Yardstick:
    """What a figure is compared with, by work done ``times`` times in place of ours."""

    name: str
    work: Callable[[], object]
    limit: float | None = None
    times: int = 1


def compare(
    name: str,
    ours: Sequence[float],
    yardstick: str,
    theirs: Sequence[float],
    *,
    limit: float | None,
    at: str | None = None,
    budget: float | None = None,
    unit: str = "s",
) -> Figure:
    """The figure of what all runs have taken."""
    return Figure(
        name,
        statistics.median(ours),
        yardstick,
        statistics.median(theirs),
        limit,
        spread=max(ours) - min(ours),
        yardstick_spread=max(theirs) - min(theirs),
        runs=len(ours),
        at=at,
        budget=budget,
        unit=unit,
    )


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes once."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turn(
    works: Sequence[Callable[[], object]],
    *,
    reset: Callable[[], object] = lambda: None,
    runs: int = RUNS,
) -> list[list[float]]:
    """The seconds of each work, all of them run after each other again and again."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for times, work in zip(taken, works):
            reset()
            times.append(seconds(work))
    return taken


def against(
    name: str,
    work: Callable[[], object],
    *yardsticks: Yardstick,
    reset: Callable[[], object] = lambda: None,
    runs: int = RUNS,
    at: str | None = None,
    budget: float | None = None,
) -> Iterator[Figure]:
    """Run all in turn, ``reset`` before each, and compare the medians with each yardstick's."""
    works = [work, *(yardstick.work for yardstick in yardsticks)]
    ours, *others = in_turn(works, reset=reset, runs=runs)
    for yardstick, once in zip(yardsticks, others):
        theirs = [taken * yardstick.times for taken in once]
        yield compare(
            name, ours, yardstick.name, theirs, limit=yardstick.limit, at=at, budget=budget
        )


def within(
    name: str,
    work: Callable[[], object],
    budget: float,
    *,
    reset: Callable[[], object] = lambda: None,
) -> Figure:
    """Run ``work``, ``reset`` before each time, against a fixed number of seconds."""
    (taken,) = in_turn([work], reset=reset)
    return compare(name, taken, "budget", [budget], limit=1.0)
