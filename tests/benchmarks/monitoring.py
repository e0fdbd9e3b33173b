"""The host probe that tells oned what disks and snapshots take."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.measure import Figure, Yardstick, against, within
from tests.cluster import Node
from tests.testbed import DATASTORES, Testbed

DIRECTORY = f"{DATASTORES}/102"
VMS = (10, 100, 1000, 10000)


def monitor_ds(bed: Testbed) -> Iterator[Figure]:
    """1,000 VMs with 2 disks of 3 snapshots each, in under 0.5 s."""
    host = bed.hosts[0]
    add_vms(host, range(1000))
    assert probe(host) == 1000
    yield within("monitor-ds", lambda: probe(host), 0.5)


def growth(bed: Testbed) -> Iterator[Figure]:
    """The host probe over more and more VMs, against a find that looks at the same files."""
    host = bed.hosts[0]
    find = ["find", DIRECTORY, "-type", "f", "-printf", "%b %p\n"]
    yardstick = Yardstick("find -printf of the same", lambda: host.run(find))
    there = 0
    for number in VMS:
        add_vms(host, range(there, number))
        there = number
        assert probe(host) == number
        yield from against("growth-monitor", lambda: probe(host), yardstick, at=str(number))


def add_vms(host: Node, numbers: range) -> None:
    """Directories of VMs with 2 disks of 3 snapshots each, without data, which nobody reads."""
    script = """
import os
import sys
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
for vm in range(int(sys.argv[2]), int(sys.argv[3])):
    for disk in range(2):
        snapshots = f"{vm}/disk.{disk}.snap"
        os.makedirs(snapshots)
        for name in (f"{vm}/disk.{disk}", *(f"{snapshots}/{n}" for n in (0, 9, 10))):
            with open(name, "wb") as file:
                file.truncate(4096)
"""
    argv = ["/usr/bin/python3", "-c", script, DIRECTORY]
    host.run([*argv, str(numbers.start), str(numbers.stop)], timeout=300)


def probe(host: Node) -> int:
    """Run monitor_ds, and return how many VMs it has found."""
    argv = ["/var/tmp/one/tm/onestor/monitor_ds", DIRECTORY]
    return host.run(argv).stdout.count("VM = [")
