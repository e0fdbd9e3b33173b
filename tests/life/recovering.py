"""What tests of recovery copies have in common: passes, copies, and a VM that comes back."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

from tests.cluster import Node, NodeProcess
from tests.drivers.conftest import CALL_ENVIRONMENT, onestor_argv, program_before, unfinished
from tests.life.conftest import World
from tests.oned.objects import Vm
from tests.oned.reply import Reply
from tests.testbed import DATASTORES
from tests.waiting import wait_until

ROOT = f"{DATASTORES}/replica_snaps"


def argv(*words: str) -> list[str]:
    return onestor_argv("recovery", *words)


def onestor(world: World, *words: str, **environment: str) -> str:
    done = world.bed.frontend.run(
        argv(*words), env={**CALL_ENVIRONMENT, **environment}, check=False, timeout=300
    )
    return done.stdout + done.stderr


def run(world: World) -> str:
    """One pass, when all disks that ask for a copy each second are due again.

    Its exit status says whether a copy has failed.
    """
    time.sleep(1.1)
    done = world.bed.frontend.run(argv("run"), env=CALL_ENVIRONMENT, check=False, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == int(bool(re.search(r"\b[1-9][0-9]* failed", said))), said
    return said


def listed(world: World) -> dict[tuple[int, str], dict[str, Any]]:
    lines = onestor(world, "list", "--json").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return {(row["vm"], row["disk"]): row for row in rows}


def good(reply: Reply) -> None:
    assert reply.success, reply.error


def use_replicas(world: World, *names: str) -> None:
    world.bed.system.template["REPLICA_HOST"] = " ".join(names)
    world.bed.cloud.save(world.bed.system)


def started(world: World, *more: Any, host: str = "host01", frequency: str = "1") -> Vm:
    vm = world.bed.vm(world.image(), *more)
    for disk in vm.disks:
        disk.attributes["RECOVERY_SNAPSHOT_FREQ"] = frequency
    good(world.life.instantiate(vm, host, world.bed.system))
    world.kvm.guest_at_work(vm, host)
    return vm


def copies(world: World, vm: Vm, disk: int = 0, node: Node | None = None) -> list[str]:
    """The copies of a disk on the replica, the youngest first."""
    where = node or world.bed.hosts[2]
    root = f"{ROOT}/{vm.id}"
    # By no process of the node's: some tests ask until there is one.
    found = where.path(root).glob(f"disk.{disk}.*")
    names = sorted((each.name for each in found), reverse=True)
    return [f"{root}/{name}/disk.{disk}" for name in names if name[-1].isdigit()]


def moment(world: World, vm: Vm, node: Node | None = None) -> int:
    """How far the guest was by the only copy there is: the state at one moment."""
    where = node or world.bed.hosts[2]
    (copy,) = copies(world, vm, node=where)
    count = world.count(where, copy)
    assert count.is_one_moment
    return count.highest


def delete_for_recreate(world: World, vm: Vm) -> None:
    """What onevm recover --recreate does before the VM is placed anew."""
    for reply in world.bed.oned.recover_recreate(vm):
        good(reply)


def assert_nothing_is_left(world: World) -> None:
    world.bed.assert_at_rest()
    assert unfinished(world.bed) == []


def recreate(world: World, vm: Vm, host: str = "host02") -> None:
    """onevm recover --recreate, and its host is gone for good or not."""
    delete_for_recreate(world, vm)
    good(world.bed.oned.instantiate(vm, host, world.bed.system))


@contextlib.contextmanager
def being_fetched(world: World, replica: Node, meanwhile: str) -> Iterator[NodeProcess]:
    """A pass whose replica has just begun to fetch a copy from host01.

    The agent that the replica starts there does ``meanwhile``, in shell, before it begins.
    """
    at_work = f"/var/tmp/reading; {meanwhile}"
    stuck = f'case "$SSH_CLIENT" in "{replica.address}"*) touch {at_work};; esac\n'
    world.one.run(["rm", "-f", "/var/tmp/reading"])
    time.sleep(1.1)
    with (
        program_before(world.one, "python3", stuck + 'exec /usr/bin/python3 "$@"'),
        world.bed.frontend.popen(argv("run"), env=CALL_ENVIRONMENT) as process,
    ):
        wait_until(lambda: world.one.exists("/var/tmp/reading"), "the copy is fetched", 60)
        yield process
