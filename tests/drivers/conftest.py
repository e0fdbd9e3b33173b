"""One cloud for all tests of this directory, swept clean before each."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.oned import objects
from tests.oned.mads import Transfer, TransferMad
from tests.oned.objects import Datastore, Image, Vm
from tests.oned.reply import Reply
from tests.sampling import one_of
from tests.testbed import AGENT, DATASTORES, LOG, REMOTES, Testbed, running_testbed

SOURCES = "/var/tmp"
# What make_sources() puts there. Where size does not matter the medium ones spare a test seconds.
RAW, QCOW2, SMALL, BIG = (
    f"{SOURCES}/{name}" for name in ("raw.img", "disk.qcow2", "small.img", "big.img")
)
MEDIUM, MEDIUM_QCOW2 = f"{SOURCES}/medium.img", f"{SOURCES}/medium.qcow2"


def points(action: str, elsewhere: str) -> list[str]:
    """Where to kill an action that passes much of what another one does, killed more often.

    At one of eight of the points that are its own, and at one of sixteen of the others: in a life
    of every action (test_every_action.py) it dies at some of them, too.
    """
    names, others = crashpoints.names(action), set(crashpoints.names(elsewhere))
    own = [name for name in names if name not in others]
    return [*one_of(8, own), *one_of(16, [name for name in names if name in others])]


@pytest.fixture(scope="session")
def running_bed() -> Iterator[Testbed]:
    with running_testbed(hosts=3) as bed:
        make_sources(bed.frontend)
        yield bed


@pytest.fixture
def bed(running_bed: Testbed) -> Iterator[Testbed]:
    running_bed.clean()
    running_bed.use_version("6.10.0")
    yield running_bed
    for node in running_bed.hosts:
        node.mend_link()
    running_bed.assert_at_rest()


def make_sources(frontend: Node) -> None:
    """Images to register: data, zeros, holes and data again, in both formats."""
    script = """
import os, random
os.chdir("/var/tmp")
noise = random.Random(1).randbytes
with open("raw.img", "wb") as image:
    image.write(noise(3 << 20))
    image.write(bytes(1 << 20))
    image.seek(10 << 20)
    image.write(noise((1 << 20) + 512))
    image.truncate((15 << 20) + 512)
with open("medium.img", "wb") as image:
    image.write(noise(1 << 20))
    image.seek(5 << 20)
    image.write(noise(1 << 20))
    image.truncate(8 << 20)
with open("small.img", "wb") as image:
    image.write(noise(1 << 20))
with open("big.img", "wb") as image:
    for _ in range(16):
        image.write(noise(1 << 20))
"""
    frontend.run(["/usr/bin/python3", "-c", script])
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    frontend.run([*convert, f"{SOURCES}/raw.img", f"{SOURCES}/disk.qcow2"])
    frontend.run([*convert, MEDIUM, MEDIUM_QCOW2])


def digest(node: Node, path: str) -> str:
    """SHA-256 of a file of a node."""
    return hashlib.sha256(node.read(path)).hexdigest()


def same_content(bed: Testbed, host: Node, disk: str, image_format: str, source: str) -> bool:
    """Whether a guest sees in ``disk`` on ``host`` what is in ``source`` on the front-end.

    Looked at on the host, where an overlay finds its base.
    """
    original = bed.frontend.path(source)
    facts = original.stat()
    copy = f"{SOURCES}/compare-{facts.st_ino}-{facts.st_ctime_ns}"
    if not host.exists(copy):
        part = host.path(f"{copy}.part")
        subprocess.run(["cp", "--sparse=always", str(original), str(part)], check=True)
        part.chmod(0o644)
        part.rename(host.path(copy))
    source_format = "qcow2" if source.endswith("qcow2") else "raw"
    argv = ["qemu-img", "compare", "-U", "-f", source_format, "-F", image_format, copy, disk]
    return host.run(argv, check=False).returncode == 0


def write(node: Node, path: str, image_format: str, pattern: int, offset: str = "1M") -> None:
    node.run(["qemu-io", "-f", image_format, "-c", f"write -P {pattern} {offset} 64k", path])


def content(node: Node, path: str, image_format: str) -> bytes:
    """What a guest sees of a file that is complete, or lies on others."""
    copy = "/var/tmp/content"
    node.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, copy])
    found = node.read(copy)
    node.run(["rm", copy])
    return found


def vm_files(bed: Testbed, host: Node) -> dict[str, int]:
    """The files of a host with their sizes, but for those of its cache."""
    return {name: size for name, size in bed.files(host).items() if name.startswith("102/")}


def cached_names(bed: Testbed, node: Node) -> set[str]:
    """The images in the cache of a node; lost+found and the like are none."""
    return {
        os.path.basename(name)
        for name in bed.files(node)
        if name.partition("/")[0] in ("101", "104") and "/." not in name
    }


def unfinished(bed: Testbed) -> list[str]:
    """What interrupted fills have left, on any machine."""
    return [
        f"{node.name}:{name}"
        for node in bed.cluster.nodes
        for name in bed.files(node)
        if ".part" in name or name.endswith(".fill")
    ]


def part_bytes(node: Node) -> int:
    """What has come so far of images that are on their way, in bytes on the disk."""
    found = 0
    for directory, _, names in os.walk(node.path(DATASTORES)):
        for name in names:
            if name.endswith(".part"):
                with contextlib.suppress(FileNotFoundError):  # it is an entry now
                    found += os.stat(f"{directory}/{name}").st_blocks * 512
    return found


# The cache: what tests set, start, hold and count.


def configure_system(bed: Testbed, **attributes: str) -> None:
    """Set attributes in the system datastore's template; "" removes one."""
    for name, value in attributes.items():
        bed.system.template[name] = value
        if not value:
            del bed.system.template[name]
    bed.cloud.save(bed.system)


@contextlib.contextmanager
def host_attribute(bed: Testbed, name: str, **attributes: str) -> Iterator[None]:
    """A host's template has these attributes, too, for the time of the block."""
    host = next(each for each in bed.cloud.hosts.values() if each.name == name)
    before = dict(host.template)
    host.template.update(attributes)
    bed.cloud.save(host)
    try:
        yield
    finally:
        host.template = before
        bed.cloud.save(host)


@contextlib.contextmanager
def of_driver(bed: Testbed, datastore: Datastore, driver: str) -> Iterator[None]:
    """A datastore is of another driver for the time of the block."""
    before, datastore.tm_mad = datastore.tm_mad, driver
    bed.cloud.save(datastore)
    try:
        yield
    finally:
        datastore.tm_mad = before
        bed.cloud.save(datastore)


def entry_of(image: Image) -> str:
    """Where an image lies in every cache: the path it has in its datastore."""
    return image.source.replace("//", "/")


def companion(image: Image, kind: str) -> str:
    """The path of what lies beside the entry: its "sidecar" or "lock", the origin's "manifest"."""
    directory, name = os.path.split(entry_of(image))
    return f"{directory}/.{name}.{kind}"


@dataclass
class Clone:
    """A clone at work; it is killed like any action."""

    vm: Vm
    host: Node
    line: str
    call: Transfer

    def wait(self) -> Reply:
        return self.call.wait()


def start_clone(
    bed: Testbed,
    image: Image,
    host: Node,
    *,
    crash_at: str = "",
    system: Datastore | None = None,
    **attributes: str,
) -> Clone:
    """Start the clone of a new VM; ``crash_at`` is for this action alone."""
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, **attributes)])
    bed.cloud.place(vm, host.name, system or bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    source = f"fe:{image.source}"
    target = f"{host.name}:{bed.disk_path(vm, datastore=system)}"
    line = f"CLONE onestor {source} {target} {vm.id} {image.datastore_id}"
    mad = TransferMad(bed.frontend, bed.cloud.version)
    mad.environment.update({crashpoints.VARIABLE: crash_at} if crash_at else {})
    return Clone(vm, host, line, mad.start_line(line))


def clone(bed: Testbed, image: Image, host: Node, **attributes: str) -> Vm:
    """A VM with a disk of ``image``; that must succeed."""
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, **attributes)])
    reply = bed.oned.instantiate(vm, host.name, bed.system)
    assert reply.success, reply.error
    return vm


def placed(bed: Testbed, image: Image, host: str = "host01") -> Vm:
    """A VM that is powered off; its disk lies there as a prolog leaves it, but for our record.

    Most tests are about what comes behind that, and an action less is a third of a second less.
    """
    vm = bed.vm(image)
    bed.cloud.place(vm, host, bed.system)
    bed.cloud.set_state(vm, objects.POWEROFF)
    node, disk = bed.cluster.node(host), bed.disk_path(vm)
    data = bed.frontend.read(image.source)
    if image.persistent or image.format == "raw":
        node.write(disk, data, mode=0o660)
    else:
        node.write(f"{disk}.base", data, mode=0o444)
        options = ["-b", "disk.0.base", "-F", "qcow2"]
        node.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, disk])
        node.run(["chmod", "0660", disk])
    return vm


def bridged(bed: Testbed, image: Image, bridge: Node, *hosts: str) -> Node:
    """Move an image to a bridge host: the front-end has it no more."""
    bridge.write(entry_of(image), bed.frontend.read(entry_of(image)), mode=0o660)
    bed.frontend.run(["rm", entry_of(image), companion(image, "manifest")])
    bed.images.template["BRIDGE_LIST"] = " ".join(hosts or [bridge.name])
    bed.cloud.save(bed.images)
    return bridge


def forget_log(bed: Testbed) -> None:
    """What the log says from now on is what is asked about."""
    bed.frontend.write(LOG, "")


def warnings(bed: Testbed) -> list[str]:
    return re.findall(r" WARN (.*)", bed.log())


class Sent(NamedTuple):
    """A transfer that has succeeded."""

    bytes: int
    path: str
    source: str
    target: str


def transfers(bed: Testbed) -> list[Sent]:
    """What the log says has crossed a link."""
    return transfers_in(bed.log())


def transfers_in(log: str) -> list[Sent]:
    pattern = r"sent (\d+) bytes of (\S+) from (\S+) to (\S+) in"
    return [Sent(int(found[0]), *found[1:]) for found in re.findall(pattern, log)]


def ways(bed: Testbed) -> list[tuple[str, str]]:
    return [(each.source, each.target) for each in transfers(bed)]


@contextlib.contextmanager
def lock_held(node: Node, path: str, mode: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Somebody else holds a lock of a node: flock(2) knows no namespaces."""
    if not node.exists(path):
        node.write(path, "")
    with node.path(path).open("r+b") as file:
        fcntl.flock(file, mode)
        yield


@contextlib.contextmanager
def program_before(node: Node, name: str, script: str) -> Iterator[None]:
    """A shell script lies before a program in a node's PATH for the time of the block."""
    put_before(node, name, script)
    try:
        yield
    finally:
        take_from_before(node, name)


def put_before(node: Node, name: str, script: str) -> None:
    """Put a shell script before a program in a node's PATH."""
    node.write(_before(name), f"#!/bin/sh\n{script}\n", mode=0o755, owner="root")


def take_from_before(node: Node, name: str) -> None:
    """Undo :func:`put_before`."""
    node.path(_before(name)).unlink()


def _before(name: str) -> str:
    return f"/usr/local/bin/{name}"


def onestor_argv(*words: str) -> list[str]:
    """The command line of `onestor` on the front-end, to be run with CALL_ENVIRONMENT."""
    return ["/usr/bin/python3", "-m", "onestor_lib.frontend.commands.onestor", *words]


_CALL = """
import json, sys, time
from onestor_lib.frontend import boundary
from onestor_lib.frontend.services.hosts import Hosts

def work(request):
    host, operation, facts, times = sys.argv[1:]
    with Hosts(request.settings, request.log).agent(host) as agent:
        found = agent.call(operation, **json.loads(facts))
        for _ in range(1, int(times)):
            time.sleep(0.05)
            found = agent.call(operation, **json.loads(facts))
    return json.dumps(found)

boundary.leave(boundary.run("tm", "try", sys.argv[1:], work))
"""


def agent_call_argv(host: Node, operation: str, times: int = 1, **facts: Any) -> list[str]:
    """The command line that, on the front-end, makes a host's agent do something.

    Between two ``times`` there is a pause of 50 ms, for others to get at the processors.
    """
    return ["/usr/bin/python3", "-c", _CALL, host.name, operation, json.dumps(facts), str(times)]


def impatient(bed: Testbed) -> contextlib.AbstractContextManager[None]:
    """Both sides of a control connection count silence of 8 s as the end, not of 60 s.

    What is shown is that they do; to wait for so long shows nothing more.
    """
    changes = ("SILENCE = 60.0", "SILENCE = 8.0"), ("PULSE = 5.0", "PULSE = 1.0")
    return bed.changed_source("agent/channel.py", *changes)


def agents(node: Node) -> list[int]:
    """The agents at work on a node, by their pids there."""
    return [
        pid
        for pid, argv in node.processes()
        if os.path.basename(argv[0]).startswith("python3")
        and any("onestor_bootstrap" in word for word in argv)
    ]


CALL_ENVIRONMENT = {**AGENT, "PYTHONPATH": REMOTES, "PYTHONDONTWRITEBYTECODE": "1"}


def agent_call(bed: Testbed, host: Node, operation: str, **facts: Any) -> dict[str, Any]:
    """Make a host's agent do something that no action asks it for."""
    argv = agent_call_argv(host, operation, **facts)
    answer: dict[str, Any] = json.loads(bed.frontend.run(argv, env=CALL_ENVIRONMENT).stdout)
    return answer


def trim_facts(max_bytes: int) -> dict[str, Any]:
    """What the operation ``cache.trim`` is told."""
    limits = {
        "max_bytes": max_bytes,
        "max_used_percent": 90,
        "min_age": 0.0,
        "orphan_age": 86400.0,
        "counted": "",
    }
    return {"root": DATASTORES, "limits": limits, "lock_timeout": 30.0}
