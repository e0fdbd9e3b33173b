"""What goes wrong during a step: a process dies, an action is killed, a host is cut off."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onestor_lib.agent import crashpoints
from tests.oned.life import Life
from tests.oned.mads import DatastoreMad, Mad, TransferMad, VmmTransfer
from tests.oned.oned import Oned
from tests.oned.reply import Reply
from tests.oned.runner import Call
from tests.soaking.model import Violation
from tests.soaking.world import IdleKvm, World


@dataclass(frozen=True)
class Fault:
    """One of: a crash point, seconds after which oned's child is killed, a host that is cut off.

    Of a crash point, `actions` are the kind of actions that pass it, datastore or tm; `is_needed`
    says that nothing can be done without the host that is cut off.
    """

    crash_at: str = ""
    actions: str = ""
    killed_after: float = 0.0
    cut: str = ""
    is_needed: bool = False

    def __str__(self) -> str:
        if self.crash_at:
            return f"dies at {self.crash_at}"
        if self.killed_after:
            return f"killed after {self.killed_after:.2f} s"
        return f"{self.cut} cut off" if self.cut else ""

    def __bool__(self) -> bool:
        return self != Fault()


def choose(rng: random.Random, actions: Sequence[str], hosts: Sequence[str], needed: str) -> Fault:
    """A fault for a step that runs these actions of ``crashpoints``; one of `hosts` may be cut."""
    sort = rng.random()
    passed = sorted({(name, action) for action in actions for name in crashpoints.names(action)})
    if sort < 0.5 and passed:
        name, action = rng.choice(passed)
        return Fault(crash_at=name, actions=action.partition(".")[0])
    if sort < 0.8 or not hosts:
        return Fault(killed_after=rng.uniform(0.1, 0.5))
    host = rng.choice(hosts)
    return Fault(cut=host, is_needed=host == needed)


class _Doomed(Mad):
    """Kills what it starts after so many seconds."""

    after: float

    def start(self, command: str, stdin: str = "", timeout: float | None = None) -> Call:
        call = super().start(command, stdin, timeout)
        timer = threading.Timer(self.after, call.kill, [signal.SIGKILL])
        timer.daemon = True
        timer.start()
        return call


class _DoomedDatastoreMad(_Doomed, DatastoreMad):
    pass


class _DoomedTransferMad(_Doomed, TransferMad):
    pass


class _DoomedVmm(_Doomed, VmmTransfer):
    pass


DoomedMad = TypeVar("DoomedMad", bound=_Doomed)


class Actor:
    """What a step acts with: oned with the step's fault, and without.

    `took_effect` says that the fault has made an action fail.
    """

    def __init__(self, world: World, fault: Fault) -> None:
        self.world, self.fault = world, fault
        self.kvm = IdleKvm(world.bed.frontend, world.kvm.hosts)
        self.life = self._life(Fault())
        self.took_effect = False

    def attempt(
        self,
        first: Callable[[Life], Reply],
        again: Callable[[Life], Reply] | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Ask once with the fault; if that fails, `again` (the same unless given) must not.

        `between` looks at what the failure has left.
        """
        if self.fails(first):
            between()
            require_success((again or first)(self.life))

    def fails(self, request: Callable[[Life], Reply]) -> bool:
        """Whether a request fails because of the step's fault; without one it must not."""
        if not self.fault:
            require_success(request(self.life))
            return False
        with self.trouble() as life:
            answer = request(life)
        if answer.success and self.fault.is_needed:
            raise Violation(f"{answer.action} was a success without {self.fault.cut}")
        self.took_effect = not answer.success
        return self.took_effect

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

    def _life(self, fault: Fault) -> Life:
        bed = self.world.bed
        oned = Oned(bed.cloud, bed.frontend, hosts=bed.oned.hosts)
        if fault.killed_after:
            oned.datastore_mad = self._doomed(_DoomedDatastoreMad)
            oned.transfer_mad = self._doomed(_DoomedTransferMad)
            oned.vmm = self._doomed(_DoomedVmm)
        if fault.crash_at:
            mads = [oned.datastore_mad] if fault.actions == "datastore" else []
            for mad in mads or (oned.transfer_mad, oned.vmm):
                mad.environment[crashpoints.VARIABLE] = fault.crash_at
        return Life(oned, self.kvm)

    def _doomed(self, kind: type[DoomedMad]) -> DoomedMad:
        mad = kind(self.world.bed.frontend, self.world.bed.cloud.version)
        mad.after = self.fault.killed_after
        return mad


def require_success(*answers: Reply) -> None:
    for answer in answers:
        if not answer.success:
            raise Violation(f"{answer.action}: {answer.error or answer.result}")
