"""Whatever is wrong with a cache, the VM gets its disk: one warning says why, nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.cluster import Node
from tests.drivers.conftest import (
    BIG,
    QCOW2,
    SMALL,
    SOURCES,
    agent_call,
    cached_names,
    clone,
    companion,
    configure_system,
    digest,
    entry_of,
    forget_log,
    impatient,
    lock_held,
    part_bytes,
    program_before,
    same_content,
    start_clone,
    transfers,
    unfinished,
    vm_files,
    warnings,
    ways,
)
from tests.oned.objects import Image
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

MB = 1 << 20


# A replica in trouble: each is a state of host03, and a word that the warning has.


@contextlib.contextmanager
def down(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    replica.kill()
    try:
        yield
    finally:
        replica.start()


@contextlib.contextmanager
def cut_off(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    replica.cut()
    yield
    replica.heal()


@contextlib.contextmanager
def full(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    replica.mount_datastores(12)
    try:
        yield
    finally:
        replica.unmount_datastores()


@contextlib.contextmanager
def full_unnoticed(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    """The disk fills up while the image comes: room was there when it was asked for."""
    replica.mount_datastores(24)
    script = (
        f"import os; fd = os.open('{DATASTORES}/filler', os.O_CREAT | os.O_WRONLY)\n"
        "os.posix_fallocate(fd, 0, 14 << 20)\n"
    )
    replica.limit_rate(60)
    running = start_clone(bed, image, bed.hosts[1])
    try:
        wait_until(lambda: part_bytes(replica) > 0, "the image comes")
        replica.run(["/usr/bin/python3", "-c", script])
        reply = running.wait()
        assert reply.success, reply.error
        yield
    finally:
        replica.unlimit_rate()
        replica.unmount_datastores()


@contextlib.contextmanager
def locked(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    with lock_held(replica, companion(image, "lock")):
        yield


@contextlib.contextmanager
def unwritable(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    replica.run(["mkdir", "-p", f"{DATASTORES}/101"])
    replica.run(["chmod", "555", f"{DATASTORES}/101"])
    yield
    replica.run(["chmod", "755", f"{DATASTORES}/101"])


@contextlib.contextmanager
def a_file_in_its_place(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    replica.write(f"{DATASTORES}/101", "no directory")
    yield


@contextlib.contextmanager
def without_python(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    with program_before(replica, "python3", "echo 'no python here' >&2; exit 127"):
        yield


@contextlib.contextmanager
def too_small(bed: Testbed, replica: Node, image: Image) -> Iterator[None]:
    configure_system(bed, REPLICA_MAX_SIZE_MB="10")
    yield


TROUBLES = {
    "down": (down, "host03"),
    "cut off": (cut_off, "host03"),
    "full": (full, "MB needed"),
    "locked": (locked, "still held by"),
    "unwritable": (unwritable, "Permission denied"),
    "a file in its place": (a_file_in_its_place, "101"),
    "without python": (without_python, "no python here"),
    "too small": (too_small, "the limit is 10 MB"),
}


@contextlib.contextmanager
def too_small_here(bed: Testbed, host: Node, image: Image) -> Iterator[None]:
    configure_system(bed, HOST_CACHE_MAX_SIZE_MB="2")
    yield


HOST_TROUBLES = {"locked": locked, "unwritable": unwritable, "too small": too_small_here}


@pytest.mark.parametrize("trouble", one_of(2, list(TROUBLES)))
def test_A18_B6_a_replica_in_trouble_costs_one_warning(bed: Testbed, trouble: str) -> None:
    state, word = TROUBLES[trouble]
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("CONNECT_TIMEOUT=2\nREPLICA_COPY_LOCK_TIMEOUT=1\n")
    bed.use_version("7.4.1")
    image = bed.image(BIG)
    host = bed.hosts[0]
    vm = bed.vm(image)
    with state(bed, bed.hosts[2], image):
        begin = time.monotonic()
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        seconds = time.monotonic() - begin
    assert reply.success, reply.error
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
    (line,) = [line.text for line in reply.log if line.severity.startswith("W")]
    assert "host03" in line
    assert word in line
    assert len(warnings(bed)) == 1
    assert ways(bed)[-1] == ("fe", "host01")
    assert seconds < 30
    assert cached_names(bed, host) == {os.path.basename(image.source)}


def test_A18_C1_a_replica_that_fills_up_while_the_image_comes(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    image = bed.image(BIG)
    with full_unnoticed(bed, bed.hosts[2], image):
        (warning,) = warnings(bed)
        assert "No space left on device" in warning
        assert "host03" in warning
        assert cached_names(bed, bed.hosts[2]) == set()
        assert [name for name in unfinished(bed) if "host03" in name] == []
        (vm,) = bed.cloud.vms.values()
        assert digest(bed.hosts[1], bed.disk_path(vm)) == digest(bed.frontend, BIG)


def test_A18_the_next_replica_of_the_list(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="nowhere host03")
    image = bed.image(QCOW2)
    vm = clone(bed, image, bed.hosts[0])
    assert same_content(bed, bed.hosts[0], bed.disk_path(vm), "qcow2", QCOW2)
    assert ways(bed) == [("fe", "host03"), ("host03", "host01")]
    (warning,) = warnings(bed)
    assert "nowhere" in warning


# The host's own cache in trouble


@pytest.mark.parametrize(
    ("source", "replica", "trouble"),
    one_of(
        2,
        [(*way, trouble) for trouble in HOST_TROUBLES for way in ((QCOW2, ""), (BIG, "host03"))],
    ),
)
def test_A18_A24_B6_a_cache_of_the_host_in_trouble_costs_one_warning(
    bed: Testbed, trouble: str, source: str, replica: str
) -> None:
    configure_system(bed, REPLICA_HOST=replica)
    bed.configure("REPLICA_COPY_LOCK_TIMEOUT=1\n")
    host = bed.hosts[0]
    image = bed.image(source)
    vm = bed.vm(image)
    with HOST_TROUBLES[trouble](bed, host, image):
        reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert reply.success, reply.error
    assert same_content(bed, host, bed.disk_path(vm), image.format, source)
    assert not host.exists(f"{bed.disk_path(vm)}.base"), "a disk of its own"
    (warning,) = warnings(bed)
    assert "host01" in warning
    assert ways(bed)[-1] == (replica or "fe", "host01")
    assert cached_names(bed, host) == set()


@pytest.mark.parametrize("replica", ["", "host03", "host01"])
@pytest.mark.parametrize("source", [BIG, "qcow2"])
def test_C1_C8_a_full_system_datastore_fails_cleanly(
    bed: Testbed, replica: str, source: str
) -> None:
    """Whichever way the image comes; there is no disk, not even a short one."""
    if source == "qcow2":
        source = f"{SOURCES}/big.qcow2"
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", BIG, source]
        bed.frontend.run(convert)
    configure_system(bed, REPLICA_HOST=replica)
    host = bed.hosts[0]
    image = bed.image(source)
    host.mount_datastores(12)
    try:
        vm = bed.vm(image)
        begin = time.monotonic()
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        seconds = time.monotonic() - begin
        left = {*vm_files(bed, host), *cached_names(bed, host)}
    finally:
        host.unmount_datastores()
    assert not reply.success
    assert "MB needed" in reply.error
    assert "host01" in reply.error
    assert seconds < 5
    assert ways(bed) == []
    assert left == set()


def test_A18_room_for_the_disk_but_not_for_the_cache_too(bed: Testbed) -> None:
    host = bed.hosts[0]
    image = bed.image(BIG)
    host.mount_datastores(28)
    try:
        vm = clone(bed, image, host)
        assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
        assert cached_names(bed, host) == set()
    finally:
        host.unmount_datastores()
    (warning,) = warnings(bed)
    assert "MB needed" in warning


# Bytes that are not what they were


def flip(node: Node, path: str, offset: int) -> None:
    """Change one byte as a failing disk does: nothing but the content tells of it."""
    file = node.path(path)
    facts = file.stat()
    with file.open("r+b") as data:
        data.seek(offset)
        byte = data.read(1)
        data.seek(offset)
        data.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("source", one_of(2, [QCOW2, BIG]))
def test_A8_A9_damage_on_the_replica_reaches_no_other_host(bed: Testbed, source: str) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    replica = bed.hosts[2]
    image = bed.image(source)
    clone(bed, image, replica)
    flip(replica, entry_of(image), 2 * MB + 77)
    assert digest(replica, entry_of(image)) != digest(bed.frontend, source)
    assert "was dropped: 1 of its chunks differ" in warning_of_right_clone(bed, image, bed.hosts[1])
    assert digest(replica, entry_of(image)) == digest(bed.frontend, source), "it was replaced"
    # At once with its manifest, which tells no more what is right: the record's digest of the
    # whole does.
    flip(replica, entry_of(image), 2 * MB + 77)
    sidecar = companion(image, "sidecar")
    flip(replica, sidecar, len(replica.read(sidecar)) - 40)
    warning_of_right_clone(bed, image, bed.hosts[0])


def warning_of_right_clone(bed: Testbed, image: Image, host: Node) -> str:
    """What is said of the replica as a host gets the image, which is right there."""
    forget_log(bed)
    vm = clone(bed, image, host)
    assert same_content(bed, host, bed.disk_path(vm), image.format, image.path)
    assert digest(host, entry_of(image)) == digest(bed.frontend, image.path)
    (warning,) = warnings(bed)
    assert "host03" in warning
    return warning


def test_A8_a_scrub_finds_damage_and_tells_how_many_disks_share_it(bed: Testbed) -> None:
    host = bed.hosts[0]
    image = bed.image(QCOW2)
    for _ in range(2):
        clone(bed, image, host)
    facts = {"path": entry_of(image), "lock_timeout": 5.0}
    assert agent_call(bed, host, "cache.verify", **facts) == {"wrong": "", "gone": False}
    flip(host, entry_of(image), 3 * MB)
    found = agent_call(bed, host, "cache.verify", **facts)
    assert "1 of its chunks differ, the first at byte 3145728" in found["wrong"]
    assert "2 disks of VMs have it as their base" in found["wrong"]
    assert cached_names(bed, host) == set()
    vm = clone(bed, image, host)
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)


@pytest.mark.parametrize(("where", "replica"), [("host01", ""), ("host01", "host03"), ("fe", "")])
def test_A8_damage_of_the_original_is_told_and_goes_nowhere(
    bed: Testbed, where: str, replica: str
) -> None:
    configure_system(bed, REPLICA_HOST=replica)
    node = bed.cluster.node(where)
    image = bed.image(BIG)
    flip(bed.frontend, entry_of(image), 3 * MB)
    vm = bed.vm(image)
    reply = bed.oned.instantiate(vm, where, bed.system)
    assert not reply.success
    assert len([line for line in reply.result.stderr.splitlines() if "WARN" not in line]) == 1
    assert reply.error.startswith("read image")
    assert entry_of(image) in reply.error
    assert companion(image, "manifest") in reply.error
    assert vm_files(bed, node) == {}
    assert where == "fe" or cached_names(bed, node) == set()
    assert unfinished(bed) == []
    # As the error says, who has wanted the change makes it count by removing the manifest.
    bed.frontend.run(["rm", companion(image, "manifest")])
    assert bed.oned.retry_prolog(vm).success
    assert digest(node, bed.disk_path(vm)) == digest(bed.frontend, entry_of(image))


_FLIP_IN_TRANSIT = """
import os, subprocess, sys
child = subprocess.Popen(["/usr/bin/python3", *sys.argv[1:]], stdin=subprocess.PIPE)
passed = 0
while data := bytearray(os.read(0, 1 << 16)):
    passed += len(data)
    if passed > 6 << 20 and os.path.exists("/var/tmp/flip"):
        os.unlink("/var/tmp/flip")
        data[len(data) // 2] ^= 1
    child.stdin.write(data)
    child.stdin.flush()
child.stdin.close()
sys.exit(child.wait())
"""


def test_A8_a_byte_that_changes_in_transit(bed: Testbed) -> None:
    """The receiver's python gets its input through a program that flips one byte, once."""
    host = bed.hosts[0]
    image = bed.image(BIG)
    host.write("/var/tmp/flip.py", _FLIP_IN_TRANSIT)
    host.write("/var/tmp/flip", "")
    script = 'exec /usr/bin/python3 /var/tmp/flip.py "$@"'
    with program_before(host, "python-flip", script):
        bed.configure("HOST_PYTHON=python-flip\n")
        vm = clone(bed, image, host)
    assert not host.exists("/var/tmp/flip"), "a byte was flipped"
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)
    assert digest(host, entry_of(image)) == digest(bed.frontend, BIG)
    (warning,) = warnings(bed)
    assert "trying again" in warning


# Time


def test_A19_a_replica_that_falls_silent_holds_nobody_up(bed: Testbed) -> None:
    """In the middle of its transfer; who waits for that one goes on, too."""
    configure_system(bed, REPLICA_HOST="host03")
    # Who waits for a lock has more patience than a silence and the end of its connection take.
    bed.configure("CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=2\nREPLICA_COPY_LOCK_TIMEOUT=12\n")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(BIG)
    clone(bed, image, replica)
    forget_log(bed)
    replica.limit_rate(40)
    with impatient(bed):
        running = [start_clone(bed, image, host) for _ in range(2)]
        wait_until(lambda: part_bytes(host) > MB, "the image comes", timeout=30)
        replica.cut()
        begin = time.monotonic()
        for each in running:
            reply = each.wait()
            assert reply.success, reply.error
            assert digest(host, bed.disk_path(each.vm)) == digest(bed.frontend, BIG)
        assert time.monotonic() - begin < 40
        assert ways(bed) == [("fe", "host01")]
        replica.heal()
        replica.unlimit_rate()
        assert len(warnings(bed)) == 1
        wait_until(lambda: bed.leftovers() == [], "the replica has noticed", timeout=60)


def test_A6_a_dead_machine_holds_no_lock(bed: Testbed) -> None:
    """The replica loses power in the middle of a fill; later it fills again, from where it was."""
    configure_system(bed, REPLICA_HOST="host03")
    bed.configure("CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=2\n")
    replica = bed.hosts[2]
    image = bed.image(BIG)
    replica.limit_rate(40)
    running = start_clone(bed, image, bed.hosts[0])
    wait_until(lambda: part_bytes(replica) > MB, "the image comes", timeout=30)
    replica.kill()
    running.call.kill(9)  # it would wait for 40 s, as ssh does
    assert not running.wait().success
    replica.start()
    forget_log(bed)
    vm = clone(bed, image, bed.hosts[0])
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, BIG)
    assert ways(bed) == [("fe", "host03"), ("host03", "host01")]
    assert transfers(bed)[0].bytes < 16 * MB
    assert warnings(bed) == []
    assert unfinished(bed) == []


def test_A5_two_hosts_that_wait_for_each_other(bed: Testbed) -> None:
    """Each is the other's replica, and both have begun to fill: neither waits for ever."""
    bed.configure("REPLICA_COPY_LOCK_TIMEOUT=4\n")
    image = bed.image(BIG)
    one, other = bed.hosts[0], bed.hosts[1]
    systems = [
        bed.cloud.add_system_datastore(id=number, REPLICA_HOST=replica.name)
        for number, replica in ((105, other), (106, one))
    ]
    try:
        with contextlib.ExitStack() as stack:
            # Nobody gets room before both have the locks that the other will wait for.
            for node in (one, other):
                stack.enter_context(lock_held(node, f"{DATASTORES}/.onestor-cache.lock"))
            running = [
                start_clone(bed, image, node, system=system)
                for node, system in zip((one, other), systems)
            ]
            for node in (one, other):
                wait_until(lambda: is_locked(node, companion(image, "lock")), "it fills")  # noqa: B023
        begin = time.monotonic()
        for each, system in zip(running, systems):
            reply = each.wait()
            assert reply.success, reply.error
            disk = bed.disk_path(each.vm, datastore=system)
            assert digest(each.host, disk) == digest(bed.frontend, BIG)
        assert time.monotonic() - begin < 25
    finally:
        for system in systems:
            bed.cloud.delete(system)
    assert any("still held by" in line for line in warnings(bed))
    wait_until(lambda: bed.leftovers() == [], "all have ended")
    assert unfinished(bed) == []


def is_locked(node: Node, path: str) -> bool:
    """Whether somebody holds a lock of a node so that nobody can share it."""
    if not node.exists(path):
        return False
    with node.path(path).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "pid" in node.read(path).decode()
    return False


# Who is named


def test_C12_the_hop_from_the_replica_that_fails_is_named_with_both_ends(bed: Testbed) -> None:
    configure_system(bed, REPLICA_HOST="host03")
    options = "-oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=yes"
    bed.configure(f"REPLICA_SSH_OPTS='{options}'\n")
    vm = clone(bed, bed.image(QCOW2), bed.hosts[0])
    (warning,) = warnings(bed)
    assert "from host01 to host03" in warning
    assert "Host key verification failed" in warning
    assert same_content(bed, bed.hosts[0], bed.disk_path(vm), "qcow2", QCOW2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST_CACHE_MAX_SIZE_MB", "much"),
        ("HOST_CACHE_MAX_USED_PERC", "0"),
        ("REPLICA_MAX_SIZE_MB", "-1"),
        ("REPLICA_MAX_USED_PERC", "101"),
        ("CACHE_MIN_AGE", "long"),
        ("CACHE_ORPHAN_AGE", "x"),
        ("REPLICA_BWLIMIT_MB_S", "fast"),
        ("REPLICA_HOST", "-oProxyCommand=id"),
        ("REPLICA_HOST", "a;id"),
    ],
)
def test_A21_J3_a_bad_attribute_names_itself_and_its_value(
    bed: Testbed, name: str, value: str
) -> None:
    configure_system(bed, **{"REPLICA_HOST": "host03", name: value})
    vm = bed.vm(bed.image(SMALL))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    if name != "REPLICA_HOST":
        assert name in reply.error
    assert value in reply.error
    assert vm_files(bed, bed.hosts[0]) == {}


def test_A18_random_damage_in_a_cache_directory_hurts_no_vm(bed: Testbed) -> None:
    """Whatever lies in the entry's files: right bytes, from wherever."""
    chance = random.Random(11)
    host = bed.hosts[0]
    image = bed.image(QCOW2)
    clone(bed, image, host)
    for kind in ("sidecar", "fill", "lock"):
        host.write(companion(image, kind), chance.randbytes(300))
    host.write(companion(image, "0123456789abcdef.part"), chance.randbytes(5000))
    host.write(f"{DATASTORES}/.onestor-cache.lock", chance.randbytes(100))
    vm = clone(bed, image, host)
    assert same_content(bed, host, bed.disk_path(vm), "qcow2", QCOW2)
