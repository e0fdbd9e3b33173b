"""The kinds of steps there are, and what they have in common.

A step is a function of a plan: it draws lots and claims what it works on, and returns what it is
about and its work, which an actor does later.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.soaking.model import MB, DiskModel
from tests.soaking.plan import Plan, Work
from tests.soaking.world import REPLICA

MOST_IMAGES, MOST_VMS, MOST_DISKS, MOST_SNAPSHOTS = 12, 18, 3, 3
FEWEST = 2  # images or VMs that stay

Planner = Callable[[Plan], tuple[str, Work]]


@dataclass(frozen=True)
class Kind:
    """A kind of step; `plan` may raise NotNow. `weight` is how often it comes, among the others."""

    name: str
    weight: float
    plan: Planner


KINDS: list[Kind] = []


def step(weight: float) -> Callable[[Planner], Planner]:
    """Make a function that plans into a kind of step."""

    def note(plan: Planner) -> Planner:
        KINDS.append(Kind(plan.__name__, weight, plan))
        return plan

    return note


def noise(rng: random.Random, megabytes: int) -> bytes:
    """Data with zeros between."""
    parts = [
        rng.randbytes(256 << 10) if rng.random() < 0.6 else bytes(256 << 10)
        for _ in range(4 * megabytes)
    ]
    return b"".join(parts)


def new_disk(plan: Plan) -> DiskModel:
    """A disk of an image that may be used; its attributes by lot."""
    rng = plan.rng
    image = plan.image(lambda image: not image.image.persistent or not image.in_use)
    attributes = {}
    if image.image.persistent:
        plan.take_over(image.key)
    elif image.image.format == "qcow2":
        if plan.chance(0.3):
            attributes["SIZE"] = str(len(image.content) // MB + rng.randint(1, 2))
        if plan.chance(0.1):
            attributes["QCOW2_STANDALONE"] = "YES"
    if plan.chance(0.5):
        attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    disk = plan.world.bed.cloud.image_disk(image.image, **attributes)
    size = int(attributes["SIZE"]) * MB if "SIZE" in attributes else len(image.content)
    return DiskModel.of(disk, image, size)


def making(disk: DiskModel) -> str:
    """The action, by its name among crash points, that makes a disk."""
    if disk.is_persistent:
        return "tm.ln"
    thin = disk.format == "qcow2" and "QCOW2_STANDALONE" not in disk.disk.attributes
    return "tm.clone thin" if thin else "tm.clone"


def share_replica(plan: Plan) -> None:
    """Work by way of the replica, which others may use, too."""
    plan.share(("host", REPLICA))


def share_block_jobs(plan: Plan) -> None:
    """Not beside a recovery pass: libvirt moves or saves no VM whose disk is being copied.

    OpenNebula's action fails then, once; the VM stays as it was.
    """
    plan.share(("block jobs", "anywhere"))
