"""Recovery copies: what a second one sends, and a pass over disks that nobody writes to."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator

from tests.benchmarks.cloning import SMALL, Clone, at_once, crossing, make_image, megabytes_to
from tests.benchmarks.measure import RUNS, Figure, within
from tests.cluster import Node
from tests.hypervisor import Kvm
from tests.oned import objects
from tests.oned.objects import Image, Vm
from tests.testbed import AGENT, Testbed

_IDLE, _VMS = 50, 10  # disks that are not written to, and their VMs


def recovery_pass(bed: Testbed) -> Iterator[Figure]:
    """A disk of 20 GiB, 50 MiB written, then 10 MiB more at a time; then 50 idle disks."""
    bed.system.template["REPLICA_HOST"] = "host03"
    bed.cloud.save(bed.system)
    hosts = bed.hosts[:2]
    kvm = Kvm(bed.frontend, {node.name: node for node in hosts})
    replica = bed.hosts[2]
    with contextlib.ExitStack() as stack:
        clone = _running(bed, hosts[0], "20G")
        vm = clone.vm
        _write(clone, 100, 50)
        kvm.deploy(vm)
        _run(bed)
        received = []
        for number in range(RUNS):
            kvm.shutdown(vm, "host01")
            _write(clone, 90 - 10 * number, 10)  # before what was written first
            kvm.deploy(vm)
            received.append(megabytes_to([replica], lambda: _run(bed)))
        assert min(received) > 10, "it has not been copied"
        yield crossing("recovery-pass", received, "limit for 10 MB written", [30.0], limit=1.0)
        kvm.shutdown(vm, "host01")
        bed.cloud.set_state(vm, objects.POWEROFF)
        image = make_image(bed, 1, "64M")
        idle = [_idle(bed, image) for _ in range(_VMS)]

        def start(vm: Vm, host: str) -> None:
            reply = bed.oned.instantiate(vm, host, bed.system)
            assert reply.success, reply.error
            kvm.deploy(vm)
            stack.callback(kvm.shutdown, vm, host)

        names = itertools.cycle(host.name for host in hosts)
        at_once([functools.partial(start, vm, host) for vm, host in zip(idle, names)])
        _run(bed)
        yield within("recovery-pass", lambda: _run(bed), 10.0, reset=_become_due)


def _idle(bed: Testbed, image: Image) -> Vm:
    """A VM that is to be copied again and again, of as many disks as each of these has."""
    disks = [bed.cloud.image_disk(image) for _ in range(_IDLE // _VMS)]
    for disk in disks:
        disk.attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    return bed.cloud.add_vm(disks=disks)


def _become_due() -> None:
    """All disks ask for a copy each second."""
    time.sleep(1.1)


def _running(bed: Testbed, host: Node, virtual: str) -> Clone:
    clone = Clone.of(bed, make_image(bed, SMALL, virtual), host)
    clone.vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    bed.cloud.save(clone.vm)
    clone.run()
    bed.cloud.set_state(clone.vm, objects.ACTIVE, objects.RUNNING)
    return clone


def _write(clone: Clone, offset: int, megabytes: int) -> None:
    write = f"write -P {offset} {offset}M {megabytes}M"
    clone.host.run(["qemu-io", "-f", "qcow2", "-c", write, clone.target])


def _run(bed: Testbed) -> None:
    done = bed.frontend.run(["onestor", "recovery", "run"], env=AGENT, timeout=300)
    assert "0 failed" in done.stderr, done.stderr
