"""Saving the disk of a VM that runs: consistent, bounded, undone (known failures E7 to E11)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.drivers.conftest import agents, program_before
from tests.life.conftest import SOURCES, World
from tests.oned import objects, transfer
from tests.oned.objects import IMAGE_ERROR, READY, Image, Vm
from tests.testbed import DATASTORES
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def guests_go_on(request: pytest.FixtureRequest, world: World) -> Iterator[None]:
    names = sorted({"vm", "with_raw"} & set(request.fixturenames))
    vms = [request.getfixturevalue(name) for name in names]
    yield
    for vm in vms:
        assert world.kvm.state(vm, "host01") == "running"


def saved(world: World, vm: Vm, disk: int = 0) -> Image:
    image = world.life.save_as(vm, vm.disks[disk])
    assert image.state == READY, image.template
    return image


def failed(world: World, vm: Vm) -> str:
    """The error; nothing is left of the try (known failure E13)."""
    before = world.bed.files(world.bed.frontend)
    there = world.names(world.one, vm)
    image = world.life.save_as(vm, vm.disks[0])
    assert image.state == IMAGE_ERROR
    assert world.bed.files(world.bed.frontend) == before
    assert world.names(world.one, vm) == there
    return str(image.template["ERROR"])


def is_one_moment(world: World, image: Image) -> bool:
    return world.count(world.bed.frontend, image.source, image.format).is_one_moment


def failing(action: str) -> str:
    """A virsh that fails to do one thing and notes the others."""
    return (
        f'case " $* " in *" {action} "*) echo "{action} is broken" >&2; exit 1;; esac\n'
        'echo "$*" >> /var/tmp/virsh.log; exec /usr/bin/virsh "$@"'
    )


def copy_target(world: World) -> str:
    """A file for somebody else's block job."""
    copy = f"{SOURCES}/copy.qcow2"
    world.one.run(["qemu-img", "create", "-q", "-f", "qcow2", copy, "64M"])
    return copy


def test_E7_E12_a_guest_that_writes_and_goes_on(world: World, with_raw: Vm) -> None:
    vm = with_raw
    image = saved(world, vm)
    count = world.count(world.bed.frontend, image.source)
    assert count.is_one_moment and count.highest > 0
    raw = saved(world, vm, 1)
    original = world.bed.frontend.read(f"{SOURCES}/guest.raw")
    assert world.bed.frontend.read(raw.source) == original
    world.kvm.guest_at_work(vm, "host01")
    assert world.count(world.one, world.disk(vm)).highest > count.highest


def test_E10_another_block_job_is_waited_for_or_cancelled(world: World, vm: Vm) -> None:
    """One that takes a while, and ends by itself; one that does not end."""
    copy = copy_target(world)
    script = (
        f"virsh -q -c qemu:///system blockcopy one-{vm.id} vda --dest {copy} --format qcow2"
        " --reuse-external --transient-job --wait --finish --bytes --bandwidth 6000000"
    )
    with world.one.popen(["sh", "-c", script]) as job:
        wait_until(lambda: "mirror" in world.kvm.virsh("host01", "dumpxml", f"one-{vm.id}"), "job")
        image = saved(world, vm)
        assert job.poll() == 0  # it was not disturbed
    assert is_one_moment(world, image)
    world.one.run(["rm", copy])

    world.bed.configure('BLOCK_JOB_TIMEOUT="2"\n')
    copy = copy_target(world)
    words = ["--dest", copy, "--format", "qcow2", "--reuse-external", "--transient-job"]
    world.kvm.virsh("host01", "blockcopy", f"one-{vm.id}", "vda", *words)
    assert is_one_moment(world, saved(world, vm))
    world.one.run(["rm", copy])


def test_E7_without_block_copies_the_guest_stands_still_for_a_moment(world: World, vm: Vm) -> None:
    """It has no agent that could freeze its file systems: the third way."""
    with program_before(world.one, "virsh", failing("blockcopy")):
        image = saved(world, vm)
    assert is_one_moment(world, image)
    said = world.one.read("/var/tmp/virsh.log").decode()
    assert f"suspend {vm.deploy_id}" in said and f"resume {vm.deploy_id}" in said
    assert "blockcopy is broken" in world.bed.log() and "copied another way" in world.bed.log()


def test_E8_E11_a_copy_that_takes_long_does_not_hold_the_guest(world: World, vm: Vm) -> None:
    """Nor is one made of what another hypervisor runs."""
    world.bed.configure('FREEZE_TIMEOUT="1"\nSUSPEND_TIMEOUT="1"\n')
    suspends = failing("blockcopy")
    # The guest has no agent: what virsh would say if it had.
    freezes = f'case "$*" in *domfs*) echo "$*" >> /var/tmp/fs.log; exit 0;; esac\n{suspends}'
    for virsh in (suspends, freezes):
        with program_before(world.one, "virsh", virsh), program_before(world.one, "cp", "sleep 60"):
            begin = time.monotonic()
            error = failed(world, vm)
            assert time.monotonic() - begin < 30
        assert "timed out after 1 s" in error
        assert world.kvm.state(vm, "host01") == "running"
    said = world.one.read("/var/tmp/fs.log").decode().split("\n")
    kinds = [line.split()[3] for line in said if line]
    assert kinds == ["domfsfreeze", "domfsthaw"]

    vm.history[-1].vm_mad = "lxc"
    world.bed.cloud.save(vm)
    with program_before(world.one, "virsh", "touch /var/tmp/virsh-was-called"):
        error = failed(world, vm)
    assert "run on 'lxc' cannot be copied" in error
    assert not world.one.exists("/var/tmp/virsh-was-called")


def test_E8_an_action_that_is_ended_leaves_the_guest_running(world: World, vm: Vm) -> None:
    """SIGTERM while the guest stands still, and while it is copied."""
    source = f"/var/lib/one//datastores/101/{'0' * 32}"
    for program, script in (("virsh", failing("blockcopy")), ("ionice", "exit 0")):
        slow = "touch /var/tmp/slow; sleep 60"
        with program_before(world.one, program, script), program_before(world.one, "cp", slow):
            world.bed.configure('REPLICA_BWLIMIT_MB_S="1"\n')
            world.bed.cloud.set_state(vm, objects.ACTIVE, objects.HOTPLUG_SAVEAS)
            line = transfer.save_as(vm, vm.disks[0], source, -1)
            call = world.bed.oned.transfer_mad.start_script(line)
            if program == "virsh":
                wait_until(lambda: world.one.exists("/var/tmp/slow"), "the guest stands still")
            else:
                wait_until(
                    lambda: "mirror" in world.kvm.virsh("host01", "dumpxml", f"one-{vm.id}"),
                    "the disk is copied",
                )
            call.kill(15)
            assert not call.wait().success
            world.bed.assert_at_rest()
            wait_until(lambda: world.kvm.state(vm, "host01") == "running", "the guest goes on")
        world.one.run(["rm", "-f", "/var/tmp/slow"])
    world.bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)


def test_E7_a_guest_that_a_killed_action_has_suspended_goes_on_with_the_next(
    world: World, vm: Vm
) -> None:
    slow = "touch /var/tmp/slow; sleep 60"
    world.one.run(["rm", "-f", "/var/tmp/slow"])
    with (
        program_before(world.one, "virsh", failing("blockcopy")),
        program_before(world.one, "cp", slow),
    ):
        world.bed.cloud.set_state(vm, objects.ACTIVE, objects.HOTPLUG_SAVEAS)
        line = transfer.save_as(vm, vm.disks[0], f"{DATASTORES}/101/{'0' * 32}", -1)
        call = world.bed.oned.transfer_mad.start_script(line)
        wait_until(lambda: world.one.exists("/var/tmp/slow"), "the guest stands still")
        world.one.run(["kill", "-KILL", *map(str, agents(world.one))])
        assert not call.wait().success
    assert world.kvm.state(vm, "host01") == "paused"
    assert is_one_moment(world, saved(world, vm))
    assert world.kvm.state(vm, "host01") == "running"


def test_E7_E8_an_action_that_is_ended_just_then(world: World, vm: Vm) -> None:
    """libvirt has done what it was asked, and virsh has not told so yet."""
    for word in ("suspend", "blockcopy"):
        ended_just_then(world, vm, word)


def ended_just_then(world: World, vm: Vm, word: str) -> None:
    done = 'touch /var/tmp/asked; /usr/bin/virsh "$@"; sleep 60'
    script = f'case " $* " in *" {word} "*) {done};; esac\n'
    if word == "suspend":
        script += failing("blockcopy")
    else:
        script += 'exec /usr/bin/virsh "$@"'
    world.one.run(["rm", "-f", "/var/tmp/asked"])
    with program_before(world.one, "virsh", script):
        world.bed.cloud.set_state(vm, objects.ACTIVE, objects.HOTPLUG_SAVEAS)
        line = transfer.save_as(vm, vm.disks[0], f"{DATASTORES}/101/{'0' * 32}", -1)
        call = world.bed.oned.transfer_mad.start_script(line)
        wait_until(lambda: world.one.exists("/var/tmp/asked"), "it is asked")
        if word == "suspend":
            wait_until(lambda: world.kvm.state(vm, "host01") == "paused", "it is done")
        else:
            xml = ("host01", "dumpxml", f"one-{vm.id}")
            wait_until(lambda: "mirror" in world.kvm.virsh(*xml), "it is done")
        call.kill(15)
        assert not call.wait().success
        wait_until(lambda: world.kvm.state(vm, "host01") == "running", "the guest goes on")
        wait_until(lambda: "mirror" not in world.kvm.virsh("host01", "dumpxml", f"one-{vm.id}"), "")
