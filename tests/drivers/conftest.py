"""One cloud for all tests of this directory, swept clean before each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.cluster import Node
from tests.testbed import Testbed, running_testbed

SOURCES = "/var/tmp"


@pytest.fixture(scope="session")
def running_bed() -> Iterator[Testbed]:
    with running_testbed(hosts=2) as bed:
        make_sources(bed.frontend)
        yield bed


@pytest.fixture
def bed(running_bed: Testbed) -> Iterator[Testbed]:
    running_bed.clean()
    running_bed.use_version("6.10.0")
    yield running_bed
    for node in running_bed.hosts:
        node.heal()
        node.unlimit_rate()
    assert running_bed.leftovers() == []


def make_sources(frontend: Node) -> None:
    """Images to register: data, zeros, holes and data again, in both formats."""
    script = """
import os, random
os.chdir("/var/tmp")
noise = random.Random(1).randbytes
with open("raw.img", "wb") as image:
    image.write(noise(3 << 20))
    image.write(bytes(1 << 20))
    image.seek(40 << 20)
    image.write(noise((1 << 20) + 512))
    image.truncate((64 << 20) + 512)
with open("small.img", "wb") as image:
    image.write(noise(1 << 20))
with open("big.img", "wb") as image:
    for _ in range(16):
        image.write(noise(1 << 20))
"""
    frontend.run(["/usr/bin/python3", "-c", script])
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    frontend.run([*convert, f"{SOURCES}/raw.img", f"{SOURCES}/disk.qcow2"])


def digest(node: Node, path: str) -> str:
    """SHA-256 of a file of a node."""
    return hashlib.sha256(node.read(path)).hexdigest()


def same_content(bed: Testbed, host: Node, disk: str, image_format: str, source: str) -> bool:
    """Whether a guest sees in ``disk`` on ``host`` what is in ``source`` on the front-end."""
    copy = f"{SOURCES}/compare"
    bed.frontend.write(copy, host.read(disk))
    source_format = "qcow2" if source.endswith("qcow2") else "raw"
    argv = ["qemu-img", "compare", "-f", source_format, "-F", image_format, source, copy]
    return bed.frontend.run(argv, check=False).returncode == 0
