"""Clones by way of the replica and the host's cache: what crosses which link, and what arrives."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    BIG,
    QCOW2,
    RAW,
    SOURCES,
    agent_call,
    bridged,
    cached_names,
    clone,
    companion,
    configure_system,
    digest,
    entry_of,
    forget_log,
    host_attribute,
    part_bytes,
    program_before,
    same_content,
    start_clone,
    transfers,
    trim_facts,
    unfinished,
    vm_files,
    warnings,
    ways,
)
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

MB = 1 << 20
CONTROL = MB  # bytes: more than all connections of a few actions take beside image data


@pytest.fixture(scope="module")
def large(running_bed: Testbed) -> str:
    """A qcow2 image of 64 MiB, all of it data."""
    path, raw = f"{SOURCES}/large.qcow2", f"{SOURCES}/large.raw"
    chance = random.Random(64)
    content = b"".join(chance.randbytes(MB) for _ in range(64))
    running_bed.frontend.write(raw, content)
    running_bed.frontend.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path])
    running_bed.frontend.run(["rm", raw])
    return path


def replace(bed: Testbed, image: Image, content: bytes, *, where: Node | None = None) -> None:
    """Give an image other content as snapshots and mvds do: by rename, here of the same age."""
    node, path = where or bed.frontend, entry_of(image)
    times = node.path(path).stat()
    node.write(f"{path}.new", content, mode=0o660)
    os.utime(node.path(f"{path}.new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    node.run(["mv", f"{path}.new", path])


# Many at once


def test_A1_A4_C10_parallel_cold_clones(bed: Testbed, large: str) -> None:
    """20 clones on three hosts: the image leaves the front-end once, the replica once a host."""
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(large)
    before = {node.name: node.bytes_received() for node in bed.hosts}
    sent = bed.frontend.bytes_sent()
    bed.hosts[2].limit_rate(200)  # so that all of them ask while it comes
    running = [start_clone(bed, image, bed.hosts[number % 3]) for number in range(20)]
    for each in running:
        reply = each.wait()
        assert reply.success, reply.error
    assert sorted(ways(bed)) == [("fe", "host03"), ("host03", "host01"), ("host03", "host02")]
    size = bed.frontend.path(entry_of(image)).stat().st_size
    for node in bed.hosts:
        assert node.bytes_received() - before[node.name] < 1.1 * size + 20 * CONTROL
    assert bed.frontend.bytes_sent() - sent < 1.1 * size + 20 * CONTROL
    seen = set()
    for each in running:
        disk = bed.disk_path(each.vm)
        # The same bytes on the same base are the same to a guest: looked at once.
        base = each.host.path(f"{disk}.base").stat()
        disk_and_base = (each.host.name, base.st_ino, each.host.read(disk))
        if disk_and_base not in seen:
            assert same_content(bed, each.host, disk, "qcow2", large)
            seen.add(disk_and_base)
    assert warnings(bed) == []
    assert unfinished(bed) == []


@pytest.mark.crash
@pytest.mark.parametrize("source", [QCOW2])
def test_A1_A3_A6_parallel_cold_clones_of_which_a_third_is_killed(
    bed: Testbed, source: str
) -> None:
    """Survivors are right, the killed leave nothing under a final name, repeats succeed."""
    chance = random.Random(8)
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(source)
    kind = "tm.clone" if source == RAW else "tm.clone thin"
    points = sorted(crashpoints.names(kind))
    victims = set(chance.sample(range(9), 3))
    crash_at = {each: chance.choice(points) for each in sorted(victims)[::2]}
    running = [
        start_clone(bed, image, bed.hosts[number % 3], crash_at=crash_at.get(number, ""))
        for number in range(9)
    ]
    for number in sorted(victims - set(crash_at)):
        time.sleep(chance.uniform(0, 0.3))  # not to synchronise: any moment will do
        running[number].call.kill(9)
    failed = []
    for number, each in enumerate(running):
        reply = each.wait()
        assert reply.success or number in victims, reply.error
        if not reply.success:
            failed.append(each)
        disk = bed.disk_path(each.vm)
        if reply.success or each.host.exists(disk):
            assert same_content(bed, each.host, disk, image.format, source)
    assert failed, "nobody was hit"
    wait_until(lambda: not running_agents(bed), "all have ended", timeout=30)
    for each in failed:
        reply = bed.oned.transfer_mad.run_line(each.line)
        assert reply.success, reply.error
        assert same_content(bed, each.host, bed.disk_path(each.vm), image.format, source)
    for node in bed.hosts:  # what a kill has left in a datastore goes with the next clone there
        last = clone(bed, image, node)
        assert same_content(bed, node, bed.disk_path(last), image.format, source)
    bed.assert_at_rest()
    assert unfinished(bed) == []


def running_agents(bed: Testbed) -> list[str]:
    """Agents that are at work."""
    return [line for line in bed.leftovers() if "onestor_bootstrap" in line]


def test_A5_nobody_who_waits_gives_up_while_the_fill_makes_progress(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    # A sign of progress comes every 0.5 s; on a busy machine it may be seconds late.
    bed.configure("REPLICA_COPY_LOCK_TIMEOUT=8\n")
    replica = bed.hosts[2]
    replica.limit_rate(9)
    image = bed.image(BIG)
    begin = time.monotonic()
    running = [start_clone(bed, image, bed.hosts[number % 2]) for number in range(3)]
    wait_until(lambda: cached_names(bed, replica), "the replica has it", timeout=60)
    assert time.monotonic() - begin > 12, "longer than anybody would wait without progress"
    replica.unlimit_rate()
    for each in running:
        reply = each.wait()
        assert reply.success, reply.error
        assert digest(each.host, bed.disk_path(each.vm)) == digest(bed.frontend, BIG)
    assert warnings(bed) == []
    assert sorted(ways(bed)) == [("fe", "host03"), ("host03", "host01"), ("host03", "host02")]


def test_A2_B4_the_entry_has_its_name_when_it_is_complete(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(BIG)
    host.limit_rate(80)
    replica.limit_rate(80)
    first = start_clone(bed, image, host)
    for node in (replica, host):
        wait_until(lambda: part_bytes(node) > 4 * MB, f"the image comes to {node.name}", 30)  # noqa: B023
        assert cached_names(bed, node) == set()
        assert not host.exists(bed.disk_path(first.vm))
    host.unlimit_rate()
    replica.unlimit_rate()
    assert first.wait().success
    with host.path(entry_of(image)).open("rb") as reader:  # one who is still reading
        new = random.Random(2).randbytes(16 * MB)
        replace(bed, image, new)
        vm = clone(bed, image, host)
        assert host.read(bed.disk_path(vm)) == new
        assert reader.read() == bed.frontend.read(BIG)


def test_A4_a_host_receives_what_the_replica_still_fetches(bed: Testbed, large: str) -> None:
    """Both links are busy at once: the replica's entry has no name yet when bytes leave it."""
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(large)
    for node in (host, replica):
        node.limit_rate(150)
    before = host.bytes_received()
    running = start_clone(bed, image, host)
    wait_until(lambda: host.bytes_received() - before > 4 * MB, "the image comes", timeout=30)
    assert cached_names(bed, replica) == set()
    for node in (host, replica):
        node.unlimit_rate()
    reply = running.wait()
    assert reply.success, reply.error
    assert same_content(bed, host, bed.disk_path(running.vm), "qcow2", large)
    assert "could not be followed" not in bed.log()
    assert (
        host.bytes_received() - before < 1.1 * bed.frontend.path(large).stat().st_size + CONTROL
    ), "no byte came twice"


def test_K10_fills_over_one_link_keep_its_rate_together(bed: Testbed) -> None:
    bed.configure("REPLICA_BWLIMIT_MB_S=12\n")
    host = bed.hosts[0]
    images = bed.image(BIG), bed.image(BIG)
    before = host.bytes_received()
    running = [start_clone(bed, image, host) for image in images]

    def arrived() -> int:
        return host.bytes_received() - before

    wait_until(lambda: arrived() > 2 * MB, "the images come", timeout=30)
    begin = time.monotonic()
    wait_until(lambda: arrived() > 30 * MB, "nearly all has come", timeout=30)
    seconds = time.monotonic() - begin
    for each in running:
        reply = each.wait()
        assert reply.success, reply.error
        assert digest(host, bed.disk_path(each.vm)) == digest(bed.frontend, BIG)
    # 28 MiB at 12 MB/s; each at a rate of its own they would take half of that.
    assert 1.7 < seconds < 10
    assert sorted(ways(bed)) == [("fe", "host01")] * 2
    links = [name for name in bed.files(bed.frontend) if name.startswith(".onestor-link-")]
    assert len(links) == 1


# Hits, and what counts as one


def forget_content(node: Node, path: str) -> None:
    """Let a file's content be on the disk only, and no longer in memory."""
    with node.path(path).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_clone(bed: Testbed, image: Image, host: Node) -> Vm:
    """A clone of an image that the host has, in no time and without a word to anybody else."""
    other = bed.hosts[2]
    forget_log(bed)
    links = other.bytes_received(), other.bytes_sent()
    received = host.bytes_received()
    with program_before(host, "ssh", 'echo called >>/var/tmp/ssh-calls; exec /usr/bin/ssh "$@"'):
        begin = time.monotonic()
        vm = clone(bed, image, host)
        assert time.monotonic() - begin < 5, "that is with a loaded machine in mind"
    assert (other.bytes_received(), other.bytes_sent()) == links
    assert host.bytes_received() - received < CONTROL
    assert not host.exists("/var/tmp/ssh-calls")
    assert transfers(bed) == []
    assert "cache hit, 0.0 MB sent" in bed.log()
    return vm


def test_A16_A17_A23_C10_a_hit_on_a_huge_image_needs_nobody_and_reads_none_of_it(
    bed: Testbed,
) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    huge = f"{SOURCES}/huge.qcow2"
    bed.frontend.run(["cp", QCOW2, huge])
    bed.frontend.run(["qemu-img", "resize", "-q", "-f", "qcow2", huge, "100G"])
    image = bed.image(huge)
    host = bed.hosts[0]
    clone(bed, image, host)
    forget_content(host, entry_of(image))
    vm = warm_clone(bed, image, host)
    argv = ["fincore", "--bytes", "--noheadings", "--output=RES", entry_of(image)]
    assert int(host.run(argv).stdout) <= MB, "what was read would be in memory now"
    directory = host.path(f"{DATASTORES}/102/{vm.id}")
    own = [path.stat() for path in directory.iterdir() if not path.name.endswith(".base")]
    assert sum(facts.st_blocks * 512 for facts in own) < MB
    base = host.path(f"{bed.disk_path(vm)}.base").stat()
    assert base.st_ino == host.path(entry_of(image)).stat().st_ino
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", huge)


def test_A16_A17_A23_C10_a_hit_on_a_huge_sparse_raw_image_needs_nobody(bed: Testbed) -> None:
    huge = f"{SOURCES}/huge.raw"
    bed.frontend.write(huge, random.Random(3).randbytes(2 * MB))
    bed.frontend.run(["truncate", "-s", "100G", huge])
    host = bed.hosts[0]
    image = bed.image(huge)
    clone(bed, image, host)
    vm = warm_clone(bed, image, host)
    facts = host.path(bed.disk_path(vm)).stat()
    assert facts.st_size == 100 << 30
    assert facts.st_blocks * 512 < 3 * MB
    assert same_content(bed, host, bed.disk_path(vm), "raw", huge)


def test_A10_A11_A12_A13_other_content_of_the_same_size_and_age_is_noticed_on_a_bridge_host(
    bed: Testbed,
) -> None:
    """As after flatten, revert or a write-back: the new content counts, whatever is cached.

    With the image on the front-end
    :func:`test_A10_A11_A12_A13_of_a_new_version_only_what_differs_crosses_each_link` shows it.
    """
    configure_system(bed, REPLICA_HOST="host02")
    host = bed.hosts[0]
    image = bed.image(BIG)
    origin = bridged(bed, image, bed.hosts[2])
    clone(bed, image, host)
    new = bytearray(bed.frontend.read(BIG))
    new[5 * MB] ^= 1
    replace(bed, image, bytes(new), where=origin)
    vm = clone(bed, image, host)
    assert host.read(bed.disk_path(vm)) == new


ENTRIES = [("host01", "gone"), ("host01", "empty"), ("host01", "short"), ("host03", "short")]


@pytest.mark.fault
def test_A7_an_entry_whose_file_is_not_what_was_recorded(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(QCOW2)
    clone(bed, image, bed.hosts[0])
    for where, damage in one_of(2, ENTRIES):
        node = bed.cluster.node(where)
        entry = node.path(entry_of(image))
        facts, content = entry.stat(), entry.read_bytes()
        entry.unlink()  # the base of the VM above is another name of it
        if damage != "gone":
            node.write(entry_of(image), content[: 1000 if damage == "short" else 0], mode=0o444)
            os.utime(entry, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        host = bed.hosts[0] if where == "host01" else bed.hosts[1]
        vm = clone(bed, image, host)
        assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
        assert digest(node, entry_of(image)) == digest(bed.frontend, QCOW2)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("where", "text"),
    one_of(
        2, [("origin", b""), ("cache", b'{"version": {"si'), ("both", b""), ("both", b"\xff" * 600)]
    ),
)
def test_A9_damaged_records_are_a_miss_and_are_repaired(
    bed: Testbed, where: str, text: bytes
) -> None:
    host = bed.hosts[0]
    image = bed.image(BIG)
    clone(bed, image, host)
    good = host.read(companion(image, "sidecar"))
    if where != "cache":
        bed.frontend.write(companion(image, "manifest"), text)
    if where != "origin":
        host.write(companion(image, "sidecar"), text)
        replace(bed, image, random.Random(4).randbytes(16 * MB))
    forget_log(bed)
    vm = clone(bed, image, host)
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, entry_of(image))
    assert ("cache miss" in bed.log()) == (where != "origin")
    repaired = host.read(companion(image, "sidecar"))
    assert len(repaired) == len(good)
    assert json.loads(repaired.split(b"\n")[0])
    forget_log(bed)
    clone(bed, image, host)
    assert "cache hit" in bed.log()


def test_A14_A20_the_image_alone_comes_and_keeps_its_holes(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(RAW)
    path = entry_of(image)
    for ending in (".tmp", ".qcow2", "x"):
        bed.frontend.write(path + ending, "beside the image")
    bed.frontend.write(f"{path}.snap/0", "a snapshot, which clones do not have")
    vm = clone(bed, image, bed.hosts[0])
    blocks = bed.frontend.path(path).stat().st_blocks * 512
    for node in (bed.hosts[0], bed.hosts[2]):
        assert cached_names(bed, node) - {".monitor"} == {os.path.basename(path)}
        assert node.path(path).stat().st_blocks * 512 <= 1.05 * blocks + 65536
        assert digest(node, path) == digest(bed.frontend, RAW)
    # L2, the stock probe reports a replica's images by this word.
    assert bed.hosts[2].read(f"{DATASTORES}/101/.monitor") == b"replica\n"
    assert bed.hosts[0].path(bed.disk_path(vm)).stat().st_blocks * 512 <= 1.05 * blocks + 65536


def test_A11_A15_persistent_images_go_past_every_cache(bed: Testbed) -> None:
    """With all their snapshots, as they are now, however often."""
    source = QCOW2
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(source, persistent=True)
    for number in ("0", "9", "10", "123"):
        bed.frontend.write(f"{entry_of(image)}.snap/{number}", bed.frontend.read(source))
    replica.cut()
    bed.configure("CONNECT_TIMEOUT=2\n")
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    disk = bed.disk_path(vm)
    assert digest(host, disk) == digest(bed.frontend, source)
    bed.frontend.write(f"{entry_of(image)}.snap/10", bed.frontend.read(QCOW2) + bytes(512))
    assert bed.oned.retry_prolog(vm).success
    for number in ("0", "9", "10", "123"):
        name = f"{entry_of(image)}.snap/{number}"
        assert digest(host, f"{disk}.snap/{number}") == digest(bed.frontend, name)
    assert [name for name in bed.files(host) if name.startswith("101/")] == []
    assert bed.files(replica) == {}
    assert warnings(bed) == []


# Where the image comes from


@pytest.mark.parametrize("source", one_of(2, [QCOW2, RAW]))
def test_A23_a_replica_that_is_configured_no_more(bed: Testbed, source: str) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("CONNECT_TIMEOUT=2\n")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(source)
    old = clone(bed, image, host)
    configure_system(bed, REPLICA_HOST="")
    replica.cut()
    forget_log(bed)
    begin = time.monotonic()
    for node in (host, bed.hosts[1]):
        new = clone(bed, image, node)
        assert same_content(bed, node, bed.disk_path(new), image.format, source)
    assert same_content(bed, host, bed.disk_path(old), image.format, source)
    assert bed.oned.terminate(old).success
    assert time.monotonic() - begin < 15
    assert ways(bed) == [("fe", "host02")]
    assert warnings(bed) == []


@pytest.mark.parametrize("source", one_of(2, [QCOW2, BIG]))
def test_A24_the_replica_is_the_host_itself(bed: Testbed, source: str) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    replica = bed.hosts[2]
    image = bed.image(source)
    running = [start_clone(bed, image, replica) for _ in range(2)]
    for each in running:
        reply = each.wait()
        assert reply.success, reply.error
        assert same_content(bed, replica, bed.disk_path(each.vm), image.format, source)
    assert ways(bed) == [("fe", "host03")]
    assert replica.read(f"{DATASTORES}/101/.monitor") == b"replica\n"
    forget_log(bed)
    received = replica.bytes_received()
    clone(bed, image, replica)
    assert transfers(bed) == []
    assert replica.bytes_received() - received < CONTROL
    assert warnings(bed) == []


def test_A24_the_replica_is_the_front_end(bed: Testbed) -> None:
    """Which has the originals: there is nothing to be had from its cache."""
    configure_system(bed, REPLICA_HOST="fe")
    image = bed.image(QCOW2)
    vm = clone(bed, image, bed.hosts[0])
    assert same_content(bed, bed.hosts[0], bed.disk_path(vm), "qcow2", QCOW2)
    assert ways(bed) == [("fe", "host01")]
    assert warnings(bed) == []


def test_C10_a_vm_on_the_front_end_leaves_the_image_alone(bed: Testbed) -> None:
    image = bed.image(QCOW2)
    before = bed.frontend.path(entry_of(image)).stat()
    for _ in range(2):
        vm = clone(bed, image, bed.frontend)
        assert same_content(bed, bed.frontend, bed.disk_path(vm), "qcow2", QCOW2)
    facts = bed.frontend.path(entry_of(image)).stat()
    assert (facts.st_ino, facts.st_mode, facts.st_nlink) == (before.st_ino, before.st_mode, 1)
    base = bed.frontend.path(f"{bed.disk_path(vm)}.base").stat()
    assert base.st_ino != facts.st_ino
    assert base.st_mode & 0o222 == 0
    assert bed.oned.terminate(vm).success
    assert bed.frontend.exists(entry_of(image))


@pytest.mark.parametrize(
    ("action", "replica"), [("clone", ""), ("clone", "host03"), ("ln", "host03")]
)
def test_C11_the_second_bridge_host_when_the_first_is_down(
    bed: Testbed, action: str, replica: str
) -> None:
    configure_system(bed, REPLICA_HOST=replica)
    bed.configure("CONNECT_TIMEOUT=2\n")
    host, bridge = bed.hosts[0], bed.hosts[1]
    image = bed.image(QCOW2, persistent=action == "ln")
    bridged(bed, image, bridge, "nowhere", "host02")
    vm = clone(bed, image, host)
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
    through = "host03" if replica and action == "clone" else "host01"
    assert ways(bed)[0] == ("host02", through)
    assert ("fe", "host01") not in ways(bed)
    (warning,) = warnings(bed)
    assert "nowhere" in warning
    assert bridge.path(entry_of(image)).stat().st_mode & 0o777 == 0o660


def test_C11_a_host_that_is_the_bridge(bed: Testbed) -> None:
    """The image is in its own datastore there, and stays what it is."""
    bridge = bed.hosts[1]
    image = bed.image(QCOW2)
    bridged(bed, image, bridge)
    before = bridge.path(entry_of(image)).stat()
    for _ in range(2):
        vm = clone(bed, image, bridge)
        assert same_content(bed, bridge, bed.disk_path(vm), "qcow2", QCOW2)
    after = bridge.path(entry_of(image)).stat()
    assert (after.st_ino, after.st_mode, after.st_nlink) == (before.st_ino, before.st_mode, 1)
    assert transfers(bed) == []
    assert bed.oned.terminate(vm).success
    assert bridge.exists(entry_of(image))


def test_C11_A18_no_bridge_host_answers(bed: Testbed) -> None:
    bed.configure("CONNECT_TIMEOUT=2\n")
    image = bed.image(QCOW2)
    bridged(bed, image, bed.hosts[1], "nowhere", "neither")
    vm = bed.vm(image)
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    assert "neither" in reply.error
    assert vm_files(bed, bed.hosts[0]) == {}


def test_L8_L12_K10_address_and_options_of_the_hop_from_the_replica(bed: Testbed) -> None:
    """For a disk of which recovery snapshots are asked for, too: that does not disturb."""
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("REPLICA_SSH_OPTS='-c aes256-gcm@openssh.com'\n")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(QCOW2)
    record = 'echo "called $*" >>/var/tmp/ssh-calls; exec /usr/bin/ssh "$@"'
    address = host_attribute(bed, "host03", REPLICA_STORAGE_IP=replica.address)
    with address, program_before(host, "ssh", record):
        vm = clone(bed, image, host, RECOVERY_SNAPSHOT_FREQ="60")
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
    calls = host.read("/var/tmp/ssh-calls").decode().split("called ")[1:]
    host.run(["rm", "/var/tmp/ssh-calls"])
    assert calls
    for call in calls:
        assert "-c aes256-gcm@openssh.com" in call
        assert f"-- {replica.address} " in call
    assert ways(bed) == [("fe", "host03"), ("host03", "host01")]
    assert warnings(bed) == []


def test_L8_an_address_of_the_replica_that_nobody_has(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("CONNECT_TIMEOUT=2\n")
    with host_attribute(bed, "host03", REPLICA_STORAGE_IP="10.99.0.99"):
        clone(bed, bed.image(QCOW2), bed.hosts[0])
    (warning,) = warnings(bed)
    assert "host03" in warning
    assert ways(bed) == [("fe", "host01")]


def test_K10_options_of_the_hop_from_the_front_end(bed: Testbed) -> None:
    """Options that cannot work show that they are used: on this hop, and not on the other."""
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("REPLICA_SSH_FE_OPTS='-c no-such-cipher'\n")
    vm = bed.vm(bed.image(QCOW2))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    assert "no-such-cipher" in reply.error
    assert vm_files(bed, bed.hosts[0]) == {}


# Only what is missing


@pytest.mark.parametrize("replica", ["", "host03"])
def test_A3_A6_a_fill_that_broke_off_goes_on_where_it_was(
    bed: Testbed, large: str, replica: str
) -> None:
    """Killed at 80 %: the repeat sends a quarter at most, on the link where it had come so far."""
    configure_system(bed, REPLICA_HOST=replica)
    receiver, host = bed.hosts[2 if replica else 0], bed.hosts[0]
    image = bed.image(large)
    size = bed.frontend.path(large).stat().st_size
    receiver.limit_rate(300)
    broken = start_clone(bed, image, host)
    wait_until(lambda: part_bytes(receiver) >= 0.8 * size, "80 % have come", timeout=60)
    broken.call.kill(9)
    assert not broken.wait().success
    receiver.unlimit_rate()
    wait_until(lambda: not running_agents(bed), "all have ended", timeout=30)
    forget_log(bed)
    received = receiver.bytes_received()
    reply = bed.oned.transfer_mad.run_line(broken.line)
    assert reply.success, reply.error
    first = transfers(bed)[0]
    assert (first.source, first.target) == ("fe", receiver.name)
    assert 0 < first.bytes <= 0.25 * size
    assert receiver.bytes_received() - received <= 0.25 * size + 2 * CONTROL
    assert same_content(bed, host, bed.disk_path(broken.vm), "qcow2", large)
    assert unfinished(bed) == []


def test_A10_A11_A12_A13_of_a_new_version_only_what_differs_crosses_each_link(
    bed: Testbed,
) -> None:
    """Which is noticed by the content: the new one has the size and the age of the old one.

    An image of 128 MiB; its 16 MiB of data are many times what may cross a link.
    """
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    path = f"{SOURCES}/wide.raw"
    bed.frontend.write(path, bytes(64 * MB) + bed.frontend.read(BIG) + bytes(48 * MB))
    image = bed.image(path)
    old = clone(bed, image, host)
    new = bytearray(bed.frontend.read(path))
    new[77 * MB] ^= 1
    replace(bed, image, bytes(new))
    forget_log(bed)
    received = host.bytes_received(), replica.bytes_received()
    vm = clone(bed, image, host)
    assert [each.bytes for each in transfers(bed)] == [MB, MB]
    assert ways(bed) == [("fe", "host03"), ("host03", "host01")]
    assert host.bytes_received() - received[0] <= 0.02 * 128 * MB
    assert replica.bytes_received() - received[1] <= 0.02 * 128 * MB
    assert host.read(bed.disk_path(vm)) == new
    assert digest(host, bed.disk_path(old)) == digest(bed.frontend, path)


# The disk


def test_A1_a_base_cannot_be_written(bed: Testbed) -> None:
    """A commit into it, as oneadmin, would change every VM that shares it."""
    host = bed.hosts[0]
    image = bed.image(QCOW2)
    one, other = clone(bed, image, host), clone(bed, image, host)
    disk = bed.disk_path(one)
    host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", disk])
    assert host.run(["qemu-img", "commit", "-f", "qcow2", disk], check=False).returncode != 0
    assert same_content(bed, host, bed.disk_path(other), "qcow2", QCOW2)
    assert digest(host, entry_of(image)) == digest(bed.frontend, QCOW2)
    later = clone(bed, image, host)
    assert same_content(bed, host, bed.disk_path(later), "qcow2", QCOW2)


def info(node: Node, disk: str) -> dict[str, object]:
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", disk]
    facts: dict[str, object] = json.loads(node.run(argv).stdout)
    return facts


@pytest.mark.parametrize("place", ["environment", "onestorrc", "tmrc"])
def test_C5_qcow2_options(bed: Testbed, place: str) -> None:
    options = "-o cluster_size=2M"
    tmrc = "/etc/one/tmrc"
    if place == "environment":
        bed.environment(QCOW2_OPTIONS=options)
    elif place == "onestorrc":
        bed.configure(f'QCOW2_OPTIONS="{options}"\n')
    else:
        bed.frontend.write(tmrc, f'# QCOW2_OPTIONS="-o x=1"\nQCOW2_OPTIONS="{options}"\n')
    try:
        vm = clone(bed, bed.image(QCOW2), bed.hosts[0])
    finally:
        bed.frontend.run(["rm", "-f", tmrc], user="root")
    found = info(bed.hosts[0], bed.disk_path(vm))
    assert found["cluster-size"] == 2 * MB
    assert found["backing-filename"] == "disk.0.base"
    assert found["backing-filename-format"] == "qcow2"
    assert same_content(bed, bed.hosts[0], bed.disk_path(vm), "qcow2", QCOW2)


@pytest.mark.parametrize(
    "options", ["-o cluster_size=3", "-o backing_file=/etc/passwd", "-o 'x", "-o nonsense=1"]
)
def test_C5_C6_bad_qcow2_options_fail_cleanly(bed: Testbed, options: str) -> None:
    bed.environment(QCOW2_OPTIONS=options)
    vm = bed.vm(bed.image(QCOW2))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    assert len(reply.result.stderr.splitlines()) == 1
    assert "QCOW2_OPTIONS" in reply.error or reply.error.startswith("create overlay")
    assert vm_files(bed, bed.hosts[0]) == {}


@pytest.mark.parametrize("place", ["disk", "image datastore"])
def test_C10_standalone_disks(bed: Testbed, place: str) -> None:
    host = bed.hosts[0]
    if place != "disk":
        bed.images.template["QCOW2_STANDALONE"] = "YES"
        bed.cloud.save(bed.images)
    image = bed.image(QCOW2)
    disk = bed.cloud.image_disk(image)
    disk.attributes.pop("QCOW2_STANDALONE", None)  # OpenNebula before 6.8 passes nothing on
    if place == "disk":
        disk.attributes["QCOW2_STANDALONE"] = "YES"
    vm = bed.cloud.add_vm(disks=[disk])
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert "backing-filename" not in info(host, bed.disk_path(vm))
    assert not host.exists(f"{bed.disk_path(vm)}.base")
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, QCOW2)


def test_C3_C4_C7_sparse_and_size_by_way_of_the_replica_with_every_format_stated(
    bed: Testbed,
) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    host = bed.hosts[0]
    record = 'echo "$@" >>/var/tmp/qemu-calls; exec /usr/bin/qemu-img "$@"'
    disks: list[tuple[str, Image, str, str]] = []
    with program_before(host, "qemu-img", record):
        for source in (QCOW2, RAW):
            image = bed.image(source)
            for sparse in ("YES", "NO"):
                vm = clone(bed, image, host, SPARSE=sparse, SIZE="100")
                disks.append((source, image, sparse, bed.disk_path(vm)))
    calls = host.read("/var/tmp/qemu-calls").decode().splitlines()
    host.run(["rm", "/var/tmp/qemu-calls"])
    for source, image, sparse, disk in disks:
        argv = ["qemu-img", "info", "-f", image.format, "--output=json", disk]
        assert json.loads(host.run(argv).stdout)["virtual-size"] == 100 * MB
        used = host.path(disk).stat().st_blocks * 512
        if sparse == "YES":
            assert used < 8 * MB
        else:
            assert used >= 100 * MB
            assert not host.exists(f"{disk}.base")
        assert same_content(bed, host, disk, image.format, source)
    assert {call.split()[0] for call in calls} == {"create", "info", "resize", "convert"}
    for call in calls:
        assert " -f " in call
        assert (" -b " in call) == (" -F " in call)
        assert (" -O " in call) == call.startswith("convert")


def test_C10_cdrom_images_are_copies(bed: Testbed) -> None:
    host = bed.hosts[0]
    image = bed.image(QCOW2, type=objects.CDROM)
    for _ in range(2):
        vm = clone(bed, image, host)
        assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, QCOW2)
        assert not host.exists(f"{bed.disk_path(vm)}.base")


def test_C2_C6_an_overlay_that_cannot_be_made(bed: Testbed) -> None:
    host = bed.hosts[0]
    script = 'case " $* " in *" create "*) echo planted failure >&2; exit 1;; esac\n'
    with program_before(host, "qemu-img", script + 'exec /usr/bin/qemu-img "$@"'):
        vm = bed.vm(bed.image(QCOW2))
        reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    assert reply.error.startswith("create overlay")
    assert "planted failure" in reply.error
    assert vm_files(bed, host) == {}


def test_C9_raw_disks_share_the_blocks_of_the_entry_on_xfs(bed: Testbed) -> None:
    host = bed.hosts[0]
    host.mount_datastores(400, "xfs+reflink")
    try:
        image = bed.image(BIG)
        clone(bed, image, host)
        host.run(["sync"])
        before = free_bytes(host)
        vm = clone(bed, image, host)
        host.run(["sync"])
        used = before - free_bytes(host)
        assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
    finally:
        host.unmount_datastores()
    assert used < MB


def free_bytes(node: Node) -> int:
    facts = os.statvfs(node.path(DATASTORES))
    return facts.f_bfree * facts.f_frsize


def test_C14_an_unknown_base_is_set_aside(bed: Testbed) -> None:
    host = bed.hosts[0]
    vm = bed.vm(bed.image(QCOW2))
    disk = bed.disk_path(vm)
    host.write(f"{disk}.base", "the base of a disk that somebody has saved")
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert same_content(bed, host, disk, "qcow2", QCOW2)
    (aside,) = [name for name in bed.files(host) if ".unknown/" in name]
    assert os.path.basename(aside) == "disk.0.base", "a disk would find it under its old name"
    assert host.read(f"{DATASTORES}/{aside}").startswith(b"the base of a disk")


def test_B5_C10_disks_outlive_the_cache(bed: Testbed) -> None:
    """Evicted or replaced, image deleted: the VMs keep what they have."""
    host = bed.hosts[0]
    image = bed.image(QCOW2)
    vm = clone(bed, image, host)
    host.run(["rm", "-rf", f"{DATASTORES}/101"])
    assert bed.oned.image_action("rm", image).success
    agent_call(bed, host, "cache.trim", **trim_facts(0))
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
    assert bed.oned.terminate(vm).success
    assert vm_files(bed, host) == {"102/.monitor": 8}
