"""What happens to the disks of a VM."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.oned.life import Life
from tests.oned.reply import Reply
from tests.soaking.faults import Actor
from tests.soaking.images import add, give_back, made
from tests.soaking.kinds import (
    MOST_DISKS,
    MOST_IMAGES,
    MOST_SNAPSHOTS,
    making,
    new_disk,
    share_replica,
    step,
)
from tests.soaking.model import MB, SET_ASIDE, DiskModel, Violation, VmModel, padded
from tests.soaking.plan import NotNow, Plan, Work
from tests.soaking.world import PATTERNS, REPLICA, pattern_file

SECTOR = 512
LARGEST = 10 * MB
_MOST_WRITES = 30  # while a snapshot is made


class Written(NamedTuple):
    """Something that is written to a disk, as the `command` for qemu-io(1)."""

    offset: int
    data: bytes
    command: str

    @classmethod
    def by_lot(cls, plan: Plan, disk: DiskModel) -> Written:
        """Data or zeros, somewhere on the disk."""
        sectors = len(disk.now) // SECTOR
        start = plan.rng.randrange(sectors)
        length = min(plan.rng.choice([1, 8, 128, 129, 512, 2048]), sectors - start)
        offset, count = start * SECTOR, length * SECTOR
        if plan.chance(0.15):
            return cls(offset, bytes(count), f"write -z {offset} {count}")
        number = plan.rng.randrange(len(PATTERNS))
        command = f"write -s {pattern_file(number)} {offset} {count}"
        return cls(offset, PATTERNS[number][:count], command)

    def by_guest(self, actor: Actor, vm: VmModel, disk: DiskModel) -> None:
        """Let the guest of a VM that runs write it."""
        actor.kvm.write(vm.vm, disk.number, self.command)
        disk.write(self.offset, self.data)

    def __str__(self) -> str:
        return f"{len(self.data)} bytes at {self.offset}"


@step(100)
def write(plan: Plan) -> tuple[str, Work]:
    """The guest writes data or zeros; what is powered off is written to by qemu-io(1)."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: True)
    new = Written.by_lot(plan, disk)

    def work(actor: Actor) -> None:
        if vm.runs:
            new.by_guest(actor, vm, disk)
        else:
            argv = ["qemu-io", "-f", disk.format, "-c", new.command, plan.world.path(vm, disk)]
            done = plan.world.place(vm).run(argv, check=False)
            if done.returncode:
                raise Violation(f"{vm} disk {disk.number}: {done.stdout}{done.stderr}")
            disk.write(new.offset, new.data)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number}, {new}", work


@step(5)
def snapshot(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-create; the guest of one that runs may write meanwhile."""
    vm = plan.vm(lambda vm: not vm.is_away)
    disk = plan.disk(vm, lambda disk: len(disk.snapshots) < MOST_SNAPSHOTS and may_snap(disk))
    action = "tm.snap_create_live" if vm.runs else "tm.snap_create"
    plan.may_fail(action, needs=vm.host, fills=vm.host)
    writes = [Written.by_lot(plan, disk) for _ in range(_MOST_WRITES)]
    if not vm.runs or plan.fault.loss or plan.chance(0.3):
        writes.clear()  # on a host that is full the guest would stand still

    def work(actor: Actor) -> None:
        first, answered = len(disk.earlier), threading.Event()

        def guest() -> None:
            for each in writes:
                if not answered.is_set():
                    each.by_guest(actor, vm, disk)

        def request(life: Life) -> Reply:
            with ThreadPoolExecutor(1) as pool:
                writing = pool.submit(guest)
                try:
                    answer = life.snapshot(vm.vm, disk.disk)
                finally:
                    answered.set()
            writing.result()
            return answer

        number = upcoming(vm, disk)

        def failed() -> None:
            nonlocal first
            first = len(disk.earlier)  # the second try has no writer
            disk.lost.add(number)
            plan.world.check_disk(vm, disk)

        actor.attempt(request, lambda life: life.snapshot(vm.vm, disk.disk), failed)
        newest = upcoming(vm, disk) - 1
        path = f"{plan.world.path(vm, disk)}.snap/{newest}"
        moments = [disk.now, *disk.earlier[first:]]
        found = plan.world.check_file(plan.world.place(vm), path, disk.format, *moments)
        plan.world.amid += found != disk.now
        disk.snapshots[newest] = found
        if newest in disk.lost:  # it is known now, and what a try before has left lies beside it
            disk.lost.remove(newest)
            disk.lost.add(SET_ASIDE)
        plan.world.check_disk_with_snapshots(vm, disk)

    how = f", running{', the guest writes' * bool(writes)}" * vm.runs
    return f"{vm} disk {disk.number}{how}", work


@step(3)
def revert(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-revert, for which the VM is powered off."""
    vm = plan.vm(lambda vm: (vm.runs or vm.is_off) and vm.has_snapshots)
    disk = plan.disk(vm, lambda disk: bool(disk.snapshots))
    number = plan.rng.choice(sorted(disk.snapshots))
    plan.may_fail("tm.snap_revert", needs=vm.host, fills=vm.host)

    def work(actor: Actor) -> None:
        new = disk.snapshots[number]
        if vm.runs:
            actor.life.power_off(vm.vm)
        actor.attempt(
            lambda life: life.revert(vm.vm, disk.disk, number),
            between=lambda: plan.world.check_disk(vm, disk, disk.now, new),
        )
        disk.become(new)
        plan.world.check_disk_with_snapshots(vm, disk)

    return f"{vm} disk {disk.number} to {number}", work


@step(3)
def delete_snapshot(plan: Plan) -> tuple[str, Work]:
    """onevm disk-snapshot-delete."""
    vm = plan.vm(lambda vm: not vm.is_away and vm.has_snapshots)
    disk = plan.disk(vm, lambda disk: bool(disk.snapshots))
    number = plan.rng.choice(sorted(disk.snapshots))
    plan.may_fail("tm.snap_delete", needs=vm.host, fills=vm.host)

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.delete_snapshot(vm.vm, disk.disk, number),
            between=lambda: plan.world.check_disk(vm, disk),
        )
        del disk.snapshots[number]
        plan.world.check_disk_with_snapshots(vm, disk)

    return f"{vm} disk {disk.number} without {number}", work


@step(2)
def save_as(plan: Plan) -> tuple[str, Work]:
    """onevm disk-saveas, of the disk or of a snapshot."""
    if len(plan.model.images) >= MOST_IMAGES:
        raise NotNow
    vm = plan.vm(lambda vm: True)
    disk = plan.disk(vm, lambda disk: disk.image is not None)
    number = plan.rng.choice([-1, *sorted(disk.snapshots)])
    content = disk.snapshots.get(number, disk.now)
    plan.may_fail("tm.cpds", needs="" if vm.is_away else vm.host)

    def work(actor: Actor) -> None:
        image = made(actor, lambda life: life.save_as(vm.vm, disk.disk, number))
        add(plan, image, content)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number}{f' snapshot {number}' * (number >= 0)}", work


@step(2)
def resize(plan: Plan) -> tuple[str, Work]:
    """onevm disk-resize, of one that runs by its hypervisor."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    disk = plan.disk(vm, lambda disk: not disk.snapshots and len(disk.now) < LARGEST)
    size = len(disk.now) // MB + plan.rng.randint(1, 2)
    if vm.is_off:
        plan.may_fail(needs=vm.host, fills=vm.host)

    def work(actor: Actor) -> None:
        new = padded(disk.now, size * MB)
        actor.attempt(
            lambda life: life.resize(vm.vm, disk.disk, size),
            between=lambda: plan.world.check_disk(vm, disk, disk.now, new),
        )
        disk.become(new)
        plan.world.check_disk(vm, disk)

    return f"{vm} disk {disk.number} to {size} MB", work


@step(2)
def attach(plan: Plan) -> tuple[str, Work]:
    """onevm disk-attach."""
    vm = plan.vm(lambda vm: vm.is_off and len(vm.disks) < MOST_DISKS)
    share_replica(plan)
    disk = new_disk(plan)
    plan.may_fail(making(disk), needs=vm.host, uses=REPLICA, fills=vm.host)
    assert disk.image

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.oned.attach_disk(vm.vm, disk.disk),
            between=lambda: plan.world.check_whole(vm, [disk]),
        )
        vm.disks.append(disk)
        plan.world.check_vm(vm)

    return f"{vm}, image {disk.image.image.id}", work


@step(2)
def detach(plan: Plan) -> tuple[str, Work]:
    """onevm disk-detach."""
    vm = plan.vm(lambda vm: vm.is_off and len(vm.disks) > 1)
    disk = plan.disk(vm, lambda disk: True)
    image = disk.image if disk.is_persistent else None
    share_replica(plan)
    plan.may_fail(
        "tm.mvds" if image else "tm.delete", needs=vm.host if image else "", fills=vm.host
    )

    def old_or_new() -> None:
        if image:
            plan.world.check_image(image, image.content, disk.now)

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.oned.detach_disk(vm.vm, disk.disk),
            between=old_or_new,
        )
        vm.disks.remove(disk)
        if image:
            give_back(plan.world, disk)
            vm.returned.add(disk.number)
        plan.world.check_vm(vm)
        if plan.world.copy_of(vm, disk):
            raise Violation(f"{vm} disk {disk.number} is detached, and has a recovery copy")

    return f"{vm} disk {disk.number}{', kept' * bool(image)}", work


@step(1)
def reshape(plan: Plan) -> tuple[str, Work]:
    """onestor flatten or thin."""
    vm = plan.vm(lambda vm: vm.is_off)
    disk = plan.disk(
        vm,
        lambda disk: (
            may_snap(disk) and disk.format == "qcow2" and not (disk.is_persistent or disk.snapshots)
        ),
    )
    command = plan.rng.choice(["flatten", "thin"])
    share_replica(plan)

    def work(actor: Actor) -> None:
        plan.world.onestor(command, str(vm.vm.id), str(disk.number))
        plan.world.check_vm(vm)

    return f"{command} {vm} disk {disk.number}", work


def may_snap(disk: DiskModel) -> bool:
    return disk.image is not None


def upcoming(vm: VmModel, disk: DiskModel) -> int:
    """The number of the next snapshot of a disk."""
    lists = [each for each in vm.vm.snapshots if each.disk_id == disk.number]
    return lists[0].next_snapshot if lists else 0
