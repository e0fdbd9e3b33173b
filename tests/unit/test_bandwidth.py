"""agent.bandwidth: several senders on one clock that the test moves."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from onestor_lib.agent.bandwidth import Limit, datastores_of

MB = 1 << 20
NS = 1_000_000_000
START = 5000 * NS


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = START
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1.0, "signs of life are due once a second"
        self.slept.append(seconds)
        self.now += round(seconds * NS)

    @property
    def passed(self) -> float:
        return (self.now - START) / NS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.monotonic_ns", lambda: made.now)
    monkeypatch.setattr("time.sleep", made.sleep)
    return made


def nothing() -> None:
    pass


def state(directory: Path) -> Path:
    (found,) = directory.glob(".onestor-link-*")
    return found


@pytest.mark.parametrize("senders", [1, 3, 10])
def test_K9_all_senders_of_a_link_together_keep_the_rate(
    tmp_path: Path, clock: Clock, senders: int
) -> None:
    """Each is an object of its own, as in a process of its own: they share the file only."""
    limits = [Limit("h1", 10 * MB, tmp_path) for _ in range(senders)]
    for turn in range(300):
        limits[turn % senders].wait(MB, nothing)
    assert 0.9 * 30 <= clock.passed <= 1.1 * 30


def test_K9_none_starves(tmp_path: Path, clock: Clock) -> None:
    """Whoever has reserved first is served first, however much the others want."""
    first, second = (Limit("h1", 10 * MB, tmp_path) for _ in range(2))
    turns = [each._reserve(NS // 10) for each in (first, second) * 50]
    assert turns == sorted(turns)
    assert turns[-1] - turns[0] == pytest.approx(99 * NS // 10)


def test_other_links_have_their_own_rate(tmp_path: Path, clock: Clock) -> None:
    for _ in range(100):
        Limit("h1", 10 * MB, tmp_path).wait(MB, nothing)
    before = clock.passed
    Limit("h2", 10 * MB, tmp_path).wait(MB, nothing)
    assert clock.passed == before


def test_only_a_little_of_what_was_not_used_may_be_caught_up_with(
    tmp_path: Path, clock: Clock
) -> None:
    limit = Limit("h1", 10 * MB, tmp_path)
    limit.wait(MB, nothing)
    clock.now += 3600 * NS
    begin = clock.passed
    for _ in range(20):
        limit.wait(MB, nothing)
    assert clock.passed - begin >= 20 / 10 - 1 / 10 - 0.06, "the first turn and the burst are free"


def test_signs_of_life_while_it_waits(tmp_path: Path, clock: Clock) -> None:
    limit, paused = Limit("h1", MB, tmp_path), []
    limit.wait(5 * MB, nothing)
    limit.wait(1, lambda: paused.append(clock.passed))
    assert len(paused) >= 5
    assert max(after - before for before, after in zip([0.0, *paused], paused)) <= 1.0


def test_a_clock_that_has_started_anew(tmp_path: Path, clock: Clock) -> None:
    """After a boot the file may speak of a moment that is weeks away."""
    limit = Limit("h1", 10 * MB, tmp_path)
    limit.wait(MB, nothing)
    state(tmp_path).write_bytes(struct.pack(">Q", START + 10**6 * NS))
    limit.wait(MB, nothing)
    assert clock.passed < 1
    for _ in range(100):
        limit.wait(MB, nothing)
    assert clock.passed > 9, "and the rate is kept from then on"


@pytest.mark.parametrize("content", [b"", b"x", b"1234567", b"\0" * 8, b"\xff" * 8, b"\xff" * 99])
def test_a_damaged_state_neither_stops_nor_frees_the_link(
    tmp_path: Path, clock: Clock, content: bytes
) -> None:
    limit = Limit("h1", 10 * MB, tmp_path)
    limit.wait(1, nothing)
    state(tmp_path).write_bytes(content)
    for _ in range(100):
        limit.wait(MB, nothing)
    assert 9 <= clock.passed <= 11


def test_the_file_lies_with_the_datastores_for_us_alone(tmp_path: Path, clock: Clock) -> None:
    Limit("../../h1\n", MB, tmp_path).wait(1, nothing)
    assert os.listdir(tmp_path) == [state(tmp_path).name], "whatever the receiver is called"
    assert state(tmp_path).stat().st_mode & 0o777 == 0o600


def test_J12_a_planted_link_is_not_followed(tmp_path: Path, clock: Clock) -> None:
    limit = Limit("h1", MB, tmp_path)
    limit.wait(1, nothing)
    (tmp_path / "victim").write_text("untouched")
    path = state(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        limit.wait(1, nothing)
    assert (tmp_path / "victim").read_text() == "untouched"


def test_K8_somebody_who_keeps_the_file_locked_does_not_stop_the_link(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held for microseconds otherwise: a transfer must not hang on a stopped process."""
    monkeypatch.setattr("time.monotonic", lambda: clock.now / NS)
    limit = Limit("h1", MB, tmp_path)
    limit.wait(1, nothing)
    fd = os.open(state(tmp_path), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        limit.wait(1, nothing)
    finally:
        os.close(fd)
    assert 4 < clock.passed < 7


@pytest.mark.parametrize(
    ("file", "directory"),
    [
        ("/ds/101/image", "/ds"),
        ("/ds/101/image.snap/3", "/ds"),
        ("/ds/102/7/disk.0", "/ds"),
        ("/ds/102/7/disk.0.snap/123", "/ds"),
        ("/2024/ds/102/7/.disk.0.x.tmp", "/2024/ds"),
        ("/tmp/context/iso", "/tmp/context"),
    ],
)
def test_all_files_of_a_machine_share_its_links(file: str, directory: str) -> None:
    assert datastores_of(Path(file)) == Path(directory)
