"""agent.cache.fill: a hit, one fill for all, and what is left of one that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.cache import fill, room
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.errors import (
    CacheFailed,
    HostUnreachable,
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


@pytest.mark.parametrize("error", [HostUnreachable("ask", "lost"), OSError(errno.EIO, "disk")])
def test_B1_looking_for_orphans_never_fails_the_fill(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    caching.fill(frontend.entry.with_name("old"), idle=2000)
    ask = frontend.ask

    def fail(question: str, **facts: Any) -> dict[str, Any]:
        if question == "gone":
            raise error
        return ask(question, **facts)

    monkeypatch.setattr(frontend, "ask", fail)
    with hold(frontend) as had:
        assert had.entry.image.read_bytes() == CONTENT
    ((severity, text),) = frontend.logged
    assert severity == "DEBUG" and str(error) in text


class TestSeeds:
    """What a fill begins with, and the room that takes."""

    MUCH = 1 << 20

    def fill_over(self, frontend: Frontend, older: int, monkeypatch: pytest.MonkeyPatch) -> int:
        """A fill that needs MUCH, over an older version of so many bytes; what it reserves."""
        caching.fill(frontend.entry, os.urandom(older), mtime_ns=9)
        os.sync()
        reserved: list[int] = []
        reserve = room.reserve

        def note(entry: Entry, size: int, *arguments: Any, **options: Any) -> None:
            reserved.append(size)
            reserve(entry, size, *arguments, **options)

        monkeypatch.setattr(room, "reserve", note)
        with hold(frontend, needed=self.MUCH) as had:
            assert had.entry.image.read_bytes() == CONTENT
        return reserved[0]

    def test_B10_an_older_version_is_reserved_for(
        self, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its copy takes what the older version has, be it more than the new one needs."""
        size = self.MUCH * 105 // 100
        assert self.fill_over(frontend, size, monkeypatch) >= size
        assert frontend.asked[0]["reuse"] is True

    def test_B10_one_that_has_much_more_is_not_begun_with(
        self, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.fill_over(frontend, self.MUCH * 115 // 100, monkeypatch) == self.MUCH
        assert frontend.asked[0]["reuse"] is False

    @pytest.mark.parametrize(("percent", "kept"), [(105, True), (115, False)])
    def test_A3_nor_is_an_earlier_try(self, frontend: Frontend, percent: int, kept: bool) -> None:
        frontend.entry.parent.mkdir()
        part, _ = Entry(frontend.entry).new_part(seed=False)
        part.write_bytes(os.urandom(self.MUCH * percent // 100))
        os.sync()
        seen: list[int] = []
        frontend.then = lambda: seen.append(Path(frontend.asked[0]["temporary"]).stat().st_size)
        with hold(frontend, needed=self.MUCH) as had:
            assert had.entry.image.read_bytes() == CONTENT
        assert frontend.asked[0]["reuse"] is kept
        assert bool(seen[0]) is kept
        assert not part.exists()


def test_A2_what_was_written_to_again_is_not_published(frontend: Frontend) -> None:
    """A receiver of an earlier try got its turn before the part was claimed."""
    ask = frontend.ask

    def emptied(question: str, **facts: Any) -> dict[str, Any]:
        answer = ask(question, **facts)
        part = Path(facts["temporary"])
        os.truncate(part, 0)
        os.truncate(part, len(CONTENT))
        os.utime(part, ns=(1, 1))  # the clock of files is coarse
        return answer

    frontend.ask = emptied  # type: ignore[method-assign]
    with pytest.raises(TransferFailed, match="written to again"), hold(frontend):
        pass
    assert not frontend.entry.exists()


def test_A5_who_waits_passes_the_progress_of_the_holder_on(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may hold another lock and wait for us."""
    frontend.entry.parent.mkdir()
    lock = Entry(frontend.entry).lock
    stamps = iter(range(1, 4))

    def sleep(seconds: float) -> None:
        if stamp := next(stamps, None):
            os.utime(lock, ns=(1, stamp))

    monkeypatch.setattr("time.sleep", sleep)
    waiting = hold(frontend, lock_timeout=0.2)
    with locks.exclusive(lock, purpose="fill", timeout=1), pytest.raises(LockTimeout), waiting:
        pass
    assert frontend.told == [(0, 0)] * 3


def test_K8_two_that_wait_for_each_other_end_at_the_deadline(root: Path) -> None:
    """Each fills the one image while it waits for the other: that is no progress for anybody."""
    both = threading.Barrier(2)
    met: dict[str, Exception] = {}

    def fill_and_want(name: str, other: str) -> None:
        outer, inner = Frontend(root / "1" / name), Frontend(root / "1" / other)

        def ask(
            question: str, *, meanwhile: Callable[[], None] = lambda: None, **facts: Any
        ) -> dict[str, Any]:
            both.wait(10)
            # As agents pass it on: progress of what we wait for is progress of what we do.
            inner.progress = lambda done, total: meanwhile()  # type: ignore[method-assign]
            with hold(inner, lock_timeout=0.5):
                return Frontend.ask(outer, question, meanwhile=meanwhile, **facts)

        outer.ask = ask  # type: ignore[method-assign]
        try:
            with hold(outer, lock_timeout=0.5):
                pass
        except OnestorError as error:
            met[name] = error

    threads = [
        threading.Thread(target=fill_and_want, args=names, daemon=True)
        for names in (("0a", "0b"), ("0b", "0a"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "they wait for ever"
    assert met and all(isinstance(error, LockTimeout) for error in met.values())
