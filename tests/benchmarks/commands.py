"""What people wait for: filling the caches of many hosts, and the doctor."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.cloning import make_image, slow_links
from tests.benchmarks.measure import Figure, Yardstick, against, within
from tests.testbed import AGENT, Testbed

_LINK, _SIZE = 100, 24  # Mbit/s of each machine's link, MB of the image


def cache_warm(bed: Testbed) -> Iterator[Figure]:
    """One `onestor cache warm` for all hosts, against one for each, of which one is run."""
    image = make_image(bed, _SIZE, f"{_SIZE}M")
    names = [node.name for node in bed.hosts]

    def warm(*hosts: str) -> None:
        argv = ["onestor", "cache", "warm", str(image.id), "--hosts", ",".join(hosts)]
        bed.frontend.run(argv, env=AGENT, timeout=300)

    def chill() -> None:
        argv = ["onestor", "cache", "drop", str(image.id)]
        assert bed.frontend.run(argv, env=AGENT).stdout.count("yes") in (0, 1, len(names))

    one = Yardstick(
        f"{len(names)} times that of one host", lambda: warm(names[0]), 1 / 3, times=len(names)
    )
    with slow_links(bed.cluster.nodes, _LINK):
        yield from against("cache-warm", lambda: warm(*names), one, reset=chill)


def doctor(bed: Testbed) -> Iterator[Figure]:
    """`onestor doctor` for five hosts, each of which is asked to get to each."""

    def examine() -> None:
        done = bed.frontend.run(["onestor", "doctor", "--all"], env=AGENT, check=False)
        assert done.stdout.count("gets to 5 of 5 hosts") == 5, done.stdout

    yield within("doctor", examine, 5.0)
