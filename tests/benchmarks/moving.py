"""A VM's directory on its way to another host."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.cloning import SMALL, Clone, crossing, make_image, megabytes_to, ssh
from tests.benchmarks.measure import Figure, Yardstick, against
from tests.oned import objects, transfer
from tests.testbed import AGENT, Testbed

_WRITTEN = 50  # MB, since the clone


def mv_thin(bed: Testbed) -> Iterator[Figure]:
    """A disk of 20 GiB on a base that the target has, with 50 MiB written since the clone.

    Against one fresh ssh and one scp of the overlay; and what crosses the link against what the
    guest wrote.
    """
    one, two = bed.hosts[:2]
    clone = Clone.of(bed, make_image(bed, SMALL, "20G"), one)
    clone.run()
    other = Clone.of(bed, bed.cloud.images[clone.vm.disks[0].image_id or 0], two)
    other.run()  # the target has the base
    write = f"write -P 7 100M {_WRITTEN}M"
    one.run(["qemu-io", "-f", "qcow2", "-c", write, clone.target])
    bed.cloud.set_state(clone.vm, objects.ACTIVE, objects.PROLOG_MIGRATE)

    def move(source: str, target: str) -> None:
        reply = bed.oned.transfer_mad.run_script(transfer.move(clone.vm, source, target))
        assert reply.success, reply.error

    received = []

    def there() -> None:
        received.append(megabytes_to([two], lambda: move("host01", "host02")))

    def back() -> None:
        if two.exists(clone.target):
            move("host02", "host01")

    def by_hand() -> None:
        ssh(bed, two, "true")
        argv = ["scp", "-q", "-oControlMaster=no", clone.target, f"{two.name}:/var/tmp/overlay"]
        command = ["ssh", "-A", "-oControlMaster=no", one.name, " ".join(argv)]
        bed.frontend.run(command, env=AGENT, timeout=300)

    yardstick = Yardstick("one fresh ssh, and scp of the overlay", by_hand, 4.0)
    yield from against("mv-thin", there, yardstick, reset=back, budget=1.5)
    yield crossing("mv-thin", received, "what the guest wrote", [float(_WRITTEN)], limit=1.1)
