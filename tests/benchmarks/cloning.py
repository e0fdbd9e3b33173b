"""Clones, warm and cold, and what crosses the links for them."""

from __future__ import annotations

import concurrent.futures
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.measure import Figure, against, seconds
from tests.cluster import Node, NodeProcess
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed

MB = 1 << 20
LINK = 400  # Mbit/s, where the time of a transfer shall tell how much was transferred


def warm_clone(bed: Testbed) -> Iterator[Figure]:
    """A qcow2 image that the host has, against `qemu-img create` of that overlay by ssh."""
    clone = Clone.of(bed, make_image(bed, 64, "64M"), bed.hosts[0])
    clone.run()
    overlay = f"qemu-img create -q -f qcow2 -b {clone.source} -F qcow2 /var/tmp/overlay.qcow2"
    yield against(
        "warm-clone",
        clone.run,
        "one fresh ssh HOST qemu-img create",
        lambda: ssh(bed, clone.host, overlay),
        limit=2.5,
        runs=11,
    )


def warm_clone_size(bed: Testbed) -> Iterator[Figure]:
    """A warm clone of an image of 100 GiB against one of 1 GiB, as the guest sees them."""
    host = bed.hosts[0]
    large = Clone.of(bed, make_image(bed, 64, "100G"), host)
    small = Clone.of(bed, make_image(bed, 64, "1G"), host)
    large.run()
    small.run()
    yield against("warm-clone-size", large.run, "the same of 1 GiB", small.run, limit=1.1, runs=21)


def cold_clone(bed: Testbed) -> Iterator[Figure]:
    """1 GiB from the front-end to a host that has never seen it, verified and flushed.

    Against what a careful administrator does by hand (the digest on the target only), and against
    what a plain ssh driver does (md5sum on both sides, tar through ssh). A raw image is copied
    once more on the host where the file system cannot share blocks: it comes without a limit.
    """
    host = bed.hosts[0]
    for image_format, limits in (("qcow2", (1.0, 0.6)), ("raw", (None, None))):
        clone = Clone.of(bed, make_image(bed, 1024, "1G", image_format), host)
        name = "cold-clone" if image_format == "qcow2" else "cold-clone-raw"
        careful, plain = by_hand(clone), as_plain_driver(clone)
        yield against(
            name, clone.run, "scp, sync, sha256sum", careful, limit=limits[0], reset=clone.chill
        )
        yield against(
            name, clone.run, "md5sum, tar | ssh tar, md5sum", plain, limit=limits[1],
            reset=clone.chill, runs=3,
        )  # fmt: skip


def cut_through(bed: Testbed) -> Iterator[Figure]:
    """A cold clone over two links of one speed, by way of the replica, against one link by hand."""
    bed.system.template["REPLICA_HOST"] = bed.hosts[2].name
    bed.cloud.save(bed.system)
    clone = Clone.of(bed, make_image(bed, 256, "256M"), bed.hosts[0])
    for node in bed.cluster.nodes:
        node.limit_rate(LINK)
    yield against(
        "cut-through",
        clone.run,
        "scp, sync, sha256sum over one link",
        by_hand(clone),
        limit=1.25,
        reset=clone.chill,
        runs=3,
    )


def concurrent_cold(bed: Testbed) -> Iterator[Figure]:
    """20 clones of one cold image of 256 MiB at once on 3 hosts, against a plain driver's."""
    bed.system.template["REPLICA_HOST"] = bed.hosts[2].name
    bed.cloud.save(bed.system)
    image = make_image(bed, 256, "256M")
    clones = [Clone.of(bed, image, bed.hosts[number % 3]) for number in range(20)]
    plain = [as_plain_driver(clone) for clone in clones]

    def chill() -> None:
        for clone in clones:
            clone.chill()

    yield against(
        "concurrent-cold",
        lambda: at_once([clone.run for clone in clones]),
        "md5sum, tar | ssh tar, md5sum of each",
        lambda: at_once(plain),
        limit=1.0,
        reset=chill,
        runs=1,
    )


def resume(bed: Testbed) -> Iterator[Figure]:
    """A fill that was broken off at 80 %, against a whole one; in MB that cross the link."""
    clone = Clone.of(bed, make_image(bed, 256, "256M"), bed.hosts[0])
    whole = megabytes_for(bed, clone)
    clone.chill()
    host = clone.host
    host.limit_rate(LINK)
    before = host.bytes_received()
    process = clone.start()
    while host.bytes_received() - before < 0.8 * 256 * MB:
        if process.poll() is not None:
            raise RuntimeError("the clone was faster than the look at it")
    process.kill_tree()
    host.unlimit_rate()
    yield crossing("resume", megabytes_for(bed, clone), "the whole fill", whole, limit=0.25)


def delta(bed: Testbed) -> Iterator[Figure]:
    """1 GiB of which one chunk has changed, against the whole; in MB that cross the link."""
    image = make_image(bed, 1024, "1G", "raw")
    clone = Clone.of(bed, image, bed.hosts[0])
    whole = megabytes_for(bed, clone)
    script = """
import os, sys
path = sys.argv[1]
new = path + ".new"
with open(path, "rb") as old, open(new, "wb") as file:
    while block := old.read(1 << 20):
        file.write(block)
    file.seek(300 << 20)
    file.write(b"changed")
os.rename(new, path)
"""
    bed.frontend.run(["/usr/bin/python3", "-c", script, clone.source])
    yield crossing("delta", megabytes_for(bed, clone), "the whole image", whole, limit=0.02)


def fill_memory(bed: Testbed) -> Iterator[Figure]:
    """The largest resident size of any process of ours while 4 GiB are filled."""
    clone = Clone.of(bed, make_image(bed, 4096, "4G", "raw"), bed.hosts[0])
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
    taken = seconds(clone.run)
    done.set()
    watcher.join()
    figure = Figure("fill-memory", max(peaks.values()) / MB, "budget", 64.0, 1.0, unit="MiB")
    figure.notes["processes seen"] = len(peaks)
    figure.notes["seconds for 4 GiB"] = taken
    yield figure


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
        """Take the image from every cache, and the disk, and let the disk come to rest."""
        for node in self.bed.hosts:
            node.run(["rm", "-rf", os.path.dirname(self.target), f"{DATASTORES}/101"])
        self.host.run(["mkdir", "-p", os.path.dirname(self.target)])
        self.host.run(["sync", "-f", DATASTORES])


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


def megabytes_for(bed: Testbed, clone: Clone) -> float:
    """How much a clone lets cross the link of its host."""
    before = clone.host.bytes_received()
    clone.run()
    return (clone.host.bytes_received() - before) / MB


def crossing(name: str, ours: float, yardstick: str, theirs: float, *, limit: float) -> Figure:
    return Figure(name, ours, yardstick, theirs, limit, unit="MB")


def peak_memory(node: Node, pid: int) -> int:
    """The largest resident size a process has had, in bytes (VmHWM of proc(5))."""
    try:
        status = node.read(f"/proc/{pid}/status").decode()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
