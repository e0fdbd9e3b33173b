"""Planning: a step draws its lots and claims what it works on before anything begins.

So the steps of a wave do not meet on one VM, as oned sees to it, but do meet on hosts, in caches
and on images. One thread plans, in one order: the same seed makes the same steps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar, Union

from tests.soaking import faults
from tests.soaking.faults import LINK, POWER, PROGRAM, ROOM, Actor, Fault
from tests.soaking.model import DiskModel, ImageModel, VmModel
from tests.soaking.world import HYPERVISORS, SMALL, World

Key = tuple[str, Union[int, str]]
Work = Callable[[Actor], None]
Thing = TypeVar("Thing", VmModel, ImageModel, DiskModel)


class NotNow(Exception):
    """There is nothing this step could work on, or others in the wave do."""


class Claims:
    """What the steps of a wave work on: alone, or with others."""

    def __init__(self) -> None:
        self.alone: set[Key] = set()
        self.shared: Counter[Key] = Counter()

    def copy(self) -> Claims:
        copied = Claims()
        copied.alone, copied.shared = set(self.alone), Counter(self.shared)
        return copied


class Plan:
    """One step while it is planned; `number` is when what it makes is born."""

    def __init__(
        self, world: World, number: int, rng: random.Random, claims: Claims, *, faulty: bool
    ) -> None:
        self.world, self.model, self.number, self.rng = world, world.model, number, rng
        self.claims = claims
        self.fault = Fault()
        self._faulty = faulty

    def take_over(self, key: Key) -> None:
        """Claim what this step shares with nobody for itself alone."""
        self.claims.shared[key] -= 1
        self.take(key)

    def take(self, *keys: Key) -> None:
        """Claim each of these for this step alone."""
        for key in keys:
            if key in self.claims.alone or self.claims.shared[key]:
                raise NotNow
            self.claims.alone.add(key)

    def share(self, *keys: Key) -> None:
        """Claim each of these together with others."""
        for key in keys:
            if key in self.claims.alone:
                raise NotNow
            self.claims.shared[key] += 1

    def host(self, *but: str) -> str:
        """A hypervisor to work on with others."""
        free = [
            name
            for name in HYPERVISORS
            if name not in but and ("host", name) not in self.claims.alone
        ]
        if not free:
            raise NotNow
        chosen = self.rng.choice(free)
        self.share(("host", chosen))
        return chosen

    def vm(self, suits: Callable[[VmModel], bool]) -> VmModel:
        """A VM for this step alone; its host is shared."""
        found = [
            vm
            for vm in self.model.vms
            if suits(vm)
            and vm.key not in self.claims.alone
            and ("host", vm.host) not in self.claims.alone
        ]
        vm = self._by_lot(found)
        self.take(vm.key)
        self.share(("host", vm.host))
        return vm

    def disk(self, vm: VmModel, suits: Callable[[DiskModel], bool]) -> DiskModel:
        return self._by_lot([disk for disk in vm.disks if suits(disk)])

    def image(self, suits: Callable[[ImageModel], bool]) -> ImageModel:
        """An image to read, with others."""
        found = [
            image
            for image in self.model.images
            if suits(image) and image.key not in self.claims.alone
        ]
        image = self._by_lot(found)
        self.share(image.key)
        return image

    def own_image(self, suits: Callable[[ImageModel], bool]) -> ImageModel:
        """An image for this step alone."""
        found = [
            image
            for image in self.model.images
            if suits(image)
            and image.key not in self.claims.alone
            and not self.claims.shared[image.key]
        ]
        image = self._by_lot(found)
        self.take(image.key)
        return image

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def may_fail(self, *actions: str, needs: str = "", uses: str = "", fills: str = "") -> None:
        """Let something go wrong, if it is this step's turn.

        A process may die at a crash point of one of the `actions`. Where nobody else works, a host
        that the step `needs` may be cut off or have a program that fails, one that it `fills` may
        be full, and the replica that it `uses` if it is there may lose whatever there is.
        """
        if not self._faulty:
            return
        losses = [(needs, LINK), (needs, PROGRAM), (uses, LINK), (uses, POWER), (uses, PROGRAM)]
        losses += [(host, ROOM) for host in (uses, fills) if host in SMALL]
        possible = [each for each in losses if each[0] and self._is_ours(each[0])]
        self.fault = faults.choose(self.rng, actions, possible, needed=needs)
        if self.fault.loss:
            self.take_over(("host", self.fault.host))

    def _is_ours(self, host: str) -> bool:
        """Whether no other step works on a host."""
        return self.claims.shared["host", host] == 1

    def _by_lot(self, found: Sequence[Thing]) -> Thing:
        if not found:
            raise NotNow
        return self.rng.choice(found)
