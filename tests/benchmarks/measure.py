"""Measuring: medians of several runs, the yardstick's in between, so both see one machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

RUNS = 5


@dataclass
class Figure:
    """One line of output; seconds are medians, ``limit`` is for the ratio (None: only told).

    Where something else than time is measured, ``unit`` says what stands for the seconds.
    """

    name: str
    seconds: float
    yardstick: str
    yardstick_seconds: float
    limit: float | None
    spread: float = 0.0  # slowest minus fastest run, in seconds
    ratio: float = field(init=False)
    ok: bool = field(init=False)
    notes: dict[str, float] = field(default_factory=dict)
    unit: str = "s"

    def __post_init__(self) -> None:
        self.ratio = self.seconds / self.yardstick_seconds
        self.ok = self.limit is None or self.ratio <= self.limit

    def json(self) -> str:
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(rounded)

    def text(self) -> str:
        limit = "" if self.limit is None else f", limit {self.limit:g}x"
        verdict = "ok" if self.ok else "TOO SLOW"
        notes = "".join(f"\n{'':16}{key}: {value:.4g}" for key, value in self.notes.items())
        return (
            f"{self.name:16}{self.seconds:.3f} {self.unit} (spread {self.spread:.3f}), "
            f"{self.ratio:.3g}x of {self.yardstick} ({self.yardstick_seconds:.3f} {self.unit})"
            f"{limit}: {verdict}{notes}"
        )


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes once."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def against(
    name: str,
    work: Callable[[], object],
    yardstick: str,
    yardstick_work: Callable[[], object],
    *,
    limit: float | None,
    reset: Callable[[], object] = lambda: None,
    runs: int = RUNS,
) -> Figure:
    """Run both in turn, ``reset`` before each, and compare the medians."""
    ours, theirs = [], []
    for _ in range(runs):
        reset()
        ours.append(seconds(work))
        reset()
        theirs.append(seconds(yardstick_work))
    return Figure(
        name,
        statistics.median(ours),
        yardstick,
        statistics.median(theirs),
        limit,
        max(ours) - min(ours),
    )


def within(name: str, work: Callable[[], object], budget: float, runs: int = RUNS) -> Figure:
    """Run ``work`` against a fixed number of seconds."""
    taken = [seconds(work) for _ in range(runs)]
    spread = max(taken) - min(taken)
    return Figure(name, statistics.median(taken), "budget", budget, 1.0, spread)
