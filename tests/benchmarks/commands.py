"""What people wait for: filling the caches of many hosts, and the doctor."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.cloning import make_image
from tests.benchmarks.measure import Figure, against, within
from tests.hypervisor import Kvm
from tests.testbed import AGENT, Testbed, running_testbed

_HOSTS, _LINK, _SIZE = 8, 100, 32  # Mbit/s of each machine's link, MB of the image


def cache_warm(narrow: Testbed) -> Iterator[Figure]:
    """One `onestor cache warm` for eight hosts, against eight for one host each."""
    with running_testbed(hosts=_HOSTS) as bed:
        image = make_image(bed, _SIZE, f"{_SIZE}M")
        names = [node.name for node in bed.hosts]
        for node in bed.cluster.nodes:
            node.limit_rate(_LINK)

        def warm(*hosts: str) -> None:
            argv = ["onestor", "cache", "warm", str(image.id), "--hosts", ",".join(hosts)]
            bed.frontend.run(argv, env=AGENT, timeout=300)

        def one_after_the_other() -> None:
            for name in names:
                warm(name)

        def chill() -> None:
            argv = ["onestor", "cache", "drop", str(image.id)]
            assert bed.frontend.run(argv, env=AGENT).stdout.count("yes") in (0, _HOSTS)

        yield against(
            "cache-warm",
            lambda: warm(*names),
            "one host after the other",
            one_after_the_other,
            limit=1 / 3,
            reset=chill,
            runs=3,
        )


def doctor(narrow: Testbed) -> Iterator[Figure]:
    """`onestor doctor` for five hosts, each of which is asked to get to each."""
    with running_testbed(hosts=5) as bed:
        Kvm(bed.frontend, {node.name: node for node in bed.hosts}).start()

        def examine() -> None:
            done = bed.frontend.run(["onestor", "doctor", "--all"], env=AGENT, check=False)
            assert done.stdout.count("gets to 5 of 5 hosts") == 5, done.stdout

        yield within("doctor", examine, 5.0)
