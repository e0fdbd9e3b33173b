"""A soak: waves of random steps at the same time, some with a fault, all checked by the model."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.soaking.checks import check_all, check_caches, check_log
from tests.soaking.faults import Fault, Hand
from tests.soaking.model import Violation
from tests.soaking.plan import Claims, NotNow, Plan, Work
from tests.soaking.steps import KINDS, Kind
from tests.soaking.world import World

_TRIES = 20  # to find another step for a wave
_FAULTY = 0.35  # of the steps that something can go wrong in
_REST = 25  # waves until everything is looked at


@dataclass
class Planned:
    """A step of a wave."""

    number: int
    kind: Kind
    what: str
    work: Work
    fault: Fault
    seconds: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        fault = f" [{self.fault}]" if self.fault else ""
        return f"{self.number:6} {self.kind.name:18} {self.what}{fault}"


@dataclass
class Report:
    """How far a soak has come."""

    steps: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    waves: int = 0


class Soak:
    """Random steps on `world`, the same for the same seed; `say` is told each one.

    `weights` say for kinds of steps, by name, how often they come instead of as usual; `faulty` is
    how many of the steps have a fault in which something can go wrong.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        *,
        width: int = 6,
        say: Callable[[str], None] = print,
        weights: Mapping[str, float] = MappingProxyType({}),
        faulty: float = _FAULTY,
    ) -> None:
        self.world, self.report = world, Report()
        self._faulty = faulty
        self._weights = [weights.get(kind.name, kind.weight) for kind in KINDS]
        self._rng, self._width, self._say = random.Random(seed), width, say
        self._number = 0

    def run(self, steps: int) -> Report:
        """So many steps, and a look at everything in the end; raises :class:`Violation`."""
        with ThreadPoolExecutor(self._width) as pool:
            while self._number < steps:
                wave = self._plan(min(self._width, steps - self._number))
                list(pool.map(self._do, wave))
                self._after(wave)
                if self.report.waves % _REST == 0:
                    self._rest()
        self._rest()
        return self.report

    def _plan(self, width: int) -> list[Planned]:
        wave: list[Planned] = []
        claims = Claims()
        for _ in range(_TRIES):
            (kind,) = self._rng.choices(KINDS, self._weights)
            faulty = self._rng.random() < self._faulty
            plan = Plan(self.world, self._number + 1, self._rng, claims.copy(), faulty=faulty)
            try:
                what, work = kind.plan(plan)
            except NotNow:
                continue
            claims = plan.claims
            self._number += 1
            wave.append(Planned(self._number, kind, what, work, plan.fault))
            if len(wave) == width:
                break
        return wave

    def _do(self, step: Planned) -> None:
        begin = time.monotonic()
        try:
            step.work(Hand(self.world, step.fault))
        except Violation as violation:
            step.problem = str(violation)
        except Exception:  # noqa: BLE001 - whatever it is, it is told with its step
            step.problem = traceback.format_exc()
        step.seconds = time.monotonic() - begin

    def _after(self, wave: list[Planned]) -> None:
        self.report.waves += 1
        for step in wave:
            self.report.steps[step.kind.name] += 1
            self.report.faults += bool(step.fault)
            self._say(f"{step}, {step.seconds:.1f} s")
        if problems := [f"{step}: {step.problem}" for step in wave if step.problem]:
            raise Violation("\n".join(problems))
        said = self.world.new_log()
        if not any(step.fault for step in wave):
            check_log(said)
        check_caches(self.world)
        self.world.model.settle()
        if any(step.kind.name == "recovery_pass" for step in wave):
            self.world.settle_copies(must=False)
        else:
            self.world.forget_earlier()

    def _rest(self) -> None:
        """Look at everything while nothing is at work."""
        self._say("       at rest")
        time.sleep(1.1)  # all disks that ask for a copy each second are due again
        said = self.world.recovery_pass()
        try:
            self.world.settle_copies(must=True)
        except Violation as violation:
            raise Violation(f"{violation}\n{said}") from None
        check_all(self.world)
