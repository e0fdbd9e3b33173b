"""The steps: what users, guests and administrators do, and what has to be true behind it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.drivers.conftest import companion, entry_of
from tests.oned import objects
from tests.oned.life import Life
from tests.oned.objects import Image
from tests.oned.reply import Reply
from tests.soaking.faults import Hand
from tests.soaking.model import MB, DiskModel, ImageModel, Violation, VmModel
from tests.soaking.plan import NotNow, Plan, Work
from tests.soaking.world import HYPERVISORS, REPLICA, World

SECTOR = 512
MOST_IMAGES, MOST_VMS, MOST_DISKS, MOST_SNAPSHOTS, LARGEST = 12, 18, 3, 3, 10 * MB


Planner = Callable[[Plan], tuple[str, Work]]


@dataclass(frozen=True)
class Kind:
    """A kind of step; `plan` may raise NotNow. `weight` is how often it comes, among the others."""

    name: str
    weight: float
    plan: Planner


KINDS: list[Kind] = []


def step(weight: float) -> Callable[[Planner], Planner]:
    """Make a function that plans into a kind of step; it returns what it is about, and its work."""

    def note(plan: Planner) -> Planner:
        KINDS.append(Kind(plan.__name__, weight, plan))
        return plan

    return note


# Images


@step(3)
def register(plan: Plan) -> tuple[str, Work]:
    """oneimage create."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    content = noise(plan.rng, plan.rng.randint(2, 5))
    image_format = plan.rng.choice(["qcow2", "qcow2", "raw"])
    persistent = plan.chance(0.2)
    plan.may_fail("datastore.cp")

    def work(hand: Hand) -> None:
        bed, path = plan.world.bed, f"/var/tmp/soak-{plan.number}"
        bed.frontend.write(f"{path}.raw", content)
        if image_format == "qcow2":
            argv = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"]
            bed.frontend.run([*argv, f"{path}.raw", f"{path}.qcow2"])
        file = f"{path}.{image_format}"
        image = _made(
            hand, lambda life: life.oned.create_image(file, bed.images, persistent=persistent)
        )
        bed.frontend.run(["rm", "-f", f"{path}.raw", f"{path}.qcow2"])
        _add_image(plan, image, content)

    return f"{image_format} {len(content) // MB} MB{' persistent' * persistent}", work


@step(1)
def clone_image(plan: Plan) -> tuple[str, Work]:
    """oneimage clone."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    original = plan.image(lambda image: not (image.image.persistent and image.in_use))
    content = original.content

    def work(hand: Hand) -> None:
        image = _made(hand, lambda life: life.oned.clone_image(original.image))
        _add_image(plan, image, content)

    return f"image {original.image.id}", work


@step(2)
def remove_image(plan: Plan) -> tuple[str, Work]:
    """oneimage delete."""
    if len(plan.model.images) < MOST_IMAGES // 2:
        raise NotNow
    gone = plan.own_image(lambda image: not image.in_use)
    plan.may_fail("datastore.rm")

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.oned.delete_image(gone.image))
        plan.model.images.remove(gone)
        if plan.world.bed.frontend.exists(gone.image.source.replace("//", "/")):
            raise Violation(f"image {gone.image.id} is there still")

    return f"image {gone.image.id}", work


# A VM's life


@step(8)
def instantiate(plan: Plan) -> tuple[str, Work]:
    """onetemplate instantiate: one or two disks of images, and now and then an empty one."""
    world, rng = plan.world, plan.rng
    if len(plan.model.vms) >= MOST_VMS:
        raise NotNow
    host = plan.host()
    plan.share(("host", REPLICA))
    disks = [_new_disk(plan) for _ in range(rng.choice([1, 1, 2]))]
    if plan.chance(0.15):
        volatile = world.bed.cloud.volatile_disk(2)
        disks.append(DiskModel(volatile, None, bytes(2 * MB)))
    plan.may_fail("tm.clone thin", "tm.clone", "tm.ln", host=host)
    context = {"NAME": "soak"} if plan.chance(0.2) else None
    vm = world.bed.vm(*(disk.disk for disk in disks), context=context)
    made = VmModel(plan.number, vm, disks)
    plan.model.vms.append(made)
    plan.take(made.key)

    def work(hand: Hand) -> None:
        hand.attempt(
            lambda life: life.instantiate(vm, host, world.bed.system),
            lambda life: life.retry_prolog(vm),
            lambda: world.check_whole(made),
        )
        world.check_vm(made)

    return f"{made} on {host}, {len(disks)} disks", work


@step(100)
def write(plan: Plan) -> tuple[str, Work]:
    """The guest writes; what is powered off is written to by qemu-io."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: True)
    sectors = len(disk.now) // SECTOR
    start = plan.rng.randrange(sectors)
    length = min(plan.rng.choice([1, 8, 128, 129, 512, 2048]), sectors - start)
    pattern = plan.rng.randrange(256)
    offset, count = start * SECTOR, length * SECTOR

    def work(hand: Hand) -> None:
        if vm.runs:
            hand.kvm.write(vm.vm, disk.number, offset, count, pattern)
        else:
            command = f"write -P {pattern} {offset} {count}"
            path = plan.world.path(vm, disk)
            argv = ["qemu-io", "-f", disk.format, "-c", command, path]
            plan.world.place(vm).run(argv)
        disk.write(offset, bytes([pattern]) * count)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number}, {count} bytes at {offset}", work


@step(5)
def power_off(plan: Plan) -> tuple[str, Work]:
    vm = plan.vm(lambda vm: vm.runs)

    def work(hand: Hand) -> None:
        hand.life.power_off(vm.vm)
        plan.world.check_vm(vm)

    return str(vm), work


@step(6)
def power_on(plan: Plan) -> tuple[str, Work]:
    vm = plan.vm(lambda vm: vm.is_off)
    plan.may_fail(host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.power_on(vm.vm))
        plan.world.check_vm(vm)

    return str(vm), work


@step(6)
def terminate(plan: Plan) -> tuple[str, Work]:
    """onevm terminate: what is persistent goes back to its image."""
    world = plan.world
    vm = plan.vm(lambda vm: len(plan.model.vms) > MOST_VMS // 2 and (vm.runs or vm.is_off))
    kept = [disk for disk in vm.disks if disk.image and disk.image.image.persistent]
    plan.may_fail(*(["tm.mvds"] if kept else []), "tm.delete", host=vm.host)

    def work(hand: Hand) -> None:
        if vm.runs:
            hand.kvm.shutdown(vm.vm, vm.host)
        hand.attempt(lambda life: life.oned.terminate(vm.vm))
        for disk in kept:
            _give_back(world, disk)
        plan.model.vms.remove(vm)
        _left(world, vm, vm.host)

    return f"{vm} on {vm.host}{', kept' * bool(kept)}", work


@step(1)
def delete(plan: Plan) -> tuple[str, Work]:
    """onevm recover --delete: persistent images stay as they were."""
    world = plan.world
    vm = plan.vm(lambda vm: len(plan.model.vms) > MOST_VMS // 2 and (vm.runs or vm.is_off))

    def work(hand: Hand) -> None:
        hand.kvm.shutdown(vm.vm, vm.host)
        for answer in hand.life.oned.recover_delete(vm.vm):
            _good(answer)
        plan.model.vms.remove(vm)
        _left(world, vm, vm.host)
        for disk in vm.disks:
            if disk.image and disk.image.image.persistent:
                world.check_image(disk.image)

    return f"{vm} on {vm.host}", work


@step(2)
def undeploy(plan: Plan) -> tuple[str, Work]:
    """onevm undeploy: to the front-end."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    host = vm.host
    plan.share(("block jobs", "anywhere"))
    plan.may_fail("tm.mv", host=host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.undeploy(vm.vm))
        plan.world.check_vm(vm)
        _left(plan.world, vm, host)

    return f"{vm} from {host}", work


@step(4)
def resume(plan: Plan) -> tuple[str, Work]:
    """onevm resume of what is undeployed, on any host."""
    vm = plan.vm(lambda vm: vm.is_undeployed)
    host, front_end = plan.host(), plan.world.bed.frontend.name
    plan.may_fail("tm.mv", host=host)

    def work(hand: Hand) -> None:
        hand.attempt(
            lambda life: life.resume(vm.vm, host),
            lambda life: life.retry_move(vm.vm, front_end, objects.ACTIVE),
            lambda: plan.world.check_whole(vm, where=host),
        )
        plan.world.check_vm(vm)

    return f"{vm} on {host}", work


@step(4)
def migrate(plan: Plan) -> tuple[str, Work]:
    """onevm migrate, of a VM that is powered off or runs."""
    vm = plan.vm(lambda vm: vm.is_off or vm.runs)
    old, new, runs = vm.host, plan.host(vm.host), vm.runs
    if runs:
        plan.share(("block jobs", "anywhere"))
    plan.may_fail("tm.mv", host=new)

    def work(hand: Hand) -> None:
        after = objects.ACTIVE if runs else objects.POWEROFF
        hand.attempt(
            lambda life: life.migrate(vm.vm, new),
            lambda life: life.retry_move(vm.vm, old, after, restore=runs),
            lambda: plan.world.check_whole(vm, where=new),
        )
        plan.world.check_vm(vm)
        _left(plan.world, vm, old)

    return f"{vm} from {old} to {new}{', running' * runs}", work


@step(2)
def migrate_live(plan: Plan) -> tuple[str, Work]:
    """onevm migrate --live, which now and then breaks off."""
    vm = plan.vm(lambda vm: vm.runs and not vm.vm.context)
    old, new = vm.host, plan.host(vm.host)
    plan.share(("block jobs", "anywhere"))
    breaks_off = plan.chance(0.2)

    def work(hand: Hand) -> None:
        if breaks_off:
            hand.kvm.failing = True
            _good(hand.life.live_migrate(vm.vm, new))
            _good(hand.life.after)
            if vm.host != old:
                raise Violation(f"{vm} is not on {old}")
            plan.world.check_vm(vm)
        _good(hand.life.live_migrate(vm.vm, new))
        _good(hand.life.after)
        plan.world.check_vm(vm)
        _left(plan.world, vm, old)

    return f"{vm} from {old} to {new}{', at the second try' * breaks_off}", work


# Disks


@step(5)
def snapshot(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-create."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: len(disk.snapshots) < MOST_SNAPSHOTS and _may_snap(disk))
    plan.may_fail("tm.snap_create_live" if vm.runs else "tm.snap_create", host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(
            lambda life: life.snapshot(vm.vm, disk.disk),
            between=lambda: plan.world.check_disk(vm, disk),
        )
        number = max(int(str(each["ID"])) for each in _listed(vm, disk))
        disk.snapshots[number] = disk.now
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number}{', running' * vm.runs}", work


@step(3)
def revert(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-revert."""
    vm = plan.vm(lambda vm: vm.is_off)
    disk = plan.disk(vm, lambda disk: bool(disk.snapshots))
    number = plan.rng.choice(sorted(disk.snapshots))
    plan.may_fail("tm.snap_revert", host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.revert(vm.vm, disk.disk, number))
        disk.become(disk.snapshots[number])
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number} to {number}", work


@step(3)
def delete_snapshot(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-delete."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: bool(disk.snapshots))
    number = plan.rng.choice(sorted(disk.snapshots))
    plan.may_fail("tm.snap_delete", host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(
            lambda life: life.delete_snapshot(vm.vm, disk.disk, number),
            between=lambda: plan.world.check_disk(vm, disk),
        )
        del disk.snapshots[number]
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number} without {number}", work


@step(2)
def save_as(plan: Plan) -> tuple[str, Work]:
    """onevm disk-saveas, of the disk or of a snapshot."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: disk.image is not None)
    number = plan.rng.choice([-1, *sorted(disk.snapshots)])
    content = disk.snapshots.get(number, disk.now)
    plan.may_fail("tm.cpds", host=vm.host)

    def work(hand: Hand) -> None:
        image = _made(hand, lambda life: life.save_as(vm.vm, disk.disk, number))
        _add_image(plan, image, content)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number}{f' snapshot {number}' * (number >= 0)}", work


@step(2)
def resize(plan: Plan) -> tuple[str, Work]:
    """onevm disk-resize."""
    vm = plan.vm(lambda vm: vm.is_off)
    disk = plan.disk(vm, lambda disk: not disk.snapshots and len(disk.now) < LARGEST)
    size = len(disk.now) // MB + plan.rng.randint(1, 2)
    plan.may_fail(host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.resize(vm.vm, disk.disk, size))
        disk.grow(size * MB)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number} to {size} MB", work


@step(2)
def attach(plan: Plan) -> tuple[str, Work]:
    """onevm disk-attach."""
    vm = plan.vm(lambda vm: vm.is_off and len(vm.disks) < MOST_DISKS)
    plan.share(("host", REPLICA))
    disk = _new_disk(plan)
    plan.may_fail("tm.clone thin", "tm.clone", "tm.ln", host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.oned.attach_disk(vm.vm, disk.disk))
        vm.disks.append(disk)
        plan.world.check_vm(vm)

    assert disk.image
    return f"{vm}, image {disk.image.image.id}", work


@step(2)
def detach(plan: Plan) -> tuple[str, Work]:
    """onevm disk-detach."""
    vm = plan.vm(lambda vm: vm.is_off and len(vm.disks) > 1)
    disk = plan.disk(vm, lambda disk: True)
    kept = disk.image if disk.image and disk.image.image.persistent else None
    plan.may_fail(*(["tm.mvds"] if kept else []), "tm.delete", host=vm.host)

    def work(hand: Hand) -> None:
        hand.attempt(lambda life: life.oned.detach_disk(vm.vm, disk.disk))
        vm.disks.remove(disk)
        vm.vm.snapshots = [each for each in vm.vm.snapshots if each.disk_id != disk.number]
        if kept:
            _give_back(plan.world, disk)
        plan.world.check_vm(vm)
        if plan.world.copy_of(vm, disk):
            raise Violation(f"{vm} disk {disk.number} is detached, and has a recovery copy")

    return f"{vm} disk {disk.number}{', kept' * bool(kept)}", work


@step(1)
def reshape(plan: Plan) -> tuple[str, Work]:
    """onestor flatten or thin."""
    vm = plan.vm(lambda vm: vm.is_off)
    disk = plan.disk(
        vm,
        lambda disk: (
            disk.image is not None
            and disk.format == "qcow2"
            and not disk.snapshots
            and not disk.image.image.persistent
        ),
    )
    command = plan.rng.choice(["flatten", "thin"])
    plan.share(("host", REPLICA))

    def work(hand: Hand) -> None:
        plan.world.onestor(command, str(vm.vm.id), str(disk.number))
        plan.world.check_vm(vm)

    return f"{command} {vm} disk {disk.number}", work


# Machines and caches


@step(2)
def recovery_pass(plan: Plan) -> tuple[str, Work]:
    """The timer's pass, beside whatever else is going on."""
    plan.take(("block jobs", "anywhere"))
    plan.share(("host", REPLICA))

    def work(hand: Hand) -> None:
        plan.world.recovery_pass()

    return "", work


@step(0.4)
def host_dies(plan: Plan) -> tuple[str, Work]:
    """A host loses its power; its VMs are recreated elsewhere; it comes back as it was."""
    world = plan.world
    host = plan.rng.choice(HYPERVISORS)
    plan.take(("host", host))
    plan.share(("host", REPLICA))
    vms = plan.model.on(host)
    for vm in vms:
        plan.take(vm.key)
    new = plan.host(host)

    def work(hand: Hand) -> None:
        node = world.node(host)
        node.kill()
        try:
            for vm in vms:
                _recreate(hand, world, vm, new)
        finally:
            node.start()
            world.kvm.start_on(host)

    return f"{host} with {len(vms)} VMs, to {new}", work


@step(1)
def recreate(plan: Plan) -> tuple[str, Work]:
    """onevm recover --recreate while its host lives."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    new = plan.host()
    plan.share(("host", REPLICA))

    def work(hand: Hand) -> None:
        hand.kvm.shutdown(vm.vm, vm.host)
        _recreate(hand, plan.world, vm, new)

    return f"{vm} from {vm.host} to {new}", work


@step(3)
def damage(plan: Plan) -> tuple[str, Work]:
    """Somebody tampers with an image in a cache that nobody reads just now."""
    host = plan.rng.choice([*HYPERVISORS, REPLICA])
    plan.take(("host", host))
    image = plan.image(lambda image: True)
    how = plan.rng.choice(["cut short", "other content", "gone", "sidecar gone", "sidecar odd"])

    def work(hand: Hand) -> None:
        _tamper(plan.world, host, image, how)

    return f"{host}, image {image.image.id}: {how}", work


@step(0.5)
def look_after_caches(plan: Plan) -> tuple[str, Work]:
    """onestor cache verify or prune."""
    words = plan.rng.choice([("cache", "verify"), ("cache", "prune")])

    def work(hand: Hand) -> None:
        plan.world.onestor(*words)

    return " ".join(words), work


@step(0.7)
def warm(plan: Plan) -> tuple[str, Work]:
    """onestor cache warm."""
    image = plan.image(lambda image: not image.image.persistent)
    host = plan.host()
    plan.share(("host", REPLICA))

    def work(hand: Hand) -> None:
        plan.world.onestor("cache", "warm", str(image.image.id), "--hosts", host)

    return f"image {image.image.id} on {host}", work


@step(3)
def probe(plan: Plan) -> tuple[str, Work]:
    """monitor_ds on a host names every VM there."""
    host = plan.host()
    vms = plan.model.on(host)
    if not vms:
        raise NotNow
    for vm in vms:
        plan.take(vm.key)

    def work(hand: Hand) -> None:
        directory = f"/var/lib/one/datastores/{plan.world.bed.system.id}"
        argv = ["/var/tmp/one/tm/onestor/monitor_ds", directory]
        said = plan.world.node(host).run(argv).stdout
        for vm in vms:
            if f"ID = {vm.vm.id}," not in said:
                raise Violation(f"monitor_ds on {host} does not know {vm}")

    return f"{host} with {len(vms)} VMs", work


def noise(rng: random.Random, megabytes: int) -> bytes:
    """Data with zeros between."""
    parts = [
        rng.randbytes(256 << 10) if rng.random() < 0.6 else bytes(256 << 10)
        for _ in range(4 * megabytes)
    ]
    return b"".join(parts)


def _new_disk(plan: Plan) -> DiskModel:
    """A disk of an image that may be used; its attributes by lot."""
    rng = plan.rng
    image = plan.image(lambda image: not image.image.persistent or not image.in_use)
    attributes = {}
    if image.image.persistent:
        plan.claims.shared[image.key] -= 1
        plan.take(image.key)
    elif image.image.format == "qcow2":
        if plan.chance(0.3):
            attributes["SIZE"] = str(len(image.content) // MB + rng.randint(1, 2))
        if plan.chance(0.1):
            attributes["QCOW2_STANDALONE"] = "YES"
    if plan.chance(0.5):
        attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    disk = plan.world.bed.cloud.image_disk(image.image, **attributes)
    made = DiskModel(disk, image, image.content)
    if "SIZE" in attributes:
        made.now = image.content + bytes(int(attributes["SIZE"]) * MB - len(image.content))
    return made


def _may_snap(disk: DiskModel) -> bool:
    return disk.image is not None and not disk.image.image.persistent


def _listed(vm: VmModel, disk: DiskModel) -> list[dict[str, Any]]:
    (kept,) = [each for each in vm.vm.snapshots if each.disk_id == disk.number]
    return kept.snapshots


def _good(answer: Reply) -> None:
    if not answer.success:
        raise Violation(f"{answer.action}: {answer.error or answer.result}")


def _made(hand: Hand, make: Callable[[Life], Image]) -> Image:
    """An image that is made, after an attempt with the step's fault that leaves one in ERROR."""
    if hand.fault:
        with hand.trouble() as life:
            image = make(life)
        if image.state == objects.READY:
            return image
        if image.source:
            _good(hand.life.oned.delete_image(image))
    image = make(hand.life)
    if image.state != objects.READY:
        raise Violation(f"image {image.id}: {image.template.get('ERROR')}")
    return image


def _add_image(plan: Plan, image: Image, content: bytes) -> None:
    made = ImageModel(plan.number, image, content)
    plan.world.check_image(made)
    plan.model.images.append(made)


def _give_back(world: World, disk: DiskModel) -> None:
    """The image of a persistent disk has its content from now on, and its size."""
    image = disk.image
    assert image
    image.content = disk.now
    image.image.size = len(disk.now) // MB
    world.bed.cloud.save(image.image)
    world.check_image(image)


def _left(world: World, vm: VmModel, host: str) -> None:
    if world.node(host).exists(world.directory(vm.vm)):
        raise Violation(f"{vm} is on {host} still")


def _recreate(hand: Hand, world: World, vm: VmModel, new: str) -> None:
    """What is persistent or was copied comes back as it was copied, the rest as its image is."""
    for answer in hand.life.oned.recover_recreate(vm.vm):
        _good(answer)
    vm.vm.snapshots.clear()
    for disk in vm.disks:
        disk.start_over()
    _good(hand.life.instantiate(vm.vm, new, world.bed.system))
    world.check_vm(vm)


def _tamper(world: World, host: str, image: ImageModel, how: str) -> None:
    """Change what a cache has of an image; the file of VMs that share it stays as it is."""
    node = world.node(host)
    entry, sidecar = node.path(entry_of(image.image)), node.path(companion(image.image, "sidecar"))
    if not entry.exists() or not sidecar.exists():
        return
    if how == "gone":
        entry.unlink()
    elif how == "sidecar gone":
        sidecar.unlink()
    elif how == "sidecar odd":
        sidecar.write_text("nonsense")
    else:
        path = entry_of(image.image)
        new = f"{path}.tampered"
        node.run(["cp", "--sparse=always", "--preserve=mode,ownership", path, new])
        node.run(["chmod", "u+w", new])
        with node.path(new).open("r+b") as file:
            if how == "cut short":
                file.truncate(entry.stat().st_size // 2)
            else:
                file.write(b"odd")
        node.path(new).rename(entry)
