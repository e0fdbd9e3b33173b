"""The benchmarks, by name. Each builds what it needs on a cloud of its own hosts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from tests.benchmarks.measure import Figure, against, within
from tests.cluster import Node
from tests.oned import objects
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed

MB = 1 << 20
PYTHON = "/usr/bin/python3"


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


def cold_clone(bed: Testbed) -> Iterator[Figure]:
    """A raw image of 1 GiB from the front-end to a host that has never seen it.

    Against what a careful administrator does by hand (scp, sync, sha256sum on both sides is not
    even counted: on the target only), and against what a plain ssh driver does (md5sum on both
    sides, tar through ssh).
    """
    frontend, host = bed.frontend, bed.hosts[0]
    size = 1 << 30
    frontend.run(["/bin/sh", "-c", f"head -c {size} /dev/urandom > /var/tmp/cold.img"])
    image = bed.image("/var/tmp/cold.img")
    source = image.source.replace("//", "/")
    vm = bed.vm(image)
    bed.cloud.place(vm, host.name, bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    target = bed.disk_path(vm)
    line = f"CLONE onestor fe:{source} {host.name}:{target} {vm.id} 101"

    def ssh(command: str) -> list[str]:
        return ["ssh", "-oControlMaster=no", host.name, command]

    def clone() -> None:
        reply = bed.oned.transfer_mad.run_line(line)
        assert reply.success, reply.error

    def careful() -> None:
        frontend.run(
            ["scp", "-q", "-oControlMaster=no", source, f"{host.name}:{target}"], env=AGENT
        )
        frontend.run(ssh(f"sync -f {target}; sha256sum {target}"), env=AGENT)

    def plain() -> None:
        frontend.run(ssh(f"mkdir -p {os.path.dirname(target)}"), env=AGENT)
        frontend.run(["md5sum", source])
        folder, name = os.path.split(source)
        command = f"ssh -oControlMaster=no {host.name} tar -xSf - -C {os.path.dirname(target)}"
        pipe = f"tar -C {folder} -cSf - {name} | {command}"
        frontend.run(["/bin/sh", "-c", pipe], env=AGENT, timeout=300)
        frontend.run(ssh(f"md5sum {os.path.dirname(target)}/{name}"), env=AGENT)

    def reset() -> None:
        host.run(["rm", "-rf", os.path.dirname(target)])
        host.run(["mkdir", "-p", os.path.dirname(target)])
        host.run(["sync", "-f", DATASTORES])

    yield against(
        "cold-clone", clone, "scp, sync, sha256sum", careful, limit=1.0, reset=reset, runs=3
    )
    yield against(
        "cold-clone", clone, "md5sum, tar | ssh tar, md5sum", plain, limit=None, reset=reset, runs=3
    )


BENCHMARKS: dict[str, Callable[[Testbed], Iterator[Figure]]] = {
    "startup": startup,
    "monitor-ds": monitor_ds,
    "cold-clone": cold_clone,
}
