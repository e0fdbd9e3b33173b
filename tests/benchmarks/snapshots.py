"""Snapshots of the disk of a VM, which runs or does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests import guest
from tests.benchmarks.cloning import MB, SMALL, Clone, crossing, make_image, ssh
from tests.benchmarks.measure import RUNS, Figure, Yardstick, against
from tests.hypervisor import Kvm
from tests.oned import objects, transfer
from tests.testbed import Testbed

_WRITTEN = 50  # MB, since the clone
_ROOM = 60  # MB that one may take
_BY_HAND = "one fresh ssh HOST cp of the overlay"


def snapshot_cold(bed: Testbed) -> Iterator[Figure]:
    """Of a disk of 20 GiB with 50 MiB written, and back; against one fresh ssh HOST cp of that."""
    clone = written(bed)
    bed.cloud.set_state(clone.vm, objects.POWEROFF)
    create, remove, by_hand = works(clone, "SNAP_CREATE")
    yardstick = Yardstick(_BY_HAND, by_hand, 2.5)
    yield from against("snapshot-cold", create, yardstick, reset=remove, budget=0.5)
    reset, revert = create_once(clone, create, remove), action(clone, "SNAP_REVERT")
    yield from against("revert", revert, yardstick, reset=reset)
    yield room(clone, create, remove, "snapshot-cold")


def snapshot_live(bed: Testbed) -> Iterator[Figure]:
    """The same while the VM runs and writes."""
    host = bed.hosts[0]
    kvm = Kvm(bed.frontend, {host.name: host})
    clone = written(bed)
    host.run(["sh", "-c", "cat > /var/tmp/boot"], input=guest.boot_sector())
    boot, ring = "write -s /var/tmp/boot 0 512", "write -z 1M 1M"
    host.run(["qemu-io", "-f", "qcow2", "-c", boot, "-c", ring, clone.target])
    bed.cloud.set_state(clone.vm, objects.ACTIVE, objects.RUNNING)
    kvm.deploy(clone.vm)
    kvm.guest_at_work(clone.vm, host.name)
    create, remove, by_hand = works(clone, "SNAP_CREATE_LIVE")
    with contextlib.ExitStack() as stack:
        stack.callback(kvm.shutdown, clone.vm, host.name)
        yardstick = Yardstick(_BY_HAND, by_hand, 4.0)
        yield from against("snapshot-live", create, yardstick, reset=remove, budget=1.0)
        yield room(clone, create, remove, "snapshot-live")


def written(bed: Testbed) -> Clone:
    clone = Clone.of(bed, make_image(bed, SMALL, "20G"), bed.hosts[0])
    clone.run()
    write = f"write -P 7 100M {_WRITTEN}M"
    clone.host.run(["qemu-io", "-f", "qcow2", "-c", write, clone.target])
    clone.host.run(["sync"])
    return clone


def action(clone: Clone, name: str) -> Callable[[], None]:
    line = transfer.snapshot(clone.vm, clone.vm.disks[0], name, 0)
    mad = clone.bed.oned.vmm if name.endswith("_LIVE") else clone.bed.oned.transfer_mad

    def run() -> None:
        reply = mad.run_line(line)
        assert reply.success, reply.error

    return run


def works(
    clone: Clone, name: str
) -> tuple[Callable[[], None], Callable[[], object], Callable[[], None]]:
    """Creating a snapshot, removing it and the copy, and the copy by hand."""
    copy = f"{clone.target}.copy"

    def remove() -> object:
        clone.host.run(["rm", "-rf", f"{clone.target}.snap", copy])
        return clone.host.run(["sync"])

    return (
        action(clone, name),
        remove,
        lambda: ssh(clone.bed, clone.host, f"cp {clone.target} {copy}"),
    )


def create_once(
    clone: Clone, create: Callable[[], None], remove: Callable[[], object]
) -> Callable[[], object]:
    def reset() -> object:
        if not clone.host.exists(f"{clone.target}.snap/0"):
            create()
        return clone.host.run(["sync"])

    remove()
    return reset


def room(
    clone: Clone, create: Callable[[], None], remove: Callable[[], object], name: str
) -> Figure:
    """What one takes on the disk."""
    taken = []
    for _ in range(RUNS):
        remove()
        create()
        taken.append(clone.host.path(f"{clone.target}.snap/0").stat().st_blocks * 512 / MB)
    return crossing(name, taken, "room for one", [float(_ROOM)], limit=1.0)
