"""agent.locks: within one process; waiting and dying holders are in tests/tool."""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.errors import LockTimeout


def take(lock: Path, timeout: float = 0.1) -> None:
    with locks.exclusive(lock, purpose="test", timeout=timeout):
        pass


def test_the_holder_is_named_at_the_deadline(tmp_path: Path) -> None:
    lock = tmp_path / ".disk.0.lock"
    with locks.exclusive(lock, purpose="clone of image 42", timeout=1):
        begin = time.monotonic()
        held = (
            rf"still held by {socket.gethostname()} pid {os.getpid()}, clone of image 42 for \d+ s"
        )
        with pytest.raises(LockTimeout, match=held) as refusal:
            take(lock, timeout=0.2)
        assert 0.2 <= time.monotonic() - begin < 2
        assert refusal.value.path == str(lock)
        assert "clone of image 42" in locks.holder(lock), "who merely tries leaves the note"


def test_B11_lock_files_stay(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    inodes = set()
    for _ in range(3):
        with pytest.raises(ValueError), locks.exclusive(lock, purpose="x", timeout=0.1):
            raise ValueError
        inodes.add(lock.stat().st_ino)
    assert len(inodes) == 1


def test_the_note_is_replaced_whole(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for purpose in ("a long purpose " * 5, "x"):
        with locks.exclusive(lock, purpose=purpose, timeout=0.1):
            assert re.fullmatch(rf".* pid \d+, {purpose} since \d+\n", lock.read_text())


@pytest.mark.parametrize("room", [0, 20, len(f"{socket.gethostname()} pid 1, fill since 17")])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_C8_on_a_full_disk_a_lock_is_taken_without_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, number: int
) -> None:
    """Nothing of it, for a time that was cut would be read as another one."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if not room:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:room], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    lock = tmp_path / "lock"
    with locks.exclusive(lock, purpose="fill", timeout=0.1):
        assert lock.read_bytes() == b""
        assert locks.holder(lock) == "an unknown process"


def test_C8_a_lock_whose_disk_fails_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", pwrite)
    lock = tmp_path / "lock"
    with pytest.raises(OSError, match="Input/output error"):
        take(lock)
    assert not locks.is_held(lock)


def test_J12_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        take(tmp_path / "lock")
    assert target.read_text() == "untouched"


def test_a_missing_directory_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "gone" / "lock", timeout=9)


@pytest.mark.parametrize("note", [None, "", "garbage", "x since yesterday", "\xff"])
def test_an_unreadable_note_is_an_unknown_process(tmp_path: Path, note: str | None) -> None:
    lock = tmp_path / "lock"
    if note is not None:
        lock.write_text(note, encoding="latin-1")
    assert locks.holder(lock) == "an unknown process"


def test_the_note_of_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """An image may be asked for its holder, too (`become_writer`)."""
    image = tmp_path / "part"
    image.write_bytes(b"")
    os.truncate(image, 512 << 20)
    tracemalloc.start()
    try:
        assert locks.holder(image) == "an unknown process"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("lock", ["directory", "link"])
def test_B12_a_lock_that_cannot_be_opened_is_not_ours_to_take(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "lock"
    path.mkdir() if lock == "directory" else path.symlink_to(tmp_path / "elsewhere")
    with locks.exclusive_now(path, purpose="evict") as free:
        assert free is False


def test_A5_the_progress_of_others_is_passed_on(tmp_path: Path, clock: Clock) -> None:
    """Once for each sign of the holder, and not for the mere waiting."""
    lock, told = tmp_path / "lock", []
    with locks.exclusive(lock, purpose="fill", timeout=1):
        stamps = iter(range(1, 4))

        def work() -> None:
            if stamp := next(stamps, None):
                os.utime(lock, ns=(0, stamp))

        clock.each = work
        for take_it in (locks.exclusive, locks.shared):
            with (
                pytest.raises(LockTimeout),
                take_it(lock, purpose="x", timeout=10, on_progress=lambda: told.append(clock.now)),
            ):
                pass
    assert len(told) == 3


def test_A5_one_reader_more_is_no_progress(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locks.shared(lock, purpose="read", timeout=0):
        os.utime(lock, ns=(1, 1))
        with locks.shared(lock, purpose="read", timeout=0):
            assert lock.stat().st_mtime_ns == 1


def test_A5_work_without_bytes_tells_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no longer than it does: a copy of the older version, or its flushing."""
    monkeypatch.setattr(locks, "_TICK", 0.001)
    lock = tmp_path / "lock"
    with locks.exclusive(lock, purpose="fill", timeout=1) as held:
        for _ in range(2):
            os.utime(lock, ns=(1, 1))
            with held.working():
                deadline = time.monotonic() + 10
                while lock.stat().st_mtime_ns == 1:
                    assert time.monotonic() < deadline
        before = threading.active_count()
        with held.working():
            assert threading.active_count() == before + 1
        assert threading.active_count() == before


class Clock:
    """Time that passes only while a waiter sleeps; `each` is called at every pause."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.each: Callable[[], None] = lambda: None
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_A5_progress_of_the_holder_extends_the_waiting(tmp_path: Path, clock: Clock) -> None:
    """A waiter with 10 s of patience waits for work of 100 s that goes on."""
    with locks.exclusive(tmp_path / "lock", purpose="fill", timeout=1) as held:
        stamps = iter(range(1, 10**6))

        def work() -> None:
            if clock.now < 1100:
                held.progress()
                os.utime(tmp_path / "lock", ns=(0, next(stamps)))  # the clock of files is coarse

        clock.each = work
        with pytest.raises(LockTimeout, match="after 10 s"):
            take(tmp_path / "lock", timeout=10)
    assert 1109 < clock.now < 1112, "and no longer than that once it stands still"


def test_A5_progress_is_seen_in_the_time_of_the_file(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locks.exclusive(lock, purpose="fill", timeout=1) as held:
        os.utime(lock, ns=(1, 1))
        held.progress()
        assert lock.stat().st_mtime_ns > 1


def test_K8_a_holder_that_stands_still_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    lock = tmp_path / "lock"
    with locks.exclusive(lock, purpose="fill", timeout=1), pytest.raises(LockTimeout):
        take(lock, timeout=10)
    assert 1010 <= clock.now < 1011


def test_readers_share_and_writers_wait(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    share = functools.partial(locks.shared, lock, purpose="read", timeout=0)
    with share(), share(), pytest.raises(LockTimeout, match=r"still held by .*, read for"):
        take(lock, timeout=0)
    with locks.exclusive(lock, purpose="fill", timeout=0), pytest.raises(LockTimeout), share():
        pass


def test_a_holder_may_let_others_share(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locks.exclusive(lock, purpose="fill", timeout=0) as held:
        held.share(1)
        with locks.shared(lock, purpose="read", timeout=0):
            assert not locks.is_held(lock)
        with pytest.raises(LockTimeout):
            take(lock, timeout=0)
    take(lock, timeout=0)


def test_B4_exclusive_now_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    for how, free in ((locks.exclusive, False), (locks.shared, False)):
        with how(lock, purpose="x", timeout=0), locks.exclusive_now(lock, purpose="evict") as got:
            assert got is free
    with locks.exclusive_now(lock, purpose="evict") as got:
        assert got is True
        assert locks.is_held(lock)
    assert not locks.is_held(lock)


def test_exclusive_now_hands_on_what_the_block_raises(tmp_path: Path) -> None:
    """A LockTimeout from inside is not one of its own."""
    lock = tmp_path / "lock"
    evicting = locks.exclusive_now(lock, purpose="evict")
    with pytest.raises(LockTimeout, match="from inside"), evicting as got:
        assert got
        raise LockTimeout("from inside", "x")
    take(lock, timeout=0)


def test_B10_is_held_tells_of_exclusive_holders_only_and_changes_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not locks.is_held(lock)
    assert not lock.exists(), "asking makes no file"
    with locks.shared(lock, purpose="read", timeout=0):
        assert not locks.is_held(lock)
    with locks.exclusive(lock, purpose="fill", timeout=0):
        assert locks.is_held(lock)
        assert "fill" in locks.holder(lock)


class TestBecomeWriter:
    @pytest.fixture
    def part(self, tmp_path: Path) -> Iterator[tuple[int, Path]]:
        path = tmp_path / "part"
        path.write_bytes(b"")
        fd = os.open(path, os.O_RDWR)
        yield fd, path
        os.close(fd)

    def test_one_at_a_time(self, part: tuple[int, Path]) -> None:
        fd, path = part
        locks.become_writer(fd, path, 0)
        other = os.open(path, os.O_RDWR)
        try:
            cause = f"write {path}: an earlier transfer has not ended after 0 s"
            with pytest.raises(LockTimeout, match=f"^{cause}$"):
                locks.become_writer(other, path, 0)
            assert path.read_bytes() == b"", "nothing is noted in somebody's image"
        finally:
            os.close(other)

    @pytest.mark.parametrize("how", ["renamed", "replaced", "removed"])
    def test_A6_who_comes_late_finds_no_file(self, part: tuple[int, Path], how: str) -> None:
        """The next try has given what has come another name."""
        fd, path = part
        if how == "removed":
            path.unlink()
        else:
            path.rename(path.with_name("newer"))
        if how == "replaced":
            path.write_bytes(b"")
        with pytest.raises(FileNotFoundError):
            locks.become_writer(fd, path, 0)


def test_locks_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with locks.exclusive(tmp_path / "lock", purpose="x", timeout=0.1), pytest.raises(LockTimeout):
        take(tmp_path / "lock", timeout=0)
    assert os.listdir("/proc/self/fd") == before
