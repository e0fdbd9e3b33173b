"""Images come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.drivers.conftest import entry_of
from tests.oned import objects
from tests.oned.life import Life
from tests.oned.objects import Image
from tests.oned.oned import RequestFailed
from tests.soaking.faults import Actor, require_success
from tests.soaking.kinds import FEWEST, MOST_IMAGES, noise, step
from tests.soaking.model import MB, DiskModel, ImageModel, Violation
from tests.soaking.plan import NotNow, Plan, Work
from tests.soaking.world import World

_LINGER = 5.0  # seconds that an agent may go on behind the end of its action


@step(3)
def register(plan: Plan) -> tuple[str, Work]:
    """oneimage create."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    content = noise(plan.rng, plan.rng.randint(2, 5))
    image_format = plan.rng.choice(["qcow2", "qcow2", "raw"])
    persistent = plan.chance(0.2)
    datastore = plan.rng.choice(plan.world.image_datastores)
    plan.may_fail("datastore.cp")

    def work(actor: Actor) -> None:
        bed, path = plan.world.bed, f"/var/tmp/soak-{plan.number}"
        bed.frontend.write(f"{path}.raw", content)
        if image_format == "qcow2":
            argv = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"]
            bed.frontend.run([*argv, f"{path}.raw", f"{path}.qcow2"])
        file = f"{path}.{image_format}"
        image = made(
            actor, lambda life: life.oned.create_image(file, datastore, persistent=persistent)
        )
        bed.frontend.run(["rm", "-f", f"{path}.raw", f"{path}.qcow2"])
        add(plan, image, content)

    return f"{image_format} {len(content) // MB} MB{' persistent' * persistent}", work


@step(1)
def clone_image(plan: Plan) -> tuple[str, Work]:
    """oneimage clone."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    original = plan.image(
        lambda image: not ((image.image.persistent and image.in_use) or image.snapshots)
    )
    content = original.content
    datastore = plan.rng.choice(plan.world.image_datastores)
    plan.may_fail("datastore.cp")

    def work(actor: Actor) -> None:
        image = made(actor, lambda life: life.oned.clone_image(original.image, datastore))
        add(plan, image, content)

    return f"image {original.image.id}", work


@step(2)
def remove_image(plan: Plan) -> tuple[str, Work]:
    """oneimage delete."""
    if len(plan.model.images) <= FEWEST:
        raise NotNow
    gone = plan.own_image(lambda image: not image.in_use)
    plan.may_fail("datastore.rm")

    def work(actor: Actor) -> None:
        actor.attempt(lambda life: life.oned.delete_image(gone.image))
        plan.model.images.remove(gone)
        if plan.world.bed.frontend.exists(entry_of(gone.image)):
            raise Violation(f"image {gone.image.id} is there still")

    return f"image {gone.image.id}", work


@step(3)
def image_snapshot(plan: Plan) -> tuple[str, Work]:
    """oneimage snapshot-delete, -revert or -flatten, of what has come back with its disk."""
    chosen = plan.own_image(lambda image: bool(image.snapshots) and not image.in_use)
    number = plan.rng.choice(sorted(chosen.snapshots))
    action = plan.rng.choice(["snap_delete", "snap_revert", "snap_flatten"])
    content = chosen.content if action == "snap_delete" else chosen.snapshots[number]
    plan.may_fail()

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.oned.snapshot_action(action, chosen.image, number),
            between=lambda: plan.world.check_image(chosen, chosen.content, content),
        )
        chosen.content = content
        if action == "snap_delete":
            del chosen.snapshots[number]
        elif action == "snap_flatten":
            chosen.snapshots.clear()
            chosen.lost.clear()
        plan.world.check_image(chosen)

    return f"{action} of image {chosen.image.id}, {number}", work


def made(actor: Actor, make: Callable[[Life], Image]) -> Image:
    """A new image; when it fails by the step's fault it is removed, and another one is made."""
    if actor.fault:
        begin = time.time()
        try:
            with actor.trouble() as life:
                image = make(life)
        except RequestFailed:  # it has not even come to an image
            image = None
        if image and image.state == objects.READY:
            return image
        actor.took_effect = True
        if image and image.source:
            require_success(actor.life.oned.delete_image(image))
        else:
            actor.world.lost_images.append((begin, time.time() + _LINGER))
    image = make(actor.life)
    if image.state != objects.READY:
        raise Violation(f"image {image.id}: {image.template.get('ERROR')}")
    return image


def add(plan: Plan, image: Image, content: bytes) -> None:
    """Let an image that has just been made be one of the model's."""
    new = ImageModel(plan.number, image, content)
    if f"/{image.datastore_id}/" not in entry_of(image):
        raise Violation(f"image {image.id} is {image.source}, in another datastore")
    plan.world.check_image(new)
    plan.model.images.append(new)


def give_back(world: World, disk: DiskModel) -> None:
    """The image of a persistent disk has its content from now on, its snapshots and its size."""
    image = disk.image
    assert image
    image.content, image.snapshots, image.lost = disk.now, dict(disk.snapshots), set(disk.lost)
    image.image.size = len(disk.now) // MB
    world.bed.cloud.save(image.image)
    world.check_image(image)
