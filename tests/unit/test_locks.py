"""agent.locks: within one process; waiting and dying holders are in tests/tool."""

from __future__ import annotations

import os
import re
import socket
import time
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


def test_locks_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with locks.exclusive(tmp_path / "lock", purpose="x", timeout=0.1), pytest.raises(LockTimeout):
        take(tmp_path / "lock", timeout=0)
    assert os.listdir("/proc/self/fd") == before
