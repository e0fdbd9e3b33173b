"""agent.locks between real processes; pipes tell when one has got somewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.errors import LockTimeout
from tests.tool.conftest import ROOT

HOLDER = """
import sys
from pathlib import Path
from onestor_lib.agent import locks
lock, purpose, step_by_step = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
flock, sleep = locks.fcntl.flock, locks.time.sleep

def flock_when_told(fd, how):
    print("opened", flush=True)
    sys.stdin.readline()
    flock(fd, how)

def sleep_and_tell(seconds):
    print("waiting", flush=True)
    locks.time.sleep = sleep
    sleep(seconds)

if step_by_step:
    locks.fcntl.flock = flock_when_told
else:
    locks.time.sleep = sleep_and_tell
try:
    with locks.exclusive(lock, purpose=purpose, timeout=20):
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
"""


class Holder:
    """A process that takes a lock and holds it until it is told."""

    def __init__(self, lock: Path, purpose: str, step_by_step: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock), purpose, str(step_by_step)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    started: list[Holder] = []
    yield started
    for holder in started:
        holder.end()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "7").mkdir()
    return tmp_path / "7" / ".disk.0.lock"


def start(
    holders: list[Holder], lock: Path, purpose: str = "clone", *, step_by_step: bool = False
) -> Holder:
    holders.append(Holder(lock, purpose, step_by_step))
    return holders[-1]


def take(lock: Path, timeout: float = 0.1) -> None:
    with locks.exclusive(lock, purpose="test", timeout=timeout):
        pass


def assert_held(lock: Path, by: Holder) -> None:
    with pytest.raises(LockTimeout, match=f"pid {by.process.pid}, "):
        take(lock, timeout=0)


def test_a_second_holder_waits_for_the_first(holders: list[Holder], lock: Path) -> None:
    first = start(holders, lock)
    assert first.says() == "held"
    second = start(holders, lock)
    assert second.says() == "waiting"
    assert_held(lock, by=first)
    first.go_on()
    assert first.says() == "released"
    assert second.says() == "held"
    assert_held(lock, by=second)


def test_the_deadline_names_the_holder(holders: list[Holder], lock: Path) -> None:
    first = start(holders, lock, "clone of image 42")
    assert first.says() == "held"
    expected = rf"pid {first.process.pid}, clone of image 42 for \d+ s after 0 s"
    with pytest.raises(LockTimeout, match=expected):
        take(lock)


def test_A6_a_lock_dies_with_its_process(holders: list[Holder], lock: Path) -> None:
    first = start(holders, lock)
    assert first.says() == "held"
    second = start(holders, lock)
    assert second.says() == "waiting"
    os.kill(first.process.pid, signal.SIGKILL)
    assert second.says() == "held"
    assert lock.exists()


def test_a_directory_removed_under_the_waiter(holders: list[Holder], lock: Path) -> None:
    first = start(holders, lock)
    assert first.says() == "held"
    second = start(holders, lock)
    assert second.says() == "waiting"
    lock.parent.rename(lock.parent.with_name("trash"))  # as a delete does
    assert second.says() == "FileNotFoundError"


def test_B11_never_two_holders_of_a_directory_made_anew(holders: list[Holder], lock: Path) -> None:
    """A waiter that has the file of the old directory open must not take that for the lock."""
    first = start(holders, lock)
    assert first.says() == "held"
    second = start(holders, lock, step_by_step=True)
    assert second.says() == "opened"
    lock.parent.rename(lock.parent.with_name("trash"))
    lock.parent.mkdir()
    first.go_on()
    assert first.says() == "released"
    second.go_on()
    assert second.says() == "opened", "once more, by its name"
    second.go_on()
    assert second.says() == "held"
    assert_held(lock, by=second)


def test_B11_one_at_a_time_through_many_rounds(holders: list[Holder], lock: Path) -> None:
    """Every round creates a file that must not be there, and removes it."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom onestor_lib.agent import locks\n"
        "lock = Path(sys.argv[1])\n"
        "locks._PAUSE = 0.0005\n"
        "for _ in range(100):\n"
        "    with locks.exclusive(lock, purpose='x', timeout=20):\n"
        "        os.close(os.open(lock.with_name('inside'), os.O_CREAT | os.O_EXCL))\n"
        "        lock.with_name('inside').unlink()\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(lock)], cwd=ROOT) for _ in range(4)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert os.listdir(lock.parent) == [lock.name]
