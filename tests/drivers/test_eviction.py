"""What goes when a cache is full: the right images, never what somebody needs, never too many."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.cluster import Node, NodeProcess
from tests.drivers.conftest import (
    BIG,
    CALL_ENVIRONMENT,
    QCOW2,
    SOURCES,
    agent_call,
    agent_call_argv,
    bridged,
    cached_names,
    clone,
    companion,
    configure_system,
    digest,
    entry_of,
    forget_log,
    lock_held,
    same_content,
    start_clone,
    trim_facts,
    unfinished,
    warnings,
    ways,
)
from tests.oned.objects import Datastore, Image
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

MB = 1 << 20
HOUR = 3600.0


def noise(bed: Testbed, size: int, seed: int, datastore: Datastore | None = None) -> Image:
    """A raw image of ``size`` MB, all of it data."""
    path = f"{SOURCES}/noise{seed}.img"
    bed.frontend.write(path, random.Random(seed).randbytes(size * MB))
    return bed.image(path, datastore)


def names(*images: Image) -> set[str]:
    return {os.path.basename(image.source) for image in images}


def limit_cache(bed: Testbed, where: str, **limits: str) -> None:
    """Limit the cache of host01, with no replica, or that of host03, which is the replica then."""
    prefix, replica = ("HOST_CACHE", "") if where == "host01" else ("REPLICA", "host03")
    limited = {f"{prefix}_{name}": value for name, value in limits.items()}
    configure_system(bed, REPLICA_HOST=replica, **limited)


def last_use(node: Node, image: Image, age: float) -> None:
    """Let an entry be last used so many seconds ago."""
    sidecar = node.path(companion(image, "sidecar"))
    stamp = time.time() - age
    os.utime(sidecar, (stamp, stamp))


def cache_bytes(node: Node) -> int:
    """What all images in a cache take, unfinished ones included."""
    total = 0
    for directory in node.path(DATASTORES).glob("1*"):
        if directory.name == "102":
            continue
        for path in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.lstat().st_blocks * 512
    return total


def clones(bed: Testbed, images: Sequence[Image], host: Node) -> None:
    """A VM of each image, all at the same time."""
    for each in [start_clone(bed, image, host) for image in images]:
        reply = each.wait()
        assert reply.success, reply.error


@contextlib.contextmanager
def evicting(bed: Testbed, node: Node) -> Iterator[NodeProcess]:
    """Somebody evicts all that can be evicted from the cache of a node, again and again."""
    argv = agent_call_argv(node, "cache.trim", times=10_000, **trim_facts(0))
    with bed.frontend.popen(argv, env=CALL_ENVIRONMENT) as process:
        try:
            yield process
        finally:
            process.kill_tree()


def right(bed: Testbed, image: Image, node: Node, vm_id: int) -> bool:
    disk = f"{DATASTORES}/102/{vm_id}/disk.0"
    return digest(node, disk) == digest(bed.frontend, entry_of(image))


@pytest.mark.parametrize("where", ["host01", "host03"])
def test_B1_B2_B7_the_least_recently_used_go_until_there_is_room(bed: Testbed, where: str) -> None:
    """On a host by the host's limit, on a replica by the replica's, which has no drivers there."""
    limit_cache(bed, where, MAX_SIZE_MB="7")
    node, host = bed.cluster.node(where), bed.hosts[0]
    node.run(["mv", "/var/tmp/one", "/var/tmp/one.away"])
    try:
        images = [noise(bed, 2, seed) for seed in range(3)]
        clones(bed, images, host)
        for age, image in enumerate(images):  # the first was used last
            last_use(node, image, 100.0 + age)
        assert cached_names(bed, node) - {".monitor"} == names(*images)
        new = noise(bed, 4, 6)  # two have to go
        vm = clone(bed, new, host)
    finally:
        node.run(["mv", "/var/tmp/one.away", "/var/tmp/one"])
    assert right(bed, new, host, vm.id)
    assert cached_names(bed, node) == names(images[0], new)
    assert cache_bytes(node) <= 7 * MB
    for image in images[1:]:
        name = os.path.basename(image.source)
        left = [file for file in bed.files(node) if name in file]
        assert left == [f"101/.{name}.lock"]
    assert bed.log().count("evicted ") == 2
    assert warnings(bed) == []


def test_B3_order_is_by_recorded_use_on_a_mount_without_access_times(bed: Testbed) -> None:
    host = bed.hosts[0]
    configure_system(bed, HOST_CACHE_MAX_SIZE_MB="7")
    host.mount_datastores(64)
    try:
        host.run(["mount", "-o", "remount,noatime", DATASTORES], user="root")
        x, y, new = (noise(bed, 3, seed) for seed in (1, 2, 3))
        clone(bed, x, host)
        clone(bed, y, host)
        for image in (x, y):
            last_use(host, image, 100.0)
        clone(bed, x, host)
        clone(bed, new, host)
        left = cached_names(bed, host) - {"lost+found"}
    finally:
        host.unmount_datastores()
    assert left == names(x, new)


def test_B4_an_image_that_is_read_is_not_evicted(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03", REPLICA_MAX_SIZE_MB="20")
    slow, other, replica = bed.hosts
    image, new = bed.image(BIG), noise(bed, 16, 1)
    slow.limit_rate(30)
    reader = start_clone(bed, image, slow)
    wait_until(lambda: cached_names(bed, replica) == names(image), "the replica has it", timeout=30)
    wait_until(lambda: cache_bytes(slow) > MB, "it is being read", timeout=30)
    vm = clone(bed, new, other)
    assert right(bed, new, other, vm.id)
    assert cached_names(bed, replica) == names(image)
    (warning,) = warnings(bed)
    assert "MB needed, " in warning
    reply = reader.wait()
    assert reply.success, reply.error
    assert right(bed, image, slow, reader.vm.id)
    assert ("host03", "host01") in ways(bed)


def test_A21_B4_B5_B14_an_entry_stays_while_it_is_a_base_or_read_or_young(bed: Testbed) -> None:
    """One reason after the other: each is the only one while another image wants the room."""
    host = bed.hosts[0]
    configure_system(bed, HOST_CACHE_MAX_SIZE_MB="6")
    thin, raw = bed.image(QCOW2), noise(bed, 3, 1)
    vm = clone(bed, thin, host)
    assert_kept(bed, thin, raw)
    agent_call(bed, host, "cache.trim", **trim_facts(0))
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
    assert cached_names(bed, host) == names(thin)
    assert bed.oned.terminate(vm).success  # which takes the base away
    # A shared lock, which expires with the process that holds it.
    with lock_held(host, companion(thin, "lock"), fcntl.LOCK_SH):
        assert_kept(bed, thin, raw)
    configure_system(bed, CACHE_MIN_AGE="3600")
    assert_kept(bed, thin, raw)
    last_use(host, thin, 2 * HOUR)
    forget_log(bed)
    clone(bed, raw, host)
    assert cached_names(bed, host) == names(raw)
    assert warnings(bed) == []


def assert_kept(bed: Testbed, entry: Image, new: Image) -> None:
    """A clone of ``new`` is right and goes past the cache, where the entry cannot go."""
    host = bed.hosts[0]
    forget_log(bed)
    vm = clone(bed, new, host)
    assert right(bed, new, host, vm.id)
    assert cached_names(bed, host) == names(entry)
    (warning,) = warnings(bed)
    assert "MB needed" in warning


def test_B6_an_image_larger_than_the_cache_evicts_nothing(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03", REPLICA_MAX_SIZE_MB="6")
    node, host = bed.hosts[2], bed.hosts[0]
    small = noise(bed, 2, 1)
    clone(bed, small, node)
    vm = clone(bed, bed.image(BIG), host)
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
    assert cached_names(bed, node) - {".monitor"} == names(small)
    (warning,) = warnings(bed)
    assert "the limit is 6 MB" in warning


@pytest.mark.parametrize("where", one_of(2, ["host01", "host03"]))
def test_B7_a_share_of_the_file_system(bed: Testbed, where: str) -> None:
    limit_cache(bed, where, MAX_USED_PERC="50")
    node, host = bed.cluster.node(where), bed.hosts[0]
    images = [noise(bed, 12, seed) for seed in range(3)]
    node.mount_datastores(64)
    try:
        for image in images:
            vm = clone(bed, image, host)
            assert right(bed, image, host, vm.id)
            host.run(["rm", "-r", os.path.dirname(bed.disk_path(vm))])  # it takes room, too
        facts = os.statvfs(node.path(DATASTORES))
        left = cached_names(bed, node)
    finally:
        node.unmount_datastores()
    assert facts.f_blocks - facts.f_bfree <= 0.5 * facts.f_blocks
    assert names(images[-1]) <= left < names(*images)


def test_B8_two_image_datastores_and_recovery_snapshots_share_one_limit(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03", REPLICA_MAX_SIZE_MB="10")
    replica = bed.hosts[2]
    second = bed.cloud.datastores.get(104) or bed.cloud.add_image_datastore("more", id=104)
    assert isinstance(second, Datastore)
    one, other = noise(bed, 6, 1), noise(bed, 6, 2, second)
    for image in (one, other):
        vm = clone(bed, image, replica)
        assert right(bed, image, replica, vm.id)
        assert cache_bytes(replica) <= 10 * MB
    assert cached_names(bed, replica) == names(other)
    copies = f"{DATASTORES}/replica_snaps/7/disk.0"
    replica.write(copies, random.Random(3).randbytes(6 * MB))
    forget_log(bed)
    clone(bed, noise(bed, 3, 4), replica)
    assert cached_names(bed, replica) == names(list(bed.cloud.images.values())[-1])
    assert replica.exists(copies)
    clone(bed, one, bed.hosts[1])
    assert replica.exists(copies)
    (warning,) = warnings(bed)
    assert "MB needed" in warning


def test_B9_a_hit_evicts_nothing(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    images = [noise(bed, 2, seed) for seed in (1, 2)]
    clones(bed, images, replica)
    configure_system(bed, REPLICA_MAX_SIZE_MB="1")
    clones(bed, images, host)  # hits on the replica
    configure_system(bed, HOST_CACHE_MAX_SIZE_MB="1")
    clone(bed, images[0], host)  # and on the host
    for node in (host, replica):
        assert cached_names(bed, node) - {".monitor"} == names(*images)
    assert warnings(bed) == []


@pytest.mark.parametrize("where", ["host01", "host03"])
def test_B10_two_fills_at_once_do_not_count_on_the_same_room(bed: Testbed, where: str) -> None:
    limit_cache(bed, where, MAX_SIZE_MB="20")
    node = bed.cluster.node(where)
    images = [noise(bed, 12, seed) for seed in (1, 2)]
    node.limit_rate(100)
    with watching(node) as most:
        running = [
            start_clone(bed, image, bed.hosts[number if where == "host03" else 0])
            for number, image in enumerate(images)
        ]
        for each, image in zip(running, images):
            reply = each.wait()
            assert reply.success, reply.error
            assert right(bed, image, each.host, each.vm.id)
    assert 12 * MB <= most[0] <= 20 * MB


@contextlib.contextmanager
def watching(node: Node) -> Iterator[list[int]]:
    """Look again and again how much the cache of a node takes: the most there was."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            most[0] = max(most[0], cache_bytes(node))
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("source", [QCOW2])
def test_B1_B4_B11_an_evictor_that_never_rests(bed: Testbed, source: str) -> None:
    """It evicts all it can, on host and replica, while clones come and go: none fails."""
    configure_system(
        bed, REPLICA_HOST="host03", HOST_CACHE_MAX_SIZE_MB="8", REPLICA_MAX_SIZE_MB="8"
    )
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(source)
    clone(bed, image, host)
    locks = [node.path(companion(image, "lock")).stat().st_ino for node in (host, replica)]
    before = bed.log().count("left the cache") + bed.log().count("evicted ")
    done = 0
    with evicting(bed, host) as one, evicting(bed, replica) as other:
        for _ in range(2):
            running = [start_clone(bed, image, host) for _ in range(2)]
            for each in running:
                reply = each.wait()
                assert reply.success, reply.error
                done += same_content(bed, host, bed.disk_path(each.vm), image.format, source)
            for each in running:
                assert bed.oned.transfer_mad.run_line(
                    f"DELETE onestor host01:{DATASTORES}/102/{each.vm.id} {each.vm.id} 102"
                ).success
        assert one.poll() is None and other.poll() is None, "they were at work all the time"
    assert done == 4
    assert bed.log().count("evicted ") > before
    wait_until(lambda: bed.leftovers() == [], "all have ended", timeout=30)
    for node, lock in zip((host, replica), locks):
        assert node.path(companion(image, "lock")).stat().st_ino == lock
        assert cache_bytes(node) <= 8 * MB + image.size * MB
    assert unfinished(bed) == []


def test_B12_a_damaged_sidecar_disturbs_nobody(bed: Testbed) -> None:
    host = bed.hosts[0]
    configure_system(bed, HOST_CACHE_MAX_SIZE_MB="22")
    images = [noise(bed, 4, seed) for seed in range(3)]
    clones(bed, images, host)
    for age, image in enumerate(images):
        last_use(host, image, 100.0 - age)
    host.write(companion(images[0], "sidecar"), b"\x00garbage")
    last_use(host, images[0], 50.0)
    new = bed.image(BIG)
    vm = clone(bed, new, host)
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
    assert cache_bytes(host) <= 22 * MB
    assert names(new) < cached_names(bed, host)
    assert warnings(bed) == []
    vm = clone(bed, images[0], host)
    assert right(bed, images[0], host, vm.id)


def test_A21_B15_orphans_go_when_they_are_old_enough(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03", CACHE_ORPHAN_AGE="3600")
    node, host = bed.hosts[2], bed.hosts[0]
    deleted, young, kept, used = (noise(bed, 1, seed) for seed in range(4))
    clones(bed, (deleted, young, kept, used), node)
    for image in (deleted, kept, used):
        last_use(node, image, 2 * HOUR)
    for image in (deleted, young, used):
        bed.frontend.run(["rm", entry_of(image)])
    directory = node.path(f"{DATASTORES}/101")
    for name, age in (("aaaa", 2 * HOUR), ("bbbb", 60.0)):
        part = f".{name}.0123456789abcdef.part"
        node.write(f"{DATASTORES}/101/{part}", "what a dead fill has brought")
        node.write(f"{DATASTORES}/101/.{name}.fill", f'{{"part": "{part}", "reserved": 5}}\n')
        stamp = time.time() - age
        os.utime(directory / f".{name}.fill", (stamp, stamp))
    node.write(f"{DATASTORES}/101/somebody's file", "which is not ours")
    with lock_held(node, companion(used, "lock"), fcntl.LOCK_SH):
        clone(bed, noise(bed, 1, 5), host)
    left = {name for name in bed.files(node) if name.startswith("101/")}
    assert f"101/{os.path.basename(deleted.source)}" not in left
    assert f"101/{os.path.basename(companion(deleted, 'sidecar'))}" not in left
    for image in (young, kept, used):
        assert f"101/{os.path.basename(image.source)}" in left
    assert [name for name in left if "aaaa" in name and not name.endswith(".lock")] == []
    assert len([name for name in left if "bbbb" in name and not name.endswith(".lock")]) == 2
    assert "101/somebody's file" in left
    assert "the image is no more" in bed.log()
    assert "an interrupted fill" in bed.log()


def test_B15_C11_a_bridge_host_says_which_images_are_no_more(bed: Testbed) -> None:
    """What the front-end has at the same place says nothing of them."""
    configure_system(bed, CACHE_ORPHAN_AGE="3600")
    host, bridge = bed.hosts[0], bed.hosts[1]
    deleted, new = (noise(bed, 1, seed) for seed in range(2))
    clone(bed, deleted, host)
    last_use(host, deleted, 2 * HOUR)
    bridged(bed, new, bridge)
    clone(bed, new, host)
    assert bed.frontend.exists(entry_of(deleted))
    assert cached_names(bed, host) == names(new)
    assert warnings(bed) == []
