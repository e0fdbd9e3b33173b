"""tm mv: a VM's directory on its way between machines (known failures D)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    MEDIUM,
    MEDIUM_QCOW2,
    agents,
    clone,
    configure_system,
    entry_of,
    forget_log,
    placed,
    points,
    program_before,
    same_content,
    vm_files,
)
from tests.oned import objects, transfer
from tests.oned.life import Life
from tests.oned.objects import Datastore, Vm
from tests.oned.reply import Reply
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster


def tree(node: Node, directory: str) -> dict[str, tuple[str, int, str]]:
    """Everything in a VM's directory, notes and locks aside: kind, mode, content."""
    root = node.path(directory)
    found = {}
    for where, below, names in os.walk(root):
        for name in (*below, *names):
            path = Path(where, name)
            if name.endswith((".lock", ".record")):
                continue
            facts = path.lstat()
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_dir():
                content = "directory"
            else:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            mode = 0 if path.is_symlink() else facts.st_mode & 0o7777
            found[str(path.relative_to(root))] = (content, mode, "")
    return found


@pytest.fixture
def vm(bed: Testbed) -> Vm:
    """A VM on host01 that is powered off: a thin disk with snapshots, a persistent raw one, an
    empty one, and what else lies in such a directory."""
    return furnished(bed, placed(bed, bed.image(MEDIUM_QCOW2)))


@pytest.fixture
def cloned(bed: Testbed) -> Vm:
    """The same of a disk that was cloned: it has a record, and its base is in the host's cache."""
    vm = clone(bed, bed.image(MEDIUM_QCOW2), bed.hosts[0])
    bed.cloud.set_state(vm, objects.POWEROFF)
    return furnished(bed, vm)


def furnished(bed: Testbed, vm: Vm) -> Vm:
    """Put the rest beside the thin disk."""
    host, directory = bed.hosts[0], directory_of(bed, vm)
    kept = bed.cloud.image_disk(bed.image(MEDIUM, persistent=True))
    for disk, content in (
        (kept, bed.frontend.read(MEDIUM)),
        (bed.cloud.volatile_disk(4), bytes(4 << 20)),
    ):
        bed.cloud.add_disk(vm, disk)
        bed.cloud.settle(disk, bed.system)
        host.write(f"{directory}/disk.{disk.id}", content, mode=0o660)
    bed.cloud.save(vm)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", f"{directory}/disk.0"]
    host.run(argv)
    host.run(["mkdir", f"{directory}/disk.0.snap"])
    host.run(["ln", "-s", "../disk.0.base", f"{directory}/disk.0.snap/disk.0.base"])
    for snapshot in ("0", "9", "10", "123"):
        host.run(["cp", f"{directory}/disk.0", f"{directory}/disk.0.snap/{snapshot}"])
    host.write(f"{directory}/snap-0.xml", "<domainsnapshot/>")
    host.write(f"{directory}/checkpoint", b"memory" * 1000, mode=0o600)
    forget_log(bed)
    return vm


def directory_of(bed: Testbed, vm: Vm) -> str:
    return f"{DATASTORES}/{vm.history[-1].ds_id}/{vm.id}"


def directory_line(vm: Vm, source: str = "host01", target: str = "host02") -> str:
    """The line of a transfer script that does it all; those of the disks do nothing.

    The whole script is run where everything arrives.
    """
    return transfer.move(vm, source, target, old_datastore=vm.history[0].ds_id)[-1]


def move(bed: Testbed, vm: Vm, host: str = "host02", datastore: Datastore | None = None) -> Reply:
    source = vm.history[-1].hostname
    bed.cloud.place(vm, host, datastore or bed.system)
    return repeat(bed, vm, source, host)


def repeat(bed: Testbed, vm: Vm, source: str = "host01", target: str = "host02") -> Reply:
    """Again, as `onevm recover --retry` has it run."""
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_MIGRATE)
    reply = bed.oned.transfer_mad.run_line(directory_line(vm, source, target))
    bed.cloud.set_state(vm, objects.POWEROFF)
    return reply


def test_D7_D19_everything_arrives_and_the_source_is_gone(bed: Testbed, cloned: Vm) -> None:
    directory = directory_of(bed, cloned)
    before = tree(bed.hosts[0], directory)
    reply = Life(bed.oned).migrate(cloned, "host02")
    assert reply.success, reply.error
    assert tree(bed.hosts[1], directory) == before
    assert not bed.hosts[0].exists(directory)
    assert bed.hosts[1].read(f"{DATASTORES}/102/.monitor") == b"onestor\n"
    for snapshot in ("0", "9", "10", "123"):
        file = f"{directory}/disk.0.snap/{snapshot}"
        bed.hosts[1].run(["qemu-img", "check", "-f", "qcow2", file])
        info = ["qemu-img", "info", "--backing-chain", "-f", "qcow2", file]
        assert "disk.0.base" in bed.hosts[1].run(info).stdout


def test_D10_C10_a_base_that_the_target_has_is_linked_and_not_sent(
    bed: Testbed, cloned: Vm
) -> None:
    image = bed.cloud.images[cloned.disks[0].image_id or 0]
    clone(bed, image, bed.hosts[1])
    sent = bed.hosts[0].bytes_sent()
    assert move(bed, cloned).success
    base = f"{directory_of(bed, cloned)}/disk.0.base"
    host = bed.hosts[1]
    assert host.path(base).stat().st_ino == host.path(entry_of(image)).stat().st_ino
    written = 5 * (64 << 10) * 4 + (6 << 20)  # overlay and snapshots with their metadata; disk.1
    assert bed.hosts[0].bytes_sent() - sent < written
    assert "disk.0.base there already" in bed.log()


def test_D10_a_base_that_is_not_there_is_sent_once(bed: Testbed, cloned: Vm) -> None:
    host = bed.hosts[1]
    assert move(bed, cloned).success
    base = f"{directory_of(bed, cloned)}/disk.0.base"
    assert host.path(base).stat().st_mode & 0o777 == 0o444
    assert not host.exists(f"{DATASTORES}/101")  # it goes past the cache
    assert move(bed, cloned, "host01").success  # there it is in the cache still
    image = bed.cloud.images[cloned.disks[0].image_id or 0]
    one = bed.hosts[0]
    assert one.path(base).stat().st_ino == one.path(entry_of(image)).stat().st_ino


def test_D10_a_cached_base_with_other_content_is_not_taken(bed: Testbed, cloned: Vm) -> None:
    """The image has a new version by now, and the target's cache has that one."""
    image = bed.cloud.images[cloned.disks[0].image_id or 0]
    source = bed.frontend.read(entry_of(image))
    bed.frontend.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 64k", entry_of(image)])
    clone(bed, image, bed.hosts[1])
    directory = directory_of(bed, cloned)
    before = tree(bed.hosts[0], directory)
    assert move(bed, cloned).success
    assert tree(bed.hosts[1], directory) == before
    assert bed.hosts[1].read(f"{directory}/disk.0.base") == source


@pytest.mark.parametrize("name", ["disk.0", "disk.2"])
def test_disk_lines_are_done_by_the_line_of_the_directory(bed: Testbed, vm: Vm, name: str) -> None:
    ends = [f"{host}:{directory_of(bed, vm)}/{name}" for host in ("host01", "host02")]
    before = vm_files(bed, bed.hosts[0])
    line = f"MV.onestor onestor {' '.join(ends)} {vm.id} 101"
    assert bed.oned.transfer_mad.run_line(line).success
    assert vm_files(bed, bed.hosts[0]) == before and vm_files(bed, bed.hosts[1]) == {}


def test_D21_stop_and_resume_by_way_of_the_front_end(bed: Testbed, cloned: Vm) -> None:
    life, directory = Life(bed.oned), directory_of(bed, cloned)
    before = tree(bed.hosts[0], directory)
    assert life.undeploy(cloned).success
    assert tree(bed.frontend, directory) == before
    assert not bed.hosts[0].exists(directory)
    # The front-end has the image: its base is a copy, never another name of the origin.
    image = bed.cloud.images[cloned.disks[0].image_id or 0]
    assert bed.frontend.path(entry_of(image)).stat().st_nlink == 1
    assert life.resume(cloned, "host03").success
    after = tree(bed.hosts[2], directory)
    for name in ("vm.xml", "ds.xml"):  # written anew at every start
        del before[name], after[name]
    assert after == before
    assert not bed.frontend.exists(directory)


def test_D6_another_datastore_of_the_same_host(bed: Testbed, vm: Vm) -> None:
    other = bed.cloud.add_system_datastore(id=112)
    old = directory_of(bed, vm)
    host = bed.hosts[0]
    host.run(["ln", "-s", f"{old}/disk.1", f"{old}/absolute"])  # D11: it names the old place
    before = tree(host, old)
    try:
        reply = move(bed, vm, "host01", other)
        assert reply.success, reply.error
        new = directory_of(bed, vm)
        assert new == f"{DATASTORES}/112/{vm.id}"
        after = tree(host, new)
        assert after.pop("absolute")[0] == "disk.1" and before.pop("absolute")
        assert after == before
        assert not host.exists(old) and host.exists(f"{DATASTORES}/112/.monitor")
    finally:
        bed.cloud.delete(other)


def test_D6_another_datastore_on_another_file_system(bed: Testbed, cloned: Vm) -> None:
    other = bed.cloud.add_system_datastore(id=112)
    host, old = bed.hosts[0], directory_of(bed, cloned)
    host.run(["mkdir", "-p", f"{DATASTORES}/112"])
    host.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", f"{DATASTORES}/112"], user="root")
    host.run(["chown", "oneadmin:oneadmin", f"{DATASTORES}/112"], user="root")
    before = tree(host, old)
    try:
        reply = move(bed, cloned, "host01", other)
        assert reply.success, reply.error
        assert tree(host, directory_of(bed, cloned)) == before and not host.exists(old)
    finally:
        host.run(["umount", f"{DATASTORES}/112"], user="root")
        bed.cloud.delete(other)


def test_D9_the_dead_source_is_not_even_asked(bed: Testbed, vm: Vm) -> None:
    host = bed.hosts[0]
    host.cut()
    bed.cloud.place(vm, "host02", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_MIGRATE_UNKNOWN)
    for state in (60, 61):
        bed.cloud.set_state(vm, objects.ACTIVE, state)
        assert bed.oned.transfer_mad.run_line(directory_line(vm)).success
    host.heal()
    assert bed.files(bed.hosts[1]) == {}


def test_D1_L13_the_only_copy_stays_where_it_is(bed: Testbed, vm: Vm) -> None:
    """A move failed, was declared a success, and now the VM is to be moved back."""
    directory = directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    reply = repeat(bed, vm, "host02", "host01")  # host02 never had it
    assert reply.success, reply.error
    assert tree(bed.hosts[0], directory) == before
    # The VM was started there, so there is something, but no disk.
    bed.hosts[1].write(f"{directory}/vm.xml", "<VM/>")
    reply = repeat(bed, vm, "host02", "host01")
    assert reply.success, reply.error
    assert tree(bed.hosts[0], directory) == before
    assert tree(bed.hosts[1], directory) == {"vm.xml": tree(bed.hosts[1], directory)["vm.xml"]}


def test_D1_nothing_anywhere_is_an_error_that_names_the_place(bed: Testbed, vm: Vm) -> None:
    reply = repeat(bed, vm, "host02", "host03")
    assert not reply.success
    where = f"host02:{directory_of(bed, vm)}"
    assert where in reply.error and "no such directory" in reply.error


def test_D2_an_incomplete_source_moves_nothing(bed: Testbed, vm: Vm) -> None:
    directory = directory_of(bed, vm)
    bed.hosts[0].run(["rm", f"{directory}/disk.1"])
    bed.hosts[1].write(f"{directory}/old", "old")
    reply = move(bed, vm)
    assert not reply.success and "disk.1 missing" in reply.error
    assert bed.hosts[0].exists(f"{directory}/disk.0")
    assert set(tree(bed.hosts[1], directory)) == {"old"}


def test_D2_an_unreadable_source_moves_nothing(bed: Testbed, vm: Vm) -> None:
    directory = directory_of(bed, vm)
    checkpoint = f"{directory}/checkpoint"
    bed.hosts[0].run(["chown", "root:root", checkpoint], user="root")
    bed.hosts[1].write(f"{directory}/old", "old")
    before = tree(bed.hosts[0], directory)
    reply = move(bed, vm)
    assert not reply.success and checkpoint in reply.error
    assert tree(bed.hosts[0], directory) == before
    assert set(tree(bed.hosts[1], directory)) == {"old"}


def test_D2_an_old_directory_at_the_target_goes_when_the_new_one_is_there(
    bed: Testbed, vm: Vm
) -> None:
    directory = directory_of(bed, vm)
    bed.hosts[1].write(f"{directory}/old", "old")
    before = tree(bed.hosts[0], directory)
    assert move(bed, vm).success
    assert tree(bed.hosts[1], directory) == before


@pytest.mark.parametrize("host", ["host01", "host02"])
def test_D3_a_probe_that_fails_moves_nothing(bed: Testbed, vm: Vm, host: str) -> None:
    """On the source no marker can be made, on the target nobody can look for it."""
    directory = directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    node = bed.cluster.node(host)
    if host == "host01":
        node.run(["chmod", "0555", directory])
        reply = move(bed, vm)
        node.run(["chmod", "0755", directory])
        assert "mark the directory" in reply.error
    else:
        with program_before(node, "python3", "exit 7"):
            reply = move(bed, vm)
        assert "host01" in reply.error and "host02" in reply.error
    assert not reply.success
    assert tree(bed.hosts[0], directory) == before
    assert vm_files(bed, bed.hosts[1]) == {}


@pytest.mark.parametrize("name", one_of(2, ["host01.example", "10.99.0.11"]))
def test_D4_one_host_under_two_names(bed: Testbed, vm: Vm, name: str) -> None:
    directory = directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    added = f"10.99.0.11 {name}\n"
    for node in bed.cluster.nodes:
        node.run(["sh", "-c", f"echo '{added}' >> /etc/hosts"], user="root")
    bed.frontend.run(["sh", "-c", "cp .ssh/known_hosts .ssh/known_hosts.before"])
    try:
        reply = repeat(bed, vm, "host01", name)
        assert reply.success, reply.error
        reply = repeat(bed, vm, name, "host01")
        assert reply.success, reply.error
    finally:
        for node in bed.cluster.nodes:
            node.run(
                ["sh", "-c", f"grep -v '{name}$' /etc/hosts > /tmp/h; cat /tmp/h > /etc/hosts"],
                user="root",
            )
    assert tree(bed.hosts[0], directory) == before
    assert bed.log().count("both are one directory") == 2


def test_D7_a_full_target_fails_before_anything_is_sent(bed: Testbed, vm: Vm) -> None:
    host, directory = bed.hosts[1], directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    host.mount_datastores(4)
    try:
        reply = move(bed, vm)
        assert not reply.success
        assert "MB needed" in reply.error and "MB available" in reply.error
        assert vm_files(bed, host) == {}
        bed.cloud.place(vm, "host01", bed.system)
        configure_system(bed, CHECK_FREE_SPACE="NO")
        reply = move(bed, vm)  # now it runs into the end of the disk
        assert not reply.success and "No space left" in reply.error
        assert vm_files(bed, host) == {}
    finally:
        host.unmount_datastores()
    assert tree(bed.hosts[0], directory) == before


def test_D7_a_source_that_changes_meanwhile_stays(bed: Testbed, vm: Vm) -> None:
    """Somebody writes to it while it is sent: what has arrived is not what is there."""
    directory = directory_of(bed, vm)
    bed.hosts[1].limit_rate(40)
    bed.cloud.place(vm, "host02", bed.system)
    call = bed.oned.transfer_mad.start_line(directory_line(vm))
    part = f".{vm.id}."
    wait_until(lambda: any(part in name for name in bed.files(bed.hosts[1])), "it is on its way")
    bed.hosts[0].write(f"{directory}/new.xml", "<new/>")
    bed.hosts[0].write(f"{directory}/checkpoint", b"other" * 1000, mode=0o600)
    reply = call.wait()
    bed.hosts[1].unlimit_rate()
    assert not reply.success and "changed" in reply.error
    assert bed.hosts[0].exists(f"{directory}/disk.0")
    assert vm_files(bed, bed.hosts[1]) == {}


@pytest.mark.parametrize("cut", ["host01", "host02"])
def test_D8_a_link_that_breaks_half_way(bed: Testbed, vm: Vm, cut: str) -> None:
    directory = directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    bed.configure('STALL_TIMEOUT="3"\nCONNECT_TIMEOUT="3"\n')
    bed.hosts[1].limit_rate(40)
    bed.cloud.place(vm, "host02", bed.system)
    call = bed.oned.transfer_mad.start_line(directory_line(vm))
    part = f".{vm.id}."
    wait_until(lambda: any(part in name for name in bed.files(bed.hosts[1])), "it is on its way")
    if cut == "host02":
        bed.hosts[1].cut()
        reply = call.wait()
        bed.hosts[1].heal()
    else:
        call.kill(9)
        reply = call.wait()
    bed.hosts[1].unlimit_rate()
    assert not reply.success
    wait_until(lambda: not agents_at_work(bed), "both agents have ended", 120)
    assert tree(bed.hosts[0], directory) == before
    wait_until(lambda: vm_files(bed, bed.hosts[1]) == {}, "nothing is left at the target", 120)
    assert repeat(bed, vm).success
    assert tree(bed.hosts[1], directory) == before and not bed.hosts[0].exists(directory)


@pytest.mark.crash
@pytest.mark.parametrize("point", points("tm.mv", "tm.clone thin"))
def test_D8_K18_mv_after_a_crash(bed: Testbed, vm: Vm, point: str) -> None:
    """Everything is whole on one of the two, and a repeat finishes the work."""
    directory = directory_of(bed, vm)
    before = tree(bed.hosts[0], directory)
    if point == "move.aside":
        bed.hosts[1].write(f"{directory}/old", "old")
    bed.environment(**{crashpoints.VARIABLE: point})
    move(bed, vm)
    bed.environment()
    assert set(bed.crashed_at()) == {point}
    whole = [
        node
        for node in bed.hosts[:2]
        if node.exists(directory) and tree(node, directory).items() >= before.items()
    ]
    assert whole
    wait_until(lambda: not agents_at_work(bed), "both agents have ended")
    reply = repeat(bed, vm)
    assert reply.success, reply.error
    assert tree(bed.hosts[1], directory) == before
    assert not bed.hosts[0].exists(directory)
    assert same_content(bed, bed.hosts[1], f"{directory}/disk.1", "raw", MEDIUM)
    bed.assert_at_rest()


def agents_at_work(bed: Testbed) -> list[int]:
    return [pid for node in bed.cluster.nodes for pid in agents(node)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("host01:/d/102/7 host02:/d/102/7 7", "got 3 words"),
        ("host01:/d/102/7 host02:/d/102/8 7 102", "not in the directory of VM 7"),
        ("host01:/d/102/7 host02:/d/102/../7 7 102", "parent reference"),
        ("host01:/d/102/7 -oProxyCommand=x:/d/102/7 7 102", "is no host"),
        ("host01:/d/102/7/disk.0 host02:/d/102/7 7 102", "cannot become"),
        ("host01:/d/102/7 host02:/d/102/7 x 102", "VM's id is 'x'"),
    ],
)
def test_K5_wrong_words_are_one_line(bed: Testbed, words: str, expected: str) -> None:
    argv = [f"{'/var/lib/one/remotes'}/tm/onestor/mv", *words.split()]
    done = bed.frontend.run(argv, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and expected in done.stderr
