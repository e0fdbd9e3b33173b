"""The benchmarks, by name. Each builds what it needs on a cloud of its own hosts."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterator

from onestor_lib.agent import client
from onestor_lib.agent.client import AgentClient, ProcessStream
from onestor_lib.frontend import bundle
from tests.benchmarks import cloning, commands, importing, moving, recovery, snapshots
from tests.benchmarks.measure import Figure, against, within
from tests.cluster import Node
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed

PYTHON = "/usr/bin/python3"

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
    figure = against(
        "startup",
        lambda: frontend.run(argv, env=environment, check=False),
        "python3 -c pass",
        lambda: frontend.run([PYTHON, "-c", "pass"]),
        limit=None,
    )
    for module in ("lxml.etree", "paramiko"):
        figure.notes[f"import {module} (s)"] = import_seconds(frontend, module)
    yield figure


def import_seconds(node: Node, module: str) -> float:
    """What `import module` costs in a fresh interpreter, the fastest of several runs."""
    argv = [PYTHON, "-W", "ignore", "-X", "importtime", "-c", f"import {module}"]
    taken = []
    for _ in range(5):
        lines = node.run(argv).stderr.splitlines()
        (line,) = (line for line in lines if re.search(rf"\| {re.escape(module)}$", line))
        taken.append(int(line.split("|")[1]) / 1e6)
    return min(taken)


def agent_start(bed: Testbed) -> Iterator[Figure]:
    """From exec of python3 on a host to an agent that waits for its first request.

    Once with bytecode, and once as on a host with another Python, which compiles the source.
    """
    header, _, parts = bundle.build().partition(b"\n")
    foreign = json.dumps({**json.loads(header), "magic": ""}).encode() + b"\n" + parts
    argv = [PYTHON, client.PYTHON_OPTIONS, "-c", client.BOOT_CODE]
    bare = [PYTHON, client.PYTHON_OPTIONS, "-c", "pass"]
    agents = contextlib.ExitStack()

    def start(code: bytes) -> None:
        agents.enter_context(AgentClient(ProcessStream(argv), "here")).start(code)

    for code in (bundle.build(), foreign):
        figure = against(
            "agent-start",
            functools.partial(start, code),
            "python3 -c pass",
            lambda: subprocess.run(bare, check=True),
            limit=None,
            reset=agents.close,
            runs=25,
        )
        figure.notes["more than python3 itself (s)"] = figure.seconds - figure.yardstick_seconds
        figure.notes["compiled on the host"] = code is foreign
        yield figure


def control(bed: Testbed) -> Iterator[Figure]:
    """A program of the front-end that connects to a host, asks the agent one thing, and ends."""
    host = bed.hosts[0].name
    argv = [PYTHON, "-B", "-W", "ignore", "-c", CONNECT, host]
    yield against(
        "control",
        lambda: bed.frontend.run(argv, env=AGENT),
        "ssh HOST python3 -c pass",
        lambda: bed.frontend.run(["ssh", "-oControlMaster=no", host, "python3 -c pass"], env=AGENT),
        limit=None,
        runs=15,
    )


def monitor_ds(bed: Testbed) -> Iterator[Figure]:
    """1,000 VMs with 2 disks of 3 snapshots each, in under 0.5 s."""
    host = bed.hosts[0]
    script = """
import os
for vm in range(1000):
    for disk in range(2):
        snapshots = f"{vm}/disk.{disk}.snap"
        os.makedirs(snapshots)
        for name in (f"{vm}/disk.{disk}", *(f"{snapshots}/{n}" for n in (0, 9, 10))):
            with open(name, "wb") as file:
                file.write(b"x" * 4096)
"""
    host.run(["mkdir", "-p", f"{DATASTORES}/102"])
    host.run([PYTHON, "-c", script], cwd=f"{DATASTORES}/102")
    probe = ["/var/tmp/one/tm/onestor/monitor_ds", f"{DATASTORES}/102"]
    assert host.run(probe).stdout.count("VM = [") == 1000
    yield within("monitor-ds", lambda: host.run(probe), 0.5)


BENCHMARKS: dict[str, Callable[[Testbed], Iterator[Figure]]] = {
    "startup": startup,
    "agent-start": agent_start,
    "control": control,
    "monitor-ds": monitor_ds,
    "warm-clone": cloning.warm_clone,
    "warm-clone-size": cloning.warm_clone_size,
    "cold-clone": cloning.cold_clone,
    "cut-through": cloning.cut_through,
    "concurrent-cold": cloning.concurrent_cold,
    "resume": cloning.resume,
    "delta": cloning.delta,
    "fill-memory": cloning.fill_memory,
    "mv-thin": moving.mv_thin,
    "snapshot-cold": snapshots.snapshot_cold,
    "snapshot-live": snapshots.snapshot_live,
    "recovery-pass": recovery.recovery_pass,
    "cache-warm": commands.cache_warm,
    "doctor": commands.doctor,
    "cp-local": importing.cp_local,
    "cp-xz": importing.cp_xz,
    "stat": importing.stat,
}
