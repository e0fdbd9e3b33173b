"""The benchmarks, by name. Each builds what it needs on an empty cloud."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from onestor_lib.agent import client
from onestor_lib.agent.client import AgentClient, ProcessStream
from onestor_lib.frontend import bundle
from tests.benchmarks import (
    cloning,
    commands,
    growth,
    importing,
    monitoring,
    moving,
    recovery,
    snapshots,
)
from tests.benchmarks.measure import Figure, Yardstick, against, compare
from tests.cluster import Node
from tests.hypervisor import Kvm
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed, running_testbed

PYTHON = "/usr/bin/python3"
ALL = 600.0  # seconds, for all of them on two cores

CONNECT = f"""
import sys
sys.path.insert(0, {REMOTES!r})
from onestor_lib.agent.client import AgentClient
from onestor_lib.frontend import bundle, ssh
with AgentClient(ssh.connect(sys.argv[1], python="python3", timeout=10), sys.argv[1]) as agent:
    agent.start(bundle.build())
    agent.call("usage.capacity", path="/")
"""


def startup(bed: Testbed) -> Iterator[Figure]:
    """From exec to the first byte of work: everything an action needs is imported and set up.

    The first work of `clone` is to ask oned, which is refused here at once by a closed port. The
    import times of lxml and paramiko are part of what an action pays; they come as notes.
    """
    frontend = bed.frontend
    argv = [f"{REMOTES}/tm/onestor/clone", "fe:/a", f"host01:{DATASTORES}/102/1/disk.0", "1", "101"]
    environment = {"ONE_XMLRPC": "http://127.0.0.1:1/RPC2"}
    (figure,) = against(
        "startup",
        lambda: frontend.run(argv, env=environment, check=False),
        Yardstick("python3 -c pass", lambda: frontend.run([PYTHON, "-c", "pass"])),
    )
    for module in ("lxml.etree", "paramiko"):
        figure.notes[f"import {module} (s)"] = import_seconds(frontend, module)
    yield figure


def import_seconds(node: Node, module: str) -> float:
    """What `import module` costs in a fresh interpreter."""
    argv = [PYTHON, "-W", "ignore", "-X", "importtime", "-c", f"import {module}"]
    taken = []
    for _ in range(5):
        lines = node.run(argv).stderr.splitlines()
        (line,) = (line for line in lines if re.search(rf"\| {re.escape(module)}$", line))
        taken.append(int(line.split("|")[1]) / 1e6)
    return statistics.median(taken)


def agent_start(bed: Testbed) -> Iterator[Figure]:
    """From exec of python3 on a host to an agent that waits for its first request.

    Once with bytecode, and once as on a host with another Python, which compiles the source.
    """
    header, _, parts = bundle.build().partition(b"\n")
    foreign = json.dumps({**json.loads(header), "magic": ""}).encode() + b"\n" + parts
    argv = [PYTHON, client.PYTHON_OPTIONS, "-c", client.BOOT_CODE]
    bare = [PYTHON, client.PYTHON_OPTIONS, "-c", "pass"]
    yardstick = Yardstick("python3 -c pass", lambda: subprocess.run(bare, check=True))
    with contextlib.ExitStack() as agents:

        def start(code: bytes) -> None:
            agents.enter_context(AgentClient(ProcessStream(argv), "here")).start(code)

        for code in (bundle.build(), foreign):
            work = functools.partial(start, code)
            (figure,) = against("agent-start", work, yardstick, reset=agents.close, runs=15)
            figure.notes["more than python3 itself (s)"] = figure.seconds - figure.yardstick_seconds
            figure.notes["compiled on the host"] = code is foreign
            yield figure


def control(bed: Testbed) -> Iterator[Figure]:
    """A program of the front-end that connects to a host, asks the agent one thing, and ends."""
    host = bed.hosts[0].name
    argv = [PYTHON, "-B", "-W", "ignore", "-c", CONNECT, host]
    by_ssh = ["ssh", "-oControlMaster=no", host, "python3 -c pass"]
    yield from against(
        "control",
        lambda: bed.frontend.run(argv, env=AGENT),
        Yardstick("ssh HOST python3 -c pass", lambda: bed.frontend.run(by_ssh, env=AGENT)),
        runs=9,
    )


@dataclass(frozen=True)
class Benchmark:
    """Figures, and the cluster that they need.

    Those that need the same one follow each other on it; with ``libvirt`` that has a daemon on each
    host.
    """

    figures: Callable[[Testbed], Iterator[Figure]]
    hosts: int = 3
    libvirt: bool = False


BENCHMARKS = {
    "startup": Benchmark(startup),
    "agent-start": Benchmark(agent_start),
    "control": Benchmark(control),
    "monitor-ds": Benchmark(monitoring.monitor_ds),
    "warm-clone": Benchmark(cloning.warm_clone),
    "warm-clone-size": Benchmark(cloning.warm_clone_size),
    "cold-clone": Benchmark(cloning.cold_clone),
    "cut-through": Benchmark(cloning.cut_through),
    "concurrent-cold": Benchmark(cloning.concurrent_cold),
    "resume": Benchmark(cloning.resume),
    "delta": Benchmark(cloning.delta),
    "fill-memory": Benchmark(cloning.fill_memory),
    "mv-thin": Benchmark(moving.mv_thin),
    "snapshot-cold": Benchmark(snapshots.snapshot_cold),
    "cp-local": Benchmark(importing.cp_local),
    "cp-xz": Benchmark(importing.cp_xz),
    "stat": Benchmark(importing.stat),
    "growth-size": Benchmark(growth.size),
    "growth-data": Benchmark(growth.data),
    "growth-clones": Benchmark(growth.clones),
    "growth-monitor": Benchmark(monitoring.growth),
    "snapshot-live": Benchmark(snapshots.snapshot_live, libvirt=True),
    "recovery-pass": Benchmark(recovery.recovery_pass, libvirt=True),
    "cache-warm": Benchmark(commands.cache_warm, hosts=8),
    "doctor": Benchmark(commands.doctor, hosts=5, libvirt=True),
}


def measured(names: Iterable[str]) -> Iterator[Figure]:
    """The figures of these benchmarks, and at last the time that they have taken in all."""

    def cluster(name: str) -> tuple[int, bool]:
        return BENCHMARKS[name].hosts, BENCHMARKS[name].libvirt

    taken: dict[str, float] = {}
    begin = time.perf_counter()
    for (hosts, libvirt), neighbours in itertools.groupby(names, cluster):
        # With sshd as it comes: yardsticks take what they take elsewhere.
        with running_testbed(hosts=hosts, sshd_options={}) as bed:
            if libvirt:
                Kvm(bed.frontend, {node.name: node for node in bed.hosts}).start()
            for name in neighbours:
                started = time.perf_counter()
                yield from BENCHMARKS[name].figures(bed)
                bed.clean()  # after the last one, too: a cluster with much on it goes down slowly
                taken[f"{name} (s)"] = time.perf_counter() - started
    figure = compare("all", [time.perf_counter() - begin], "budget", [ALL], limit=1.0)
    figure.notes.update(taken)
    yield figure
