"""A soak: waves of random steps at the same time, some with a fault, all checked by the model."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.soaking import disks, images, machines, vms
from tests.soaking.checks import check_all, check_caches, check_log
from tests.soaking.faults import Actor, Fault
from tests.soaking.kinds import KINDS, Kind
from tests.soaking.model import Violation
from tests.soaking.plan import Claims, NotNow, Plan, Work
from tests.soaking.world import World

STEPS = (images, vms, disks, machines)  # what fills KINDS
_TRIES = 20  # to find another step for a wave
_FAULTY = 0.35  # of the steps that something can go wrong in
_EVEN = 3  # so often at most one kind comes as another one in an even soak
_NARROW = 3  # steps in every third wave: where few are at work a host is one step's own to lose
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
    took_effect: bool = False
    violation: str = ""

    def __str__(self) -> str:
        fault = f" [{self.fault}]" if self.fault else ""
        return f"{self.number:6} {self.kind.name:16} {self.what}{fault}"


@dataclass
class Report:
    """How far a soak has come; `effects` are faults that have made an action fail."""

    steps: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    effects: int = 0
    waves: int = 0


class Soak:
    """Random steps on `world`, the same for the same seed; `say` is told each one.

    `weights` say for kinds of steps, by name, how often they come instead of as usual; `faulty` is
    how many of the steps have a fault in which something can go wrong. An `even` soak prefers what
    has come least often.
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
        even: bool = False,
    ) -> None:
        self.world, self.report = world, Report()
        self._rng, self._width, self._say = random.Random(seed), width, say
        self._weights = [weights.get(kind.name, kind.weight) for kind in KINDS]
        self._faulty, self._even = faulty, even
        self._number = 0
        self._planned: Counter[str] = Counter()

    def run(self, steps: int) -> Report:
        """So many steps, and a look at everything in the end; raises :class:`Violation`."""
        with ThreadPoolExecutor(self._width) as pool:
            while self._number < steps:
                width = min(_NARROW, self._width) if self.report.waves % 3 == 0 else self._width
                wave = self._plan(min(width, steps - self._number))
                list(pool.map(self._do, wave))
                self._after(wave)
                if self.report.waves % _REST == 0:
                    self._rest()
        self._rest()
        return self.report

    def _plan(self, width: int) -> list[Planned]:
        wave: list[Planned] = []
        claims = Claims()
        for kind in self._candidates():
            faulty = self._rng.random() < self._faulty
            plan = Plan(self.world, self._number + 1, self._rng, claims.copy(), faulty=faulty)
            try:
                what, work = kind.plan(plan)
            except NotNow:
                continue
            claims = plan.claims
            self._number += 1
            self._planned[kind.name] += 1
            wave.append(Planned(self._number, kind, what, work, plan.fault))
            if len(wave) == width:
                break
        return wave

    def _candidates(self) -> Iterator[Kind]:
        """Kinds to try for one wave."""
        if not self._even:
            yield from self._rng.choices(KINDS, self._weights, k=_TRIES)
            return
        for _ in range(self._width):
            lots = {kind.name: self._rng.random() for kind in KINDS}
            yield from sorted(KINDS, key=lambda kind: (self._share(kind), lots[kind.name]))

    def _share(self, kind: Kind) -> float:
        """How much a kind has had of what is due to it, where all are to come."""
        return self._planned[kind.name] / min(max(kind.weight, 1), _EVEN)

    def _do(self, step: Planned) -> None:
        begin = time.monotonic()
        actor = Actor(self.world, step.fault)
        try:
            step.work(actor)
        except Violation as violation:
            step.violation = str(violation)
        except Exception as error:
            raise RuntimeError(f"the soak itself: {step}") from error
        step.seconds = time.monotonic() - begin
        step.took_effect = actor.took_effect

    def _after(self, wave: list[Planned]) -> None:
        self.report.waves += 1
        for step in wave:
            self.report.steps[step.kind.name] += 1
            self.report.faults += bool(step.fault)
            self.report.effects += step.took_effect
            self._say(f"{step}, {step.seconds:.1f} s")
        if violations := [f"{step}: {step.violation}" for step in wave if step.violation]:
            raise Violation("\n".join(violations))
        said = self.world.new_log()
        if not any(step.fault for step in wave):
            check_log(said, self.world.tampered)
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
        said = self.world.onestor("recovery", "run")
        try:
            self.world.settle_copies(must=True)
        except Violation as violation:
            raise Violation(f"{violation}\n{said}") from None
        self.world.onestor("cache", "prune")  # what was given up, no fill may ever sweep
        check_all(self.world)
        self.world.new_log()
