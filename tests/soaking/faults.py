"""What goes wrong during a step: a process dies, an action is killed, a host is cut off."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onestor_lib.agent import crashpoints
from tests.oned.life import Life
from tests.oned.mads import Transfer, TransferMad, VmmTransfer
from tests.oned.oned import Oned
from tests.oned.reply import Reply
from tests.soaking.model import Violation
from tests.soaking.world import Standing, World


@dataclass(frozen=True)
class Fault:
    """One of: a crash point, seconds after which oned's child is killed, a host that is cut off."""

    crash_at: str = ""
    killed_after: float = 0.0
    cut: str = ""

    def __str__(self) -> str:
        if self.crash_at:
            return f"dies at {self.crash_at}"
        if self.killed_after:
            return f"killed after {self.killed_after:.2f} s"
        return f"{self.cut} cut off" if self.cut else ""

    def __bool__(self) -> bool:
        return self != Fault()


class _Doomed(TransferMad):
    """Kills what it runs after so many seconds."""

    after = 0.0

    def start_script(self, lines: Sequence[str]) -> Transfer:
        return _doom(super().start_script(lines), self.after)


class _DoomedVmm(VmmTransfer):
    after = 0.0

    def start_line(self, line: str, vm_xml: str = "") -> Transfer:
        return _doom(super().start_line(line, vm_xml), self.after)


def _doom(transfer: Transfer, after: float) -> Transfer:
    timer = threading.Timer(after, transfer.kill, [signal.SIGKILL])
    timer.daemon = True
    timer.start()
    return transfer


class Hand:
    """What a step acts with: oned with the step's fault, and without."""

    def __init__(self, world: World, fault: Fault) -> None:
        self.world, self.fault = world, fault
        self.kvm = Standing(world.bed.frontend, world.kvm.hosts)
        self.life = self._life(Fault())

    def attempt(
        self,
        first: Callable[[Life], Reply],
        again: Callable[[Life], Reply] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask once with the fault; if that fails, `again` (the same unless given) must not.

        `between` looks at what the failure has left.
        """
        if self.fault:
            with self.trouble() as life:
                answer = first(life)
            if answer.success:
                return
            between()
            answer = (again or first)(self.life)
        else:
            answer = first(self.life)
        if not answer.success:
            raise Violation(f"{answer.action}: {answer.error or answer.result}")

    def _life(self, fault: Fault) -> Life:
        bed = self.world.bed
        oned = Oned(bed.cloud, bed.frontend, hosts=bed.oned.hosts)
        if fault.killed_after:
            doomed = _Doomed(bed.frontend, bed.cloud.version)
            vmm = _DoomedVmm(bed.frontend, bed.cloud.version)
            doomed.after = vmm.after = fault.killed_after
            oned.transfer_mad, oned.vmm = doomed, vmm
        if fault.crash_at:
            for mad in (oned.datastore_mad, oned.transfer_mad, oned.vmm):
                mad.environment[crashpoints.VARIABLE] = fault.crash_at
        return Life(oned, self.kvm)

    @contextlib.contextmanager
    def trouble(self) -> Iterator[Life]:
        """oned while the step's fault is there."""
        node = self.world.node(self.fault.cut) if self.fault.cut else None
        if node:
            node.cut()
        try:
            yield self._life(self.fault)
        finally:
            if node:
                node.heal()


def choose(rng: random.Random, actions: Sequence[str], host: str) -> Fault:
    """A fault for a step that runs these actions of ``crashpoints``, and works on `host`."""
    kind = rng.random()
    points = sorted({name for action in actions for name in crashpoints.names(action)})
    if kind < 0.6 and points:
        return Fault(crash_at=rng.choice(points))
    if kind < 0.9 or not host:
        return Fault(killed_after=rng.uniform(0.05, 0.6))
    return Fault(cut=host)
