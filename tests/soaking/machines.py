"""What happens to hosts, to the replica, and to caches."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from onestor_lib.agent.cache.entry import Entry
from tests.drivers.conftest import entry_of
from tests.oned import probe
from tests.soaking.disks import may_snap
from tests.soaking.faults import Actor
from tests.soaking.kinds import share_block_jobs, share_replica, step
from tests.soaking.model import DiskModel, Violation, VmModel, unlisted
from tests.soaking.plan import NotNow, Plan, Work
from tests.soaking.vms import come_back
from tests.soaking.world import HYPERVISORS, REPLICA


@step(2)
def recovery_pass(plan: Plan) -> tuple[str, Work]:
    """The timer's pass, beside whatever else is going on."""
    plan.take(("block jobs", "anywhere"))
    share_replica(plan)

    def work(actor: Actor) -> None:
        plan.world.onestor("recovery", "run", excused="no new recovery copy")

    return "", work


@step(0.4)
def host_dies(plan: Plan) -> tuple[str, Work]:
    """A host loses its power; its VMs are recreated elsewhere; it comes back as it was.

    Every other time a snapshot of one of its disks is being made just then.
    """
    world, rng = plan.world, plan.rng
    host = rng.choice(HYPERVISORS)
    vms = plan.model.on(host)
    if not vms:
        raise NotNow
    plan.take(("host", host), *(vm.key for vm in vms))
    share_replica(plan)
    share_block_jobs(plan)  # a pass that is under way may still make a copy that is used
    new = plan.host(host)
    found = [(vm, disk) for vm in vms for disk in vm.disks if may_snap(disk)]
    amid = rng.choice(found) if found and plan.chance(0.5) else None
    after = rng.uniform(0.05, 0.6)

    def work(actor: Actor) -> None:
        with snapshot_at_work(actor, *amid, after) if amid else contextlib.nullcontext():
            world.node(host).kill()
        try:
            for vm in vms:
                come_back(actor, world, vm, new)
        finally:
            world.node(host).start()
            world.kvm.start_on(host)
            world.outdated.update((host, vm.vm.id) for vm in vms)

    what = f", in the middle of a snapshot of {amid[0]}" if amid else ""
    return f"{host} with {len(vms)} VMs, to {new}{what}", work


@contextlib.contextmanager
def snapshot_at_work(actor: Actor, vm: VmModel, disk: DiskModel, after: float) -> Iterator[None]:
    """The block begins so many seconds after a snapshot; what that comes to is of no interest."""
    with ThreadPoolExecutor(1) as pool:
        snapshot = pool.submit(actor.life.snapshot, vm.vm, disk.disk)
        time.sleep(after)
        yield
        snapshot.result()


@step(3)
def damage(plan: Plan) -> tuple[str, Work]:
    """Somebody tampers with an image in a cache that nobody reads just now.

    What keeps its time and size is noticed by who receives it from the replica, and by a scrub; on
    a host nobody could notice it before a scrub.
    """
    world = plan.world
    host = plan.rng.choice([*HYPERVISORS, REPLICA])
    plan.take(("host", host))
    image = plan.image(lambda image: True)
    ways = ["cut short", "other content", "gone", "sidecar gone", "sidecar odd"]
    how = plan.rng.choice([*ways, "rotten"] if host == REPLICA else ways)

    def work(actor: Actor) -> None:
        entry = Entry(world.node(host).path(entry_of(image.image)))
        if entry.image.exists() and entry.sidecar.exists() and tamper(entry, how):
            world.tampered.add(os.path.basename(image.image.source))
            if how == "rotten":
                world.rotten.add(image.born)

    return f"{host}, image {image.image.id}: {how}", work


@step(0.5)
def verify(plan: Plan) -> tuple[str, Work]:
    """onestor cache verify, which asks every machine."""
    share_all(plan)

    def work(actor: Actor) -> None:
        plan.world.verify_caches()

    return "", work


@step(0.5)
def prune(plan: Plan) -> tuple[str, Work]:
    """onestor cache prune, which asks every machine."""
    share_all(plan)

    def work(actor: Actor) -> None:
        plan.world.onestor("cache", "prune")

    return "", work


@step(0.7)
def warm(plan: Plan) -> tuple[str, Work]:
    """onestor cache warm."""
    image = plan.image(lambda image: not image.image.persistent)
    host = plan.host()
    share_replica(plan)

    def work(actor: Actor) -> None:
        # A cache that is full of what is in use takes no more.
        words = ("cache", "warm", str(image.image.id), "--hosts", host)
        plan.world.onestor(*words, excused="MB needed")

    return f"image {image.image.id} on {host}", work


@step(3)
def monitor(plan: Plan) -> tuple[str, Work]:
    """The host's probe tells of every VM there, with its disks and snapshots."""
    host = plan.host()
    vms = plan.model.on(host)
    if not vms:
        raise NotNow
    plan.take(*(vm.key for vm in vms))

    def work(actor: Actor) -> None:
        told = {vm.vm_id: vm for vm in probe.probe_monitor_ds(plan.world.node(host))}
        for vm in vms:
            if vm.vm.id not in told:
                raise Violation(f"monitor_ds on {host} does not know {vm}")
            entries = told[vm.vm.id].entries
            disks = {int(each.fields["ID"]) for each in entries if each.name == "DISK_SIZE"}
            snapshots = {
                (int(each.fields["DISK_ID"]), int(each.fields["ID"]))
                for each in entries
                if each.name == "SNAPSHOT_SIZE"
            }
            expected = {(disk.number, number) for disk in vm.disks for number in disk.snapshots}
            lost = {(disk.number, number) for disk in vm.disks for number in unlisted(disk)}
            if not disks >= {disk.number for disk in vm.disks} or snapshots - lost != expected:
                raise Violation(f"monitor_ds on {host} tells of {vm}: {disks}, {snapshots}")

    return f"{host} with {len(vms)} VMs", work


def share_all(plan: Plan) -> None:
    for host in (*HYPERVISORS, REPLICA):
        plan.share(("host", host))


def tamper(entry: Entry, how: str) -> bool:
    """Change what a cache has of an image; the file of VMs that share it stays as it is.

    Whether that was possible.
    """
    image, facts = entry.image, entry.image.stat()
    if how == "gone":
        image.unlink()
    elif how == "sidecar gone":
        entry.sidecar.unlink()
    elif how == "sidecar odd":
        entry.sidecar.write_text("nonsense")
    elif how == "rotten":
        if facts.st_nlink > 1:
            return False  # recovery copies share it
        with image.open("r+b") as file:
            file.write(b"odd")
        os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    else:
        new = image.with_name(f"{image.name}.tampered")
        subprocess.run(["cp", "--sparse=always", "--preserve", image, new], check=True)
        new.chmod(0o644)
        with new.open("r+b") as file:
            if how == "cut short":
                file.truncate(facts.st_size // 2)
            else:
                file.write(b"odd")
        new.rename(image)
    return True
