"""The life of VMs: where they are, and whether they run."""

from __future__ import annotations

from tests.oned import objects
from tests.soaking.faults import Actor, require_success
from tests.soaking.images import give_back
from tests.soaking.kinds import (
    FEWEST,
    MOST_VMS,
    making,
    new_disk,
    share_block_jobs,
    share_replica,
    step,
)
from tests.soaking.model import MB, DiskModel, Violation, VmModel
from tests.soaking.plan import NotNow, Plan, Work
from tests.soaking.world import REPLICA, World


@step(8)
def instantiate(plan: Plan) -> tuple[str, Work]:
    """onetemplate instantiate: one or two disks of images, and now and then an empty one.

    When it fails somebody tries again, or gives it up.
    """
    world, rng = plan.world, plan.rng
    if len(plan.model.vms) >= MOST_VMS:
        raise NotNow
    host = plan.host()
    share_replica(plan)
    disks = [new_disk(plan) for _ in range(rng.choice([1, 1, 2]))]
    actions = [making(disk) for disk in disks]
    datastore = rng.choice(world.system_datastores)
    if plan.chance(0.15):
        disks.append(DiskModel(world.bed.cloud.volatile_disk(2), None, bytes(2 * MB)))
    plan.may_fail(*actions, needs=host, uses=REPLICA)
    is_given_up = plan.chance(0.3)
    context = {"NAME": "soak"} if plan.chance(0.2) else None
    vm = world.bed.vm(*(disk.disk for disk in disks), context=context)
    new = VmModel(plan.number, vm, disks)
    plan.model.vms.append(new)
    plan.take(new.key)

    def work(actor: Actor) -> None:
        if actor.fails(lambda life: life.instantiate(vm, host, datastore)):
            world.check_whole(new, disks)
            if is_given_up:
                require_success(*actor.life.oned.recover_delete(vm))
                plan.model.vms.remove(new)
                world.check_gone(new, host)
                return
            require_success(actor.life.retry_prolog(vm))
        world.check_vm(new)

    return f"{new} on {host}, {len(disks)} disks", work


@step(5)
def power_off(plan: Plan) -> tuple[str, Work]:
    """onevm poweroff."""
    vm = plan.vm(lambda vm: vm.runs)

    def work(actor: Actor) -> None:
        actor.life.power_off(vm.vm)
        plan.world.check_vm(vm)

    return str(vm), work


@step(2)
def suspend(plan: Plan) -> tuple[str, Work]:
    """onevm suspend: its memory lies beside its disks then."""
    vm = plan.vm(lambda vm: vm.runs)
    share_block_jobs(plan)

    def work(actor: Actor) -> None:
        actor.life.suspend(vm.vm)
        plan.world.check_vm(vm)

    return str(vm), work


@step(8)
def power_on(plan: Plan) -> tuple[str, Work]:
    """onevm resume of a VM that is powered off or suspended."""
    vm = plan.vm(lambda vm: vm.is_off or vm.is_suspended)

    def work(actor: Actor) -> None:
        require_success(actor.life.power_on(vm.vm))
        plan.world.check_vm(vm)

    return f"{vm}{', suspended' * vm.is_suspended}", work


@step(6)
def terminate(plan: Plan) -> tuple[str, Work]:
    """onevm terminate: what is persistent goes back to its image."""
    world = plan.world
    vm = plan.vm(lambda vm: len(plan.model.vms) > FEWEST and not vm.is_away)
    kept = [disk for disk in vm.disks if disk.is_persistent]
    plan.may_fail(*(["tm.mvds"] if kept else []), "tm.delete")

    def old_or_new() -> None:
        for disk in kept:
            assert disk.image
            world.check_image(disk.image, disk.image.content, disk.now)

    def work(actor: Actor) -> None:
        if vm.runs:
            actor.kvm.shutdown(vm.vm, vm.host)
        actor.attempt(lambda life: life.oned.terminate(vm.vm), between=old_or_new)
        for disk in kept:
            give_back(world, disk)
        plan.model.vms.remove(vm)
        world.check_gone(vm, vm.host)

    return f"{vm} on {vm.host}{', kept' * bool(kept)}", work


@step(1)
def delete(plan: Plan) -> tuple[str, Work]:
    """onevm recover --delete: persistent images stay as they were."""
    world = plan.world
    vm = plan.vm(lambda vm: len(plan.model.vms) > FEWEST)
    host = world.place(vm).name

    def work(actor: Actor) -> None:
        if vm.runs:
            actor.kvm.shutdown(vm.vm, vm.host)
        require_success(*actor.life.oned.recover_delete(vm.vm))
        plan.model.vms.remove(vm)
        world.check_gone(vm, host)
        for disk in vm.disks:
            if disk.image and disk.is_persistent:
                world.check_image(disk.image)

    return f"{vm} on {host}", work


@step(3)
def take_away(plan: Plan) -> tuple[str, Work]:
    """onevm undeploy, or stop with its memory: to the front-end."""
    vm = plan.vm(lambda vm: vm.runs or vm.is_off)
    host, is_stop = vm.host, vm.runs and plan.chance(0.5)
    share_block_jobs(plan)
    plan.may_fail("tm.mv", needs=host)

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.stop(vm.vm) if is_stop else life.undeploy(vm.vm),
            lambda life: life.retry_epilog(vm.vm),
        )
        plan.world.check_vm(vm)
        plan.world.check_gone(vm, host)

    return f"{vm} from {host}{', with its memory' * is_stop}", work


@step(5)
def resume(plan: Plan) -> tuple[str, Work]:
    """onevm resume of what is stopped or undeployed, on any host and datastore."""
    vm = plan.vm(lambda vm: vm.is_away)
    host, front_end, restore = plan.host(), plan.world.bed.frontend.name, vm.has_checkpoint
    datastore = plan.rng.choice(plan.world.system_datastores)
    old = plan.world.directory(vm)
    plan.may_fail("tm.mv", needs=host)

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.resume(vm.vm, host, datastore),
            lambda life: life.retry_move(vm.vm, front_end, objects.ACTIVE, restore=restore),
            lambda: plan.world.check_whole(vm, vm.disks, where=host),
        )
        plan.world.check_vm(vm)
        plan.world.check_gone(vm, front_end, old)

    return f"{vm} on {host}, datastore {datastore.id}{', with its memory' * restore}", work


@step(5)
def migrate(plan: Plan) -> tuple[str, Work]:
    """onevm migrate, to another host, datastore or both, of a VM that runs or does not."""
    vm = plan.vm(lambda vm: not vm.is_away)
    old, state = vm.host, vm.vm.state
    datastore = plan.rng.choice(plan.world.system_datastores)
    is_elsewhere = datastore.id != vm.vm.history[-1].ds_id
    new = old if is_elsewhere and plan.chance(0.3) else plan.host(old)
    directory = plan.world.directory(vm)
    if vm.runs:
        share_block_jobs(plan)
    plan.may_fail("tm.mv", needs=plan.rng.choice([old, new]))

    def work(actor: Actor) -> None:
        actor.attempt(
            lambda life: life.migrate(vm.vm, new, datastore),
            lambda life: life.retry_move(vm.vm, old, state, restore=state == objects.ACTIVE),
            lambda: plan.world.check_whole(vm, vm.disks, where=new),
        )
        plan.world.check_vm(vm)
        plan.world.check_gone(vm, old, directory)

    return f"{vm} from {old} to {new}, datastore {datastore.id}{', running' * vm.runs}", work


@step(2)
def migrate_live(plan: Plan) -> tuple[str, Work]:
    """onevm migrate --live, which now and then breaks off."""
    vm = plan.vm(lambda vm: vm.runs)
    old, new = vm.host, plan.host(vm.host)
    share_block_jobs(plan)
    breaks_off = plan.chance(0.2)

    def work(actor: Actor) -> None:
        for actor.kvm.failing in [True, False] if breaks_off else [False]:
            is_to_stay = actor.kvm.failing
            require_success(actor.life.live_migrate(vm.vm, new))
            require_success(actor.life.after)
            if vm.host != (old if is_to_stay else new):
                raise Violation(f"{vm} is on {vm.host}")
            plan.world.check_vm(vm)
        plan.world.check_gone(vm, old)

    return f"{vm} from {old} to {new}{', at the second try' * breaks_off}", work


@step(1)
def recreate(plan: Plan) -> tuple[str, Work]:
    """onevm recover --recreate while its host lives; newer versions of oned want it to run."""
    vm = plan.vm(lambda vm: not vm.is_away)
    new = plan.host()
    share_replica(plan)
    share_block_jobs(plan)  # a pass that is under way may still make a copy that is used
    plan.may_fail("tm.clone recovery", needs=new)

    def work(actor: Actor) -> None:
        old = vm.host
        if vm.runs:
            actor.kvm.shutdown(vm.vm, old)
        come_back(actor, plan.world, vm, new)
        if new != old:
            plan.world.check_gone(vm, old)

    return f"{vm} from {vm.host} to {new}", work


def come_back(actor: Actor, world: World, vm: VmModel, new: str) -> None:
    """What was copied comes back as it was copied, the rest as its image is."""
    datastore = world.bed.cloud.datastores[vm.vm.history[-1].ds_id]
    require_success(*actor.life.oned.recover_recreate(vm.vm))
    vm.vm.snapshots.clear()
    for disk in vm.disks:
        disk.start_over()
    actor.attempt(
        lambda life: life.instantiate(vm.vm, new, datastore),
        lambda life: life.retry_prolog(vm.vm),
        lambda: world.check_whole(vm, vm.disks),
    )
    world.check_vm(vm)
