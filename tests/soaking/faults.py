"""What goes wrong during a step: a process dies, an action is killed, a host loses something."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import put_before, take_from_before
from tests.oned.life import Life
from tests.oned.mads import DatastoreMad, Mad, TransferMad, VmmTransfer
from tests.oned.oned import Oned
from tests.oned.reply import Reply
from tests.oned.runner import Call
from tests.soaking.model import Violation
from tests.soaking.world import IdleKvm, World
from tests.testbed import DATASTORES


class Loss(NamedTuple):
    """What a host can lose, and get back; without something `vital` it is of no use."""

    words: str
    begin: Callable[[Node], object]
    end: Callable[[Node], object]
    vital: bool = False


def _full(left: int) -> Loss:
    """Datastores with no room but `left` bytes, or a little more."""

    def fill_up(node: Node) -> None:
        figures = os.statvfs(node.path(DATASTORES))
        free = figures.f_bavail * figures.f_frsize - left
        with node.path(_FILLER).open("wb") as file:
            for metadata in (0, 1 << 18, 1 << 20, 1 << 22):  # of the file system, for the filler
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, free - metadata)
                    return
        raise RuntimeError(f"{node.name} cannot be filled up")

    def make_room(node: Node) -> None:
        node.path(_FILLER).unlink()

    return Loss(f"full but for {left >> 10} KiB", fill_up, make_room)


def _failing(program: str) -> Loss:
    """A program that fails, whatever it is asked for."""
    return Loss(
        f"where {program} fails",
        lambda node: put_before(node, program, "echo planted failure >&2; exit 1"),
        lambda node: take_from_before(node, program),
        vital=program == "python3",
    )


_FILLER = f"{DATASTORES}/filler"
_PROGRAMS = ("qemu-img", "virsh", "python3")
LINK = Loss("cut off", Node.cut, Node.heal, vital=True)
POWER = Loss("without power", Node.kill, Node.start)
ROOM = _full(0)  # how much it is full is drawn when it is chosen
PROGRAM = _failing(_PROGRAMS[0])  # and so is which one


@dataclass(frozen=True)
class Fault:
    """One of: a crash point, oned's child that is killed, a host that loses something.

    Of a crash point, `actions` are the kind of actions that pass it, datastore or tm. Kills and
    losses come `after` so many seconds; `is_needed` says that without what is lost from the
    beginning nothing can be done.
    """

    crash_at: str = ""
    actions: str = ""
    killed: bool = False
    host: str = ""
    loss: Loss | None = None
    after: float = 0.0
    is_needed: bool = False

    def __str__(self) -> str:
        after = f" after {self.after:.2f} s" if self.after else ""
        if self.crash_at:
            return f"dies at {self.crash_at}"
        if self.killed:
            return f"killed{after}"
        return f"{self.host} {self.loss.words}{after}" if self.loss else ""

    def __bool__(self) -> bool:
        return self != Fault()


def choose(
    rng: random.Random, actions: Sequence[str], losses: Sequence[tuple[str, Loss]], needed: str
) -> Fault:
    """A fault for a step that runs these actions of ``crashpoints``, and needs a host's link."""
    sort, after = rng.random(), rng.uniform(0.1, 0.5)
    passed = sorted({(name, action) for action in actions for name in crashpoints.names(action)})
    if sort < 0.4 and passed:
        name, action = rng.choice(passed)
        return Fault(crash_at=name, actions=action.partition(".")[0])
    if sort < 0.55 or not losses:
        return Fault(killed=True, after=after)
    host, loss = rng.choice(losses)
    if loss is ROOM:
        loss, after = _full(rng.randrange(6) * (256 << 10)), 0.0
    elif loss is PROGRAM:
        loss, after = _failing(rng.choice(_PROGRAMS)), rng.choice([0.0, after])
    elif loss is LINK and rng.random() < 0.4:
        after = 0.0
    is_needed = loss.vital and host == needed and not after
    return Fault(host=host, loss=loss, after=after, is_needed=is_needed)


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
            raise Violation(f"{answer.action} was a success without {self.fault.host}")
        self.took_effect = not answer.success
        return self.took_effect

    @contextlib.contextmanager
    def trouble(self) -> Iterator[Life]:
        """oned while the step's fault is there."""
        loss = self.fault.loss
        with self._lost(loss) if loss else contextlib.nullcontext():
            yield self._life(self.fault)

    @contextlib.contextmanager
    def _lost(self, loss: Loss) -> Iterator[None]:
        """A host without something: from a moment on, if it comes to that, until all is done."""
        node = self.world.node(self.fault.host)
        is_over = threading.Event()

        def begin() -> bool:
            if is_over.wait(self.fault.after):
                return False
            loss.begin(node)
            return True

        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(begin)
            if not self.fault.after:
                begun.result()
            try:
                yield
            finally:
                is_over.set()
                if begun.result():
                    loss.end(node)

    def _life(self, fault: Fault) -> Life:
        bed = self.world.bed
        oned = Oned(bed.cloud, bed.frontend, hosts=bed.oned.hosts)
        if fault.killed:
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
        mad.after = self.fault.after
        return mad


def require_success(*answers: Reply) -> None:
    for answer in answers:
        if not answer.success:
            raise Violation(f"{answer.action}: {answer.error or answer.result}")
