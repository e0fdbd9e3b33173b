"""A disk that is full or fails, at whatever moment: what has a final name is whole, old or new.

The moments are found by trying: one more page of room, one more file, one more fsync at each turn,
until the operation goes through.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import OnestorError
from onestor_lib.agent.operations import OPERATIONS
from onestor_lib.frontend import openssh
from tests.sampling import EVERYWHERE, sample
from tests.tool.conftest import MB, TOO_LONG, Agents
from tests.tool.placing import RECEIVER, limits, place_image
from tests.tool.test_disk_snapshots import Disk
from tests.tool.writing import NOT_HERE, WRITINGS, Writing

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("payload")]

PAGE = 4096
AMPLE = 64 * MB


class Tiny:
    """A file system in memory, which can be made as full as one likes."""

    def __init__(self, point: Path) -> None:
        self.point = point

    def limit(self, *, room: int | None = None, files: int | None = None) -> None:
        """Leave ``room`` pages and so many ``files`` that can be made."""
        used = os.statvfs(self.point)
        size = AMPLE if room is None else (used.f_blocks - used.f_bfree + room) * PAGE
        inodes = 10_000 if files is None else used.f_files - used.f_ffree + files
        options = f"remount,size={size},nr_inodes={inodes}"
        subprocess.run(["mount", "-o", options, str(self.point)], check=True)

    def empty(self) -> Path:
        """A new directory, and nothing beside it but a page: of size 0 means without a limit."""
        self.limit()
        new = self.point / "root"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir()
        (self.point / "page").write_bytes(b"x")
        return new


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Tiny]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    point = tmp_path / "tiny"
    point.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "tmpfs", str(point)]
    subprocess.run(argv, check=True)
    try:
        yield Tiny(point)
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_each_operation_is_tried_or_has_a_reason() -> None:
    tried = {name for kind in WRITINGS for name in kind.operations}
    assert tried | set(NOT_HERE) == set(OPERATIONS)
    assert not tried & set(NOT_HERE)


def failure_of(writing: Writing, agent: AgentClient) -> OnestorError | None:
    """What the operation has failed with; each try has the time of a test."""
    signal.alarm(TOO_LONG)
    try:
        writing.run(agent)
    except OnestorError as error:
        return error
    return None


class Trial:
    """Tries an operation, anew each time, with little of what it needs."""

    def __init__(self, kind: type[Writing], tiny: Tiny, agents: Agents) -> None:
        self._kind, self._tiny, self._agents = kind, tiny, agents

    def passes(self, **limits: int) -> bool:
        """Whether it is done as if there were no limit; if not, all must be as after a failure."""
        writing = self._kind(self._tiny.empty(), self._agents, list(RECEIVER))
        with self._agents.start() as agent:
            self._tiny.limit(**limits)
            failure = failure_of(writing, agent)
        self._tiny.limit()
        if not failure:
            writing.assert_done()
            return writing.is_best()
        writing.assert_whole()
        assert "No space left" in str(failure), failure
        assert str(self._tiny.point) in str(failure), failure
        with self._agents.start() as agent:
            writing.run(agent)
        writing.assert_done()
        return False


def least(passes: Callable[[int], bool], most: int) -> int:
    """The least number that passes, found by halving; nearly so where a sample is enough."""
    low, high = -1, most
    while high - low > (1 if EVERYWHERE else 256):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


@pytest.mark.parametrize("kind", sample(WRITINGS, 5))
def test_C1_C8_no_room_at_any_write(kind: type[Writing], tiny: Tiny, agents: Agents) -> None:
    """Halving the room ends at the last writes; these, and some before, are tried."""
    trial = Trial(kind, tiny, agents)
    enough = least(lambda room: trial.passes(room=room), 4 * MB // PAGE)
    rooms = range(0, enough, 1 if EVERYWHERE else max(1, enough // 64))
    for room in sample(rooms, 1):
        trial.passes(room=room)
    assert enough > 0


@pytest.mark.parametrize("kind", sample(WRITINGS, 5))
def test_C1_no_room_for_any_new_file(kind: type[Writing], tiny: Tiny, agents: Agents) -> None:
    trial = Trial(kind, tiny, agents)
    for files in itertools.count(0, 1 if EVERYWHERE else 3):
        if trial.passes(files=files):
            break
    assert files > 0


def test_C1_making_room_needs_none(tiny: Tiny, agents: Agents) -> None:
    """On a disk without a free block a snapshot can be deleted, and the cache be emptied."""
    root = tiny.empty()
    disk = Disk(root, "raw")
    disk.create(9)
    placing = place_image(root / "cache").cached()
    with agents.start() as agent:
        placing.run(agent)
        for lock in root.rglob("*.lock"):
            lock.unlink()  # a new one would have to say who has it
        tiny.limit(room=0)
        disk.delete(9)
        tiny.limit(room=0)
        bounds = {**limits(), "max_bytes": 0}
        datastores = str(placing.root / "datastores")
        agent.call("cache.trim", root=datastores, limits=bounds, lock_timeout=5.0)
    assert not disk.snap.exists() and not placing.entry.exists()


@contextlib.contextmanager
def failing_syncs(number: int, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """In each thread of an agent, and each program, the fsync with this number fails.

    Gives the command line of a receiver of which that is true, too.
    """
    calls = "fsync,fdatasync"
    inject = f"inject={calls}:error=EIO:when={number}"
    tracer = ["strace", "-f", "-y", "--seccomp-bpf", "-qq", "-A", "-o", str(log)]
    tracer += ["-e", f"trace={calls}", "-e", inject]
    agent = openssh.local_agent_argv()
    with monkeypatch.context() as patch:
        patch.setattr(openssh, "local_agent_argv", lambda: [*tracer, *agent])
        yield [*tracer, *agent]


def is_of_manifests(log: str) -> bool:
    """Whether only the keeping of manifests has failed: without one an image is read once more."""
    before: dict[str, str] = {}  # by thread: a directory is flushed for what was written before
    for line in log.splitlines():
        if not (call := re.match(r"(\d+)\s+f(?:data)?sync\(\d+<([^>]*)>", line)):
            continue
        thread, path = call.groups()
        is_of_one = ".manifest" in path or ".manifest" in before.get(thread, "")
        if "(INJECTED)" in line and not is_of_one:
            return False
        before[thread] = path
    return True


# Shifted, so that on one day it is not the same ones that have no room for files.
@pytest.mark.parametrize("kind", sample(WRITINGS[1:] + WRITINGS[:1], 4))
def test_C8_a_disk_that_fails_at_any_fsync(
    kind: type[Writing], tmp_path: Path, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    for number in itertools.count(1) if EVERYWHERE else (1, 4):
        root = tmp_path / str(number) / "root"
        root.mkdir(parents=True)
        log.write_text("")
        receiver = list(RECEIVER)
        writing = kind(root, agents, receiver)
        with failing_syncs(number, log, monkeypatch) as traced, agents.start() as agent:
            receiver[:] = traced
            failure = failure_of(writing, agent)
        receiver[:] = RECEIVER
        reached = "(INJECTED)" in log.read_text()
        if failure:
            assert reached, failure
            assert str(root) in str(failure), failure
            writing.assert_whole()
        else:
            told = str(root) in agents.logged.getvalue()  # a warning: it was done another way
            missed = reached and not told and not is_of_manifests(log.read_text())
            assert not missed, f"nobody was told of the failure of fsync {number}"
        if failure or not writing.is_best():  # the next one takes up what a fill has left
            with agents.start() as agent:
                writing.run(agent)
        writing.assert_done()
        if not reached:
            break
    assert number > 1
