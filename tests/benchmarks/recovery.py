"""Recovery copies: what a second one sends, and a pass over disks that nobody writes to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests import guest
from tests.benchmarks.cloning import MB, Clone, crossing, make_image
from tests.benchmarks.measure import Figure, within
from tests.cluster import Node
from tests.drivers.conftest import CALL_ENVIRONMENT
from tests.hypervisor import Kvm
from tests.oned import objects
from tests.oned.objects import Vm
from tests.testbed import Testbed

_IDLE, _VMS = 50, 10  # disks that are not written to, and their VMs


def recovery_pass(bed: Testbed) -> Iterator[Figure]:
    """A disk of 20 GiB, 50 MiB written, then 10 MiB more; then 50 idle disks on two hosts."""
    bed.system.template["REPLICA_HOST"] = "host03"
    bed.cloud.save(bed.system)
    hosts = bed.hosts[:2]
    kvm = Kvm(bed.frontend, {node.name: node for node in hosts})
    kvm.start()
    replica = bed.hosts[2]
    with contextlib.ExitStack() as stack:
        vm, clone = _vm(bed, kvm, stack, hosts[0], "20G")
        _write(clone, 100, 50)
        kvm.deploy(vm)
        _run(bed)
        kvm.shutdown(vm, "host01")
        _write(clone, 60, 10)  # before what was written first
        kvm.deploy(vm)
        before = replica.bytes_received()
        _run(bed)
        received = (replica.bytes_received() - before) / MB
        assert received > 10, "it has not been copied"
        yield crossing("recovery-pass", received, "limit for 10 MB written", 30.0, limit=1.0)
        kvm.shutdown(vm, "host01")
        bed.cloud.set_state(vm, objects.POWEROFF)
        image = make_image(bed, 1, "64M")
        for number in range(_VMS):
            disks = [bed.cloud.image_disk(image) for _ in range(_IDLE // _VMS)]
            for disk in disks:
                disk.attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
            idle = bed.cloud.add_vm(disks=disks)
            host = hosts[number % 2]
            reply = bed.oned.instantiate(idle, host.name, bed.system)
            assert reply.success, reply.error
            kvm.deploy(idle)
            stack.callback(kvm.shutdown, idle, host.name)
        _run(bed)
        yield within("recovery-pass", lambda: _run(bed), 10.0)


def _vm(
    bed: Testbed, kvm: Kvm, stack: contextlib.ExitStack, host: Node, virtual: str
) -> tuple[Vm, Clone]:
    clone = Clone.of(bed, make_image(bed, 64, virtual), host)
    clone.vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "1"
    bed.cloud.save(clone.vm)
    clone.run()
    bed.cloud.set_state(clone.vm, objects.ACTIVE, objects.RUNNING)
    host.run(["sh", "-c", "cat > /var/tmp/boot"], input=guest.boot_sector())
    return clone.vm, clone


def _write(clone: Clone, offset: int, megabytes: int) -> None:
    write = f"write -P {offset} {offset}M {megabytes}M"
    clone.host.run(["qemu-io", "-f", "qcow2", "-c", write, clone.target])


def _run(bed: Testbed) -> None:
    argv = ["/usr/bin/python3", "-m", "onestor_lib.frontend.commands.onestor", "recovery", "run"]
    done = bed.frontend.run(argv, env=CALL_ENVIRONMENT, timeout=300)
    assert "0 failed" in done.stderr, done.stderr
