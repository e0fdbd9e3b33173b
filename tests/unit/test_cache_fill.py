"""agent.cache.fill: a hit, one fill for all, and what is left of one that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.cache import fill, room
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.errors import (
    CacheFailed,
    LockTimeout,
    NoSpace,
    NotAllowed,
    OnestorError,
    Superseded,
    TransferFailed,
)
from tests.unit import caching
from tests.unit.caching import version_of, write_part, written

CONTENT = b"the image's content"


class Frontend:
    """Brings CONTENT into the part; `then` may do something else before that."""

    def __init__(self, entry: Path) -> None:
        self.entry = entry
        self.asked: list[dict[str, Any]] = []
        self.logged: list[tuple[str, str]] = []
        self.told: list[tuple[int, int]] = []
        self.then: Callable[[], None] = lambda: None

    def ask(
        self, question: str, *, meanwhile: Callable[[], None] = lambda: None, **facts: Any
    ) -> dict[str, Any]:
        self.asked.append({"ask": question, **facts})
        if question == "gone":
            return {"names": [*facts["names"], "../../elsewhere"]}
        self.then()
        meanwhile()
        part = Path(facts["temporary"])
        digest = write_part(part, CONTENT)
        return {"digest": digest, "source": "fe", "written": written(part)}

    def progress(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def log(self, severity: str, text: str) -> None:
        self.logged.append((severity, text))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "datastores"
    path.mkdir()
    return path


@pytest.fixture
def frontend(root: Path) -> Frontend:
    return Frontend(root / "1" / "0a1b")


def wanted(path: Path, **changed: Any) -> fill.Wanted:
    limits = {"max_bytes": None, "max_used_percent": 100, "min_age": 0.0, "orphan_age": 1000.0,
              "counted": ""}  # fmt: skip
    facts = {
        "path": str(path), "version": version_of(CONTENT).to_json(), "needed": len(CONTENT),
        "headroom": 0, "is_replica": False, "limits": limits, "lock_timeout": 1.0,
        "purpose": "clone of image 4", "bulk": {"nice": 0, "ionice": "none"}, **changed,
    }  # fmt: skip
    return fill.Wanted.from_json(facts)


def hold(frontend: Frontend, **changed: Any) -> contextlib.AbstractContextManager[fill.Had]:
    path = changed.pop("path", frontend.entry)
    return fill.held(frontend, wanted(path, **changed), frontend.entry.parent.parent)


def test_a_miss_then_a_hit(frontend: Frontend) -> None:
    with hold(frontend) as had:
        assert not had.is_hit
        assert had.entry.image.read_bytes() == CONTENT
        assert had.record.version == version_of(CONTENT)
    with hold(frontend) as had:
        assert had.is_hit
    assert [question["ask"] for question in frontend.asked] == ["content"]
    assert frontend.asked[0]["item"] == "image"


def test_B4_it_is_locked_as_long_as_it_is_held(frontend: Frontend) -> None:
    lock = Entry(frontend.entry).lock
    for _ in range(2):
        with hold(frontend):
            with locks.exclusive_now(lock, purpose="evict") as free:
                assert not free
            with hold(frontend) as other:
                assert other.is_hit, "others may read it meanwhile"
        with locks.exclusive_now(lock, purpose="evict") as free:
            assert free


def test_A4_who_has_waited_asks_again_and_transfers_nothing(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else fills between our first look and the exclusive lock."""
    exclusive = locks.exclusive

    def late(path: Path, **options: Any) -> Any:
        monkeypatch.setattr(locks, "exclusive", exclusive)
        caching.fill(frontend.entry, CONTENT)
        return exclusive(path, **options)

    monkeypatch.setattr(locks, "exclusive", late)
    with hold(frontend) as had:
        assert had.is_hit
    assert frontend.asked == []


def test_B4_an_entry_lost_between_two_locks_is_filled_again(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flock(2) is not atomic when it changes: an eviction may come in between."""
    share, rounds = locks.Held.share, []

    def evicted_meanwhile(self: locks.Held, timeout: float) -> None:
        share(self, timeout)
        rounds.append(timeout)
        if len(rounds) == 1:
            Entry(frontend.entry).drop()

    monkeypatch.setattr(locks.Held, "share", evicted_meanwhile)
    with hold(frontend) as had:
        assert had.entry.image.read_bytes() == CONTENT
        assert not had.is_hit
    assert len(frontend.asked) == 2


def test_K8_but_not_for_ever(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "find", lambda self, version: None)
    with pytest.raises(CacheFailed, match="again and again"), hold(frontend):
        pass
    assert 1 < len(frontend.asked) < 10


def test_A5_a_fill_tells_those_who_wait_that_it_goes_on(frontend: Frontend) -> None:
    lock = Entry(frontend.entry).lock
    frontend.then = lambda: os.utime(lock, ns=(1, 1))
    with hold(frontend):
        assert lock.stat().st_mtime_ns > 1


def test_B3_every_use_is_recorded(frontend: Frontend) -> None:
    entry = caching.fill(frontend.entry, CONTENT, idle=500)
    before = entry.sidecar.stat().st_mtime
    with hold(frontend):
        assert entry.sidecar.stat().st_mtime > before + 400


def test_A6_a_fill_whose_process_died_at_the_end_is_finished(frontend: Frontend) -> None:
    entry = caching.fill(frontend.entry, CONTENT)
    part, _ = entry.new_part(seed=True)
    part.unlink()
    entry.image.rename(part)  # as it was just before its last step
    with hold(frontend):
        assert frontend.asked == []
    assert frontend.entry.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("error", "kept"),
    [(TransferFailed("send", "cut"), True), (NoSpace("receive", "full"), False),
     (Superseded("x", "deleted"), False), (OSError(errno.EIO, "disk"), False)],
)  # fmt: skip
def test_A3_what_a_failed_fill_leaves(frontend: Frontend, error: Exception, kept: bool) -> None:
    """Only what the next try can go on with."""

    def fail() -> None:
        raise error

    frontend.then = fail
    expected = OnestorError if isinstance(error, OnestorError) else CacheFailed
    with pytest.raises(expected), hold(frontend):
        pass
    assert bool(Entry(frontend.entry).part()) is kept
    assert Entry(frontend.entry).journal.exists() is kept
    assert not frontend.entry.exists()
    assert not locks.is_held(Entry(frontend.entry).lock)
    frontend.then = lambda: None
    with hold(frontend) as had:
        assert had.entry.image.read_bytes() == CONTENT
    assert frontend.asked[-1]["reuse"] is kept


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EACCES, CacheFailed), (errno.EROFS, CacheFailed)],
)
def test_A18_what_the_file_system_refuses_is_a_failure_of_the_cache(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[OnestorError]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(room, "reserve", refuse)
    with pytest.raises(expected) as failure, hold(frontend):
        pass
    assert not isinstance(failure.value, NotAllowed)
    assert str(frontend.entry) in str(failure.value)


def test_the_callers_own_failure_is_not_the_caches(frontend: Frontend) -> None:
    with pytest.raises(OSError, match="the disk's"), hold(frontend):
        raise OSError(errno.EIO, "the disk's")


def test_a_lock_that_is_not_given_up_names_its_holder(frontend: Frontend) -> None:
    frontend.entry.parent.mkdir()
    lock = Entry(frontend.entry).lock
    busy = locks.exclusive(lock, purpose="clone of image 5", timeout=1)
    waiting = hold(frontend, lock_timeout=0.1)
    with busy, pytest.raises(LockTimeout, match="clone of image 5"), waiting:
        pass


@pytest.mark.parametrize("name", ["1/.0a", "1/../1/0a", "x/0a", "1/2/0a", "1/0a.image"])
def test_J4_only_images_of_a_datastore(frontend: Frontend, root: Path, name: str) -> None:
    refused = pytest.raises(CacheFailed, match="not in an image datastore")
    with refused, hold(frontend, path=root / name):
        pass
    assert os.listdir(root) == []


@pytest.mark.parametrize("is_replica", [True, False])
def test_L2_only_a_replica_s_datastore_says_so(frontend: Frontend, is_replica: bool) -> None:
    with hold(frontend, is_replica=is_replica):
        marker = frontend.entry.parent / ".monitor"
        assert marker.exists() is is_replica
        assert not is_replica or marker.read_text() == "replica\n"


def test_B15_only_names_that_were_asked_for_are_dropped(frontend: Frontend, root: Path) -> None:
    old = caching.fill(frontend.entry.with_name("old"), idle=2000)
    elsewhere = caching.fill(root.parent / "elsewhere", idle=2000)
    with hold(frontend):
        pass
    assert frontend.asked[-1] == {
        "ask": "gone", "directory": str(frontend.entry.parent), "names": ["old"]
    }  # fmt: skip
    assert not old.image.exists()
    assert elsewhere.image.exists()
