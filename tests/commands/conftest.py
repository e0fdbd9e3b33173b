"""A cloud, and the command as install.sh has put it on the front-end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import recovery
from tests.cluster import Node
from tests.drivers.conftest import make_sources
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.testbed import AGENT, DATASTORES, Testbed, running_testbed

# Runs a program at a terminal of so many columns, and passes on what it writes there.
_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
columns, *argv = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    sys.stdin.read(1)
    os.execvp(argv[0], argv)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("hhhh", 24, int(columns), 0, 0))
os.write(terminal, b"\\n")
os.read(terminal, 2)
while True:
    try:
        data = os.read(terminal, 65536)
    except OSError:
        break
    if not data:
        break
    os.write(1, data)
os.waitpid(child, 0)
"""


@dataclass
class Desk:
    """Where an administrator sits."""

    bed: Testbed

    def run(self, *words: str, status: int = 0, **environment: str) -> str:
        """What ``onestor`` says on standard output; it fails if ``status`` is not 0."""
        done = self.bed.frontend.run(
            ["onestor", *words], env={**AGENT, **environment}, check=False, timeout=120
        )
        assert bool(done.returncode) == bool(status), done.stdout + done.stderr
        self.complaints = done.stderr
        return done.stdout

    def screen(self, width: int, *words: str, **environment: str) -> str:
        """What a person sees who calls ``onestor`` at a terminal of this width."""
        argv = ["/usr/bin/python3", "-c", _TERMINAL, str(width), "onestor", *words]
        more = {"TERM": "xterm", **AGENT, **environment}
        seen = self.bed.frontend.run(argv, env=more, timeout=120).stdout
        return seen.replace("\r\n", "\n")

    def rows(self, *words: str, status: int = 0, **environment: str) -> list[dict[str, Any]]:
        """The same in JSON."""
        said = self.run(*words, "--json", status=status, **environment)
        return [json.loads(line) for line in said.splitlines()]

    def started(self, image: Image, host: str = "host01") -> Vm:
        vm = self.bed.vm(image)
        reply = self.bed.oned.instantiate(vm, host, self.bed.system)
        assert reply.success, reply.error
        return vm

    def keep_copy(self, replica: str, vm_id: int, disk: str = "disk.0", *, age: float) -> str:
        """A recovery copy, so many seconds old, lies on a replica now; its path."""
        point = int((time.time() - age) * 1000)
        copy = recovery.new(Path(DATASTORES, "replica_snaps", str(vm_id)), disk, point)
        node = self.node(replica)
        node.run(["mkdir", "-p", str(copy.directory)])
        node.write(str(copy.file), "blocks")
        node.write(str(copy.directory / recovery.RECORD), '{"image": ""}')
        return str(copy.file)

    def off(self, vm: Vm) -> None:
        self.bed.cloud.set_state(vm, objects.POWEROFF)

    def node(self, name: str) -> Node:
        return self.bed.cluster.node(name)


@pytest.fixture(scope="session")
def running_desk() -> Iterator[Desk]:
    with running_testbed(hosts=4) as bed:
        make_sources(bed.frontend)
        yield Desk(bed)


@pytest.fixture
def desk(running_desk: Desk) -> Iterator[Desk]:
    bed = running_desk.bed
    bed.clean()
    yield running_desk
    for node in bed.hosts:
        node.mend_link()
    bed.assert_at_rest()
