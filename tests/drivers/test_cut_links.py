"""A machine that is lost at each phase of an action: its link is cut, or its power.

The phases are the crash points. Where a crash test lets the process die there, here it is stopped
until the machine is lost, and goes on then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    RAW,
    configure_system,
    content,
    digest,
    entry_of,
    impatient,
    placed,
    same_content,
    unfinished,
    write,
)
from tests.drivers.test_crash import persistent_image
from tests.drivers.test_moving import tree
from tests.oned import objects, transfer
from tests.oned.mads import TransferMad
from tests.oned.objects import Vm
from tests.oned.reply import Reply
from tests.sampling import sample
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fault]


def stopping(bed: Testbed) -> contextlib.AbstractContextManager[None]:
    """The first process of each machine that reaches the chosen point stops there."""
    is_first = "NOTE.stat().st_size == len(name) + 1"
    stop = f"signal.SIGSTOP if {is_first} else signal.SIGCONT)"
    return bed.changed_source("agent/crashpoints.py", ("signal.SIGKILL)", stop))


def cut(node: Node) -> None:
    node.cut()


def kill(node: Node) -> None:
    node.kill()


LOSSES = (cut, kill)


def lose(bed: Testbed, point: str, name: str, loss: Callable[[Node], None], line: str) -> Reply:
    """Run a line of a transfer script, and lose a machine when it has reached ``point``."""
    (node,) = [node for node in bed.hosts if node.name == name]
    bed.configure("CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=2\n")
    mad = TransferMad(bed.frontend, bed.cloud.version)
    mad.environment[crashpoints.VARIABLE] = point
    with impatient(bed), stopping(bed):
        call = mad.start_line(line)
        wait_until(lambda: bed.crashed_at() or call.join(0), f"{point} is reached", timeout=30)
        assert set(bed.crashed_at()) == {point}, "never a point that nobody passes"
        loss(node)
        begin = time.monotonic()
        while not call.join(0.2):
            assert time.monotonic() - begin < 60, "nobody notices"
            go_on(bed)
        reply = call.wait()
    go_on(bed)
    (node.start if loss is kill else node.heal)()
    bed.configure()
    # What was there at a loss of power goes with the next one who sweeps there.
    dead = f"{name}:" if loss is kill else "nobody"

    def is_clean() -> bool:
        return all(each.startswith(dead) for each in bed.leftovers())

    wait_until(is_clean, "everybody has cleaned up", timeout=90)
    if not reply.success:
        lines = reply.result.stderr.splitlines()
        (error,) = [each for each in lines if not each.startswith(("INFO:", "WARN:"))]
        assert name in error
    return reply


def go_on(bed: Testbed) -> None:
    """Whatever stands still on the machines that are up goes on."""
    for node in bed.cluster.nodes:
        with contextlib.suppress(RuntimeError):  # it is down
            node.run(["sh", "-c", "kill -CONT -1"], check=False)


ONE_MACHINE = (
    "crosses no link but that of the agent: the operation ends as at a kill (test_crash.py)"
)
LIVE = "works on a domain, which needs libvirtd on the hosts (tests/life)"
# Actions with crash points that are not tried here, each with the reason.
NOT_HERE = {
    "tm.clone": "crosses the same links in the same way as a thin clone, which is tried",
    "tm.clone recovery": f"{LIVE}: test_recreate.py cuts the replica's link during a fetch",
    "recovery": f"{LIVE}: test_recovery.py cuts the host's link before a pass, not within it",
    "tm.snap_create_live": LIVE,
    "datastore.cp": "has one machine but with a bridge host: test_datastore.py has one that is dead"
    " from the beginning, none that is lost in the middle",
    "datastore.rm": ONE_MACHINE,
    "eviction": ONE_MACHINE,
    "flatten": ONE_MACHINE,
    "thin": "makes a cold cache fill as a clone does, the rest is on one machine",
    "tm.delete": ONE_MACHINE,
    "tm.snap_create": ONE_MACHINE,
    "tm.snap_delete": ONE_MACHINE,
    "tm.snap_revert": ONE_MACHINE,
}
TRIED: set[str] = set()  # the actions of all phases


def phases(*victims: str, action: str) -> list[tuple[str, str, Callable[[Node], None]]]:
    """Every point of an action at which each of the machines is lost in either way."""
    TRIED.add(action)
    points = sorted(crashpoints.names(action))
    return [(point, name, loss) for point in points for name in victims for loss in LOSSES]


@pytest.mark.parametrize(
    ("point", "name", "loss"), sample(phases("host01", "host03", action="tm.clone thin"), 1)
)
def test_K7_K8_a_clone_by_way_of_a_replica(
    bed: Testbed, point: str, name: str, loss: Callable[[Node], None]
) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(MEDIUM_QCOW2)
    vm = bed.vm(image)
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    (line,) = transfer.prolog(vm, "fe")
    reply = lose(bed, point, name, loss, line)
    if name == "host03":
        assert reply.success, "the replica is no more than a help"
    if reply.success or host.exists(disk):
        assert same_content(bed, host, disk, "qcow2", MEDIUM_QCOW2)
    for node in (host, bed.hosts[2]):
        if node.exists(entry_of(image)):
            assert digest(node, entry_of(image)) == digest(bed.frontend, MEDIUM_QCOW2)
    again = bed.oned.retry_prolog(vm)
    assert again.success, again.error
    assert same_content(bed, host, disk, "qcow2", MEDIUM_QCOW2)
    later = bed.vm(image)
    assert bed.oned.instantiate(later, "host02", bed.system).success
    assert same_content(bed, bed.hosts[1], bed.disk_path(later), "qcow2", MEDIUM_QCOW2)
    assert unfinished(bed) == []


def powered_off(bed: Testbed, *, persistent: bool) -> Vm:
    image = bed.image(MEDIUM if persistent else MEDIUM_QCOW2, persistent=persistent)
    vm = placed(bed, image)
    write(bed.hosts[0], bed.disk_path(vm), image.format, 7)
    return vm


@pytest.mark.parametrize(
    ("point", "name", "loss"), sample(phases("host01", "host02", action="tm.mv"), 1)
)
def test_D8_K8_a_move(bed: Testbed, point: str, name: str, loss: Callable[[Node], None]) -> None:
    vm = powered_off(bed, persistent=False)
    one, two = bed.hosts[:2]
    directory = f"{DATASTORES}/102/{vm.id}"
    before = tree(one, directory)
    if point == "move.aside":
        two.write(f"{directory}/old", "old")
    bed.cloud.place(vm, "host02", bed.system, 1)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_MIGRATE)
    line = transfer.move(vm, "host01", "host02")[-1]
    reply = lose(bed, point, name, loss, line)
    places = [node for node in (one, two) if node.exists(directory)]
    assert any(tree(node, directory).items() >= before.items() for node in places)
    if not reply.success:
        again = bed.oned.transfer_mad.run_line(line)
        assert again.success, again.error
    assert tree(two, directory) == before and not one.exists(directory)
    bed.assert_at_rest()


@pytest.mark.parametrize(("point", "name", "loss"), sample(phases("host01", action="tm.mvds"), 1))
def test_E4_K8_a_disk_goes_back(
    bed: Testbed, point: str, name: str, loss: Callable[[Node], None]
) -> None:
    vm = powered_off(bed, persistent=True)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    image = bed.cloud.images[vm.disks[0].image_id or 0]
    old, new = digest(bed.frontend, entry_of(image)), digest(host, disk)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.EPILOG)
    line = transfer.epilog(vm)[0]
    reply = lose(bed, point, name, loss, line)
    found = digest(bed.frontend, entry_of(image))
    assert found == new or (found == old and digest(host, disk) == new and not reply.success)
    again = bed.oned.transfer_mad.run_line(line)
    assert again.success, again.error
    assert digest(bed.frontend, entry_of(image)) == new
    bed.assert_at_rest()


@pytest.mark.parametrize(("point", "name", "loss"), sample(phases("host01", action="tm.cpds"), 1))
def test_E4_K8_a_disk_is_saved_as_another_image(
    bed: Testbed, point: str, name: str, loss: Callable[[Node], None]
) -> None:
    vm = powered_off(bed, persistent=False)
    host, path = bed.hosts[0], bed.disk_path(vm)
    before, seen = digest(host, path), content(host, path, "qcow2")
    saved = bed.cloud.add_image(bed.images, size=8, format="save_as", state=objects.LOCKED)
    made = bed.oned.image_action("mkfs", saved)
    saved.source, saved.format = made.info.split()[0], "qcow2"
    bed.cloud.save(saved)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.HOTPLUG_SAVEAS_POWEROFF)
    (line,) = transfer.save_as(vm, vm.disks[0], saved.source, -1)
    reply = lose(bed, point, name, loss, line)
    assert digest(host, path) == before
    if reply.success or bed.frontend.exists(saved.source):
        assert content(bed.frontend, saved.source, "qcow2") == seen
    again = bed.oned.transfer_mad.run_line(line)
    assert again.success, again.error
    assert content(bed.frontend, saved.source, "qcow2") == seen
    bed.assert_at_rest()


@pytest.mark.parametrize(("point", "name", "loss"), sample(phases("host01", action="tm.ln"), 1))
def test_C2_K8_a_persistent_image_becomes_a_disk(
    bed: Testbed, point: str, name: str, loss: Callable[[Node], None]
) -> None:
    vm = bed.vm(persistent_image(bed))
    host, disk = bed.hosts[0], bed.disk_path(vm)
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    (line,) = transfer.prolog(vm, "fe")
    reply = lose(bed, point, name, loss, line)
    if reply.success or host.exists(disk):
        assert digest(host, disk) == digest(bed.frontend, RAW)
    again = bed.oned.retry_prolog(vm)
    assert again.success, again.error
    assert digest(host, disk) == digest(bed.frontend, RAW)
    assert host.read(f"{disk}.snap/0") == b"snapshot 0"
    bed.assert_at_rest()


def test_each_action_is_tried_or_has_a_reason() -> None:
    known = {action for actions in crashpoints.POINTS.values() for action in actions}
    assert TRIED | set(NOT_HERE) == known
    assert not TRIED & set(NOT_HERE)
