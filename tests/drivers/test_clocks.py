"""A machine whose clock jumps: right bytes, the right entry evicted, no lock that ends early.

The machine's agents, or the drivers on the front-end, see another time than what was written down
before; the time stamps of files stay what they are, and nobody's waiting is any longer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from tests.drivers.conftest import (
    MEDIUM,
    QCOW2,
    cached_names,
    clone,
    companion,
    configure_system,
    digest,
    forget_log,
    lock_held,
    program_before,
    same_content,
    start_clone,
    transfers,
    warnings,
)
from tests.drivers.every_action import life
from tests.oned.objects import Image, Vm
from tests.sampling import sample
from tests.testbed import Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

NODES = ("fe", "host01", "host03")  # the front-end, the VM's host, the replica
HOUR, DAY = 3600, 86400
JUMPS = (HOUR, -DAY, 30 * DAY)


# faketime(1) does the same by libc, but there a sleep of Python's is no sleep any more.
PYTHON = """
change="import itertools, time
jumps, real = itertools.cycle($JUMPS), time.time_ns
time.time_ns = lambda: real() + next(jumps) * 10**9
time.time = lambda: time.time_ns() / 1e9"
if [ "$2" = -c ]; then
    exec /usr/bin/python3 "$1" -c "$change
$3"
fi
exec /usr/bin/python3 -c "$change
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')" "$@"
"""


@contextlib.contextmanager
def jumped(bed: Testbed, name: str, *seconds: int) -> Iterator[None]:
    """What is started on a machine from now on sees the time so much later or earlier.

    With several ``seconds`` each look at the clock finds the next of them, over and over.
    """
    (node,) = [node for node in bed.cluster.nodes if node.name == name]
    with program_before(node, "python3", PYTHON.replace("$JUMPS", str(seconds))):
        argv = ["python3", "-B", "-c", f"import time\nfor _ in {seconds}: print(time.time())"]
        for seen, jump in zip(node.run(argv).stdout.split(), seconds):
            assert abs(float(seen) - time.time() - jump) < 60, "the clock is another one"
        yield


def is_right(bed: Testbed, vm: Vm) -> bool:
    return digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, MEDIUM)


def names(*images: Image) -> set[str]:
    return {os.path.basename(image.source) for image in images}


@pytest.mark.parametrize(
    ("node", "jump"), sample([(node, jump) for node in NODES for jump in JUMPS], 1)
)
def test_a_clock_that_jumps(bed: Testbed, node: str, jump: int) -> None:
    host = bed.hosts[0]
    # Two of the three images find room.
    configure_system(bed, REPLICA_HOST="host03", HOST_CACHE_MAX_SIZE_MB="5")
    old, older, new = (bed.image(MEDIUM) for _ in range(3))
    first = [clone(bed, each, host) for each in (older, old)]
    assert cached_names(bed, host) == names(old, older)
    forget_log(bed)
    with jumped(bed, node, jump):
        first.append(clone(bed, old, host))
        assert transfers(bed) == [], "a hit"
        first.append(clone(bed, new, host))
        assert all(is_right(bed, vm) for vm in first)
        assert cached_names(bed, host) == names(old, new), "the least recently used one went"
        assert cached_names(bed, bed.hosts[2]) == names(old, older, new)
        assert bed.oned.terminate(first.pop()).success
    forget_log(bed)
    assert is_right(bed, clone(bed, new, host))
    assert transfers(bed) == [], "what was cached then is a hit now"
    thin = bed.image(QCOW2)
    vm = clone(bed, thin, bed.hosts[1])
    assert same_content(bed, bed.hosts[1], bed.disk_path(vm), "qcow2", QCOW2)
    assert warnings(bed) == []


def test_clocks_jump_within_every_action(bed: Testbed) -> None:
    """On all machines, at each look: a day ahead, a day back, and right."""
    with contextlib.ExitStack() as stack:
        for node in bed.cluster.nodes:
            stack.enter_context(jumped(bed, node.name, DAY, -DAY, 0))
        steps, tried = life(bed), []
        step = next(steps)
        with contextlib.suppress(StopIteration):
            while True:
                reply = step.call()
                assert reply.success, f"{step.action}: {reply.error}"
                bed.assert_at_rest()
                step.check()
                tried.append(step.action)
                step = steps.send(reply)
    assert len(tried) > 30 and warnings(bed) == []


def test_a_lock_does_not_end_early(bed: Testbed) -> None:
    """Whoever waits for it waits as long as is configured, whatever the time is meanwhile."""
    image, (host, *_) = bed.image(MEDIUM), bed.hosts
    bed.configure("REPLICA_COPY_LOCK_TIMEOUT=3\n")
    first = clone(bed, image, host)
    begin = time.monotonic()
    with jumped(bed, "host01", HOUR), lock_held(host, companion(image, "lock")):
        second = start_clone(bed, image, host)
        reply = second.wait()
    assert reply.success, reply.error
    assert time.monotonic() - begin > 3
    assert len(warnings(bed)) == 1, "it goes past the cache"
    assert is_right(bed, first) and is_right(bed, second.vm)
