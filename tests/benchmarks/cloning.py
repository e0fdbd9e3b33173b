"""Clones, warm and cold, and what crosses the links for them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.measure import RUNS, Figure, Yardstick, against, compare
from tests.cluster import Node, NodeProcess
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed

MB = 1 << 20
LINK = 400  # Mbit/s, where the time of a transfer shall tell how much was transferred
# MB of images. Large enough that a second of connections and programs does not hide what is done
# with the bytes, and small enough that all figures take minutes.
LARGE, MEDIUM, SMALL, TINY = 256, 128, 64, 32


def warm_clone(bed: Testbed) -> Iterator[Figure]:
    """A qcow2 image that the host has, against `qemu-img create` of that overlay by ssh."""
    clone = Clone.of(bed, make_image(bed, SMALL, f"{SMALL}M"), bed.hosts[0])
    clone.run()
    yield from against("warm-clone", clone.run, one_create(clone), runs=11, budget=0.5)


def warm_clone_size(bed: Testbed) -> Iterator[Figure]:
    """A warm clone of an image of 100 GiB against one of 1 GiB, as the guest sees them."""
    host = bed.hosts[0]
    large = Clone.of(bed, make_image(bed, SMALL, "100G"), host)
    small = Clone.of(bed, make_image(bed, SMALL, "1G"), host)
    large.run()
    small.run()
    yardstick = Yardstick("the same of 1 GiB", small.run, 1.1)
    yield from against("warm-clone-size", large.run, yardstick, runs=15, budget=0.5)


def cold_clone(bed: Testbed) -> Iterator[Figure]:
    """From the front-end to a host that has never seen the image, verified and flushed.

    Against what a careful administrator does by hand (the digest on the target only), and against
    what a plain ssh driver does (md5sum on both sides, tar through ssh).
    """
    clone = Clone.of(bed, make_image(bed, LARGE, f"{LARGE}M"), bed.hosts[0])
    yield from against(
        "cold-clone",
        clone.run,
        Yardstick("scp, sync, sha256sum", by_hand(clone), 1.0),
        Yardstick("md5sum, tar | ssh tar, md5sum", as_plain_driver(clone), 0.6),
        reset=clone.chill,
    )


def cut_through(bed: Testbed) -> Iterator[Figure]:
    """A cold clone over two links of one speed, by way of the replica, against one link by hand."""
    bed.system.template["REPLICA_HOST"] = bed.hosts[2].name
    bed.cloud.save(bed.system)
    clone = Clone.of(bed, make_image(bed, SMALL, f"{SMALL}M"), bed.hosts[0])
    yardstick = Yardstick("scp, sync, sha256sum over one link", by_hand(clone), 1.25)
    with slow_links(bed.cluster.nodes, LINK):
        yield from against("cut-through", clone.run, yardstick, reset=clone.chill)


def concurrent_cold(bed: Testbed) -> Iterator[Figure]:
    """Nine clones of one cold image at once on 3 hosts, against a plain driver's.

    And what crosses the links for them, against one copy for each host, of which one is the
    replica that the others fetch from.
    """
    bed.system.template["REPLICA_HOST"] = bed.hosts[2].name
    bed.cloud.save(bed.system)
    image = make_image(bed, TINY, f"{TINY}M")
    clones = [Clone.of(bed, image, bed.hosts[number % 3]) for number in range(9)]
    plain = [as_plain_driver(clone) for clone in clones]

    crossed = []

    def all_at_once() -> None:
        crossed.append(megabytes_to(bed.hosts, lambda: at_once([clone.run for clone in clones])))

    yardstick = Yardstick("md5sum, tar | ssh tar, md5sum of each", lambda: at_once(plain), 1.0)
    yield from against("concurrent-cold", all_at_once, yardstick, reset=lambda: chill(clones))
    copies = [float(len(bed.hosts) * TINY)]
    yield crossing("concurrent-cold", crossed, "one copy for each host", copies, limit=1.1)


def resume(bed: Testbed) -> Iterator[Figure]:
    """A fill that was broken off at 80 %, against a whole one; in MB that cross the link."""
    clone = Clone.of(bed, make_image(bed, SMALL, f"{SMALL}M"), bed.hosts[0])
    whole, again = [], []
    for _ in range(RUNS):
        clone.chill()
        whole.append(megabytes_to([clone.host], clone.run))
        clone.chill()
        break_off(clone, 0.8 * SMALL * MB)
        again.append(megabytes_to([clone.host], clone.run))
    yield crossing("resume", again, "the whole fill", whole, limit=0.25)


def break_off(clone: Clone, size: float) -> None:
    """Kill the action as soon as so many bytes have reached the host."""
    host = clone.host
    with slow_links([host], LINK):
        before = host.bytes_received()
        process = clone.start()
        while host.bytes_received() - before < size:
            if process.poll() is not None:
                raise RuntimeError("the clone was faster than the look at it")
        process.kill_tree()


def delta(bed: Testbed) -> Iterator[Figure]:
    """An image of which one chunk has changed, against the whole; in MB that cross the link."""
    clone = Clone.of(bed, make_image(bed, MEDIUM, f"{MEDIUM}M", "raw"), bed.hosts[0])
    script = """
import os, sys
path = sys.argv[1]
new = path + ".new"
with open(path, "rb") as old, open(new, "wb") as file:
    while block := old.read(1 << 20):
        file.write(block)
    file.seek(100 << 20)
    file.write(os.urandom(8))
os.rename(new, path)
"""
    whole, changed = [], []
    for _ in range(RUNS):
        clone.chill()
        whole.append(megabytes_to([clone.host], clone.run))
        bed.frontend.run(["/usr/bin/python3", "-c", script, clone.source])
        changed.append(megabytes_to([clone.host], clone.run))
    yield crossing("delta", changed, "the whole image", whole, limit=0.02)


def fill_memory(bed: Testbed) -> Iterator[Figure]:
    """The largest resident size of any process of ours while 256 MiB are filled.

    That is four times what one may have: who held the image, or a part of it that grows with
    it, would be seen.
    """
    clone = Clone.of(bed, make_image(bed, LARGE, f"{LARGE}M", "raw"), bed.hosts[0])
    largest = []
    for _ in range(RUNS):
        clone.chill()
        peaks = peaks_of(bed, clone.run)
        assert len(peaks) > 2, "front-end, sender and receiver were not all seen"
        largest.append(max(peaks.values()) / MB)
    yield compare("fill-memory", largest, "budget", [64.0], limit=1.0, unit="MiB")


def peaks_of(bed: Testbed, work: Callable[[], object]) -> dict[tuple[str, int], int]:
    """The largest resident size, in bytes, of each process of ours while ``work`` is done."""
    peaks: dict[tuple[str, int], int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for node in bed.cluster.nodes:
                for pid, argv in node.processes():
                    if any("onestor" in word for word in argv):
                        seen = node.name, pid
                        peaks[seen] = max(peaks.get(seen, 0), peak_memory(node, pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peaks


@dataclass
class Clone:
    """One clone action that can be run again and again for the same VM."""

    bed: Testbed
    host: Node
    vm: Vm
    source: str  # path on the front-end, and of the entry in a cache
    line: str

    @classmethod
    def of(cls, bed: Testbed, image: Image, host: Node) -> Clone:
        vm = bed.vm(image)
        bed.cloud.place(vm, host.name, bed.system)
        bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
        source = image.source.replace("//", "/")
        line = f"CLONE onestor fe:{source} {host.name}:{bed.disk_path(vm)} {vm.id} 101"
        return cls(bed, host, vm, source, line)

    @property
    def target(self) -> str:
        return self.bed.disk_path(self.vm)

    def run(self) -> None:
        reply = self.bed.oned.transfer_mad.run_line(self.line)
        assert reply.success, reply.error

    def start(self) -> NodeProcess:
        """The action as a process of its own that can be killed."""
        words = self.line.split()
        argv = [f"{REMOTES}/tm/onestor/clone", *words[2:]]
        return self.bed.frontend.popen(argv, env=AGENT, cwd="/var/lib/one")

    def chill(self) -> None:
        chill([self])


def chill(clones: list[Clone]) -> None:
    """Take the images from every cache, and the disks, and let the hosts' disks come to rest."""
    for node in clones[0].bed.hosts:
        here = [os.path.dirname(clone.target) for clone in clones if clone.host is node]
        node.run(["rm", "-rf", *here, f"{DATASTORES}/101"])
        node.run(["mkdir", "-p", *here, f"{DATASTORES}/102"])
        node.run(["sync", "-f", DATASTORES])


def make_image(bed: Testbed, megabytes: int, virtual: str, image_format: str = "qcow2") -> Image:
    """An image with so much random data, as large as ``virtual`` for its guest."""
    raw, path = "/var/tmp/bench.raw", "/var/tmp/bench.img"
    bed.frontend.run(["/bin/sh", "-c", f"head -c {megabytes * MB} /dev/urandom > {raw}"])
    if image_format == "qcow2":
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path]
        bed.frontend.run(convert, timeout=300)
        bed.frontend.run(["qemu-img", "resize", "-q", "-f", "qcow2", path, virtual])
    else:
        bed.frontend.run(["mv", raw, path])
    image = bed.image(path)
    bed.frontend.run(["rm", "-f", raw, path])
    return image


def ssh(bed: Testbed, host: Node, command: str) -> None:
    """A command on a host by a connection of its own, as drivers in shell run it."""
    argv = ["ssh", "-oControlMaster=no", host.name, command]
    bed.frontend.run(argv, env=AGENT, timeout=300)


def one_create(clone: Clone, times: int = 1) -> Yardstick:
    """Making the overlay of a warm clone with one command by ssh."""
    overlay = f"qemu-img create -q -f qcow2 -b {clone.source} -F qcow2 /var/tmp/overlay.qcow2"
    name = "one fresh ssh HOST qemu-img create"
    return Yardstick(
        name if times == 1 else f"{times} times {name}",
        lambda: ssh(clone.bed, clone.host, overlay),
        2.5,
        times,
    )


def by_hand(clone: Clone) -> Callable[[], None]:
    def careful() -> None:
        target = f"{clone.host.name}:{clone.target}"
        argv = ["scp", "-q", "-oControlMaster=no", clone.source, target]
        clone.bed.frontend.run(argv, env=AGENT, timeout=300)
        ssh(clone.bed, clone.host, f"sync -f {clone.target}; sha256sum {clone.target}")

    return careful


def as_plain_driver(clone: Clone) -> Callable[[], None]:
    """Digest of both files, `tar | ssh tar`, each step by an ssh connection of its own."""

    def plain() -> None:
        frontend, directory = clone.bed.frontend, os.path.dirname(clone.target)
        ssh(clone.bed, clone.host, f"mkdir -p {directory}")
        frontend.run(["md5sum", clone.source], timeout=300)
        folder, name = os.path.split(clone.source)
        command = f"ssh -oControlMaster=no {clone.host.name} tar -xSf - -C {directory}"
        pipe = f"tar -C {folder} -cSf - {name} | {command}"
        frontend.run(["/bin/sh", "-c", pipe], env=AGENT, timeout=300)
        ssh(clone.bed, clone.host, f"md5sum {directory}/{name}")

    return plain


def at_once(work: list[Callable[[], None]]) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(work)) as pool:
        for each in [pool.submit(one) for one in work]:
            each.result()


@contextlib.contextmanager
def slow_links(nodes: list[Node], rate: float) -> Iterator[None]:
    """Bound the links of these nodes to so many Mbit/s."""
    for node in nodes:
        node.limit_rate(rate)
    try:
        yield
    finally:
        for node in nodes:
            node.unlimit_rate()


def megabytes_to(nodes: list[Node], work: Callable[[], object]) -> float:
    """How much crosses the links to these nodes while ``work`` is done."""
    before = sum(node.bytes_received() for node in nodes)
    work()
    return (sum(node.bytes_received() for node in nodes) - before) / MB


def crossing(
    name: str, ours: list[float], yardstick: str, theirs: list[float], *, limit: float
) -> Figure:
    return compare(name, ours, yardstick, theirs, limit=limit, unit="MB")


def peak_memory(node: Node, pid: int) -> int:
    """The largest resident size a process has had, in bytes (VmHWM of proc(5))."""
    try:
        status = node.read(f"/proc/{pid}/status").decode()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
