"""agent.cache.room: what goes, in which order, and what never does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import crashpoints, locks
from onestor_lib.agent.cache import room
from onestor_lib.agent.cache.entry import Entry, chunks_of
from onestor_lib.agent.errors import CacheFailed, LockTimeout
from tests.unit.caching import age, fill, version_of
from tests.unit.test_publish import DEAD_PID, foreign

MB = 1 << 20
SLACK = 64 << 10  # bytes that sidecars may take


class Killed(BaseException):
    """The process died here: nothing is cleaned up."""


class Cache:
    """A cache on a file system of a size that the test chooses."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.said: list[tuple[str, str]] = []
        self.disk_size = 0  # 0: the real file system
        real = os.statvfs

        def statvfs(path: Any) -> Any:
            if not self.disk_size:
                return real(path)
            taken = sum(each.lstat().st_blocks * 512 for each in root.rglob("*"))
            free = (self.disk_size - taken) // 4096
            facts = list(real(path))
            facts[:5] = [4096, 4096, self.disk_size // 4096, free, free]
            return os.statvfs_result(facts)

        monkeypatch.setattr(os, "statvfs", statvfs)

    def path(self, name: str) -> Path:
        return self.root / (name if "/" in name else f"1/{name}")

    def fill(self, name: str, megabytes: int, idle: float = 100.0) -> Entry:
        """An entry last used `idle` seconds ago."""
        return fill(self.path(name), os.urandom(MB) * megabytes, idle=idle)

    def reserve(
        self, name: str, megabytes: float, *, headroom: int = 0, timeout: float = 1.0, **limits: Any
    ) -> None:
        """Make room for an image; `limits` as in `room.Limits`."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        room.reserve(
            Entry(path), int(megabytes * MB), bounds(**limits),
            headroom=headroom * MB, timeout=timeout, say=self.say,
        )  # fmt: skip

    def trim(self, **limits: Any) -> None:
        room.trim(self.root, bounds(**limits), timeout=1.0, say=self.say)

    def say(self, severity: str, text: str) -> None:
        self.said.append((severity, text))

    @property
    def here(self) -> list[str]:
        """The names of the images in the cache."""
        images = [path for path in self.root.glob("[0-9]*/[!.]*") if path.is_file()]
        names = [path.relative_to(self.root).as_posix() for path in images]
        return sorted(name[2:] if name.startswith("1/") else name for name in names)

    @contextlib.contextmanager
    def filling(self, name: str) -> Any:
        """Hold the lock of an entry as a fill does."""
        self.path(name).parent.mkdir(exist_ok=True)
        with locks.exclusive(Entry(self.path(name)).lock, purpose="fill", timeout=1):
            yield


def bounds(*, max_mb: float | None = None, **changed: Any) -> room.Limits:
    facts = {
        "max_bytes": None if max_mb is None else int(max_mb * MB) + SLACK, "max_used_percent": 100,
        "min_age": 0.0, "orphan_age": 1000.0, "counted": "", **changed,
    }  # fmt: skip
    return room.Limits(**facts)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    root = tmp_path / "datastores"
    root.mkdir()
    return Cache(root, monkeypatch)


class TestLimits:
    def test_B9_what_fits_evicts_nothing(self, cache: Cache) -> None:
        cache.fill("a", 2)
        cache.fill("b", 2)
        cache.reserve("new", 1, max_mb=5)
        assert cache.here == ["a", "b"]
        assert cache.said == []

    def test_B1_as_many_as_it_takes_and_no_more(self, cache: Cache) -> None:
        for number, name in enumerate("abcdef"):
            cache.fill(name, 1, idle=1000 - number)
        cache.reserve("new", 5, max_mb=6)
        assert cache.here == ["f"]
        assert [severity for severity, _ in cache.said] == ["INFO"] * 5
        assert room.used(cache.root) <= 6 * MB + SLACK

    def test_B2_nothing_of_an_evicted_image_remains(self, cache: Cache) -> None:
        entry = cache.fill("a", 2)
        entry.lock.write_text("")
        cache.reserve("new", 2, max_mb=3)
        left = {path.name for path in cache.path("a").parent.iterdir()}
        assert left == {entry.lock.name, ".new.fill"}

    def test_B3_the_least_recently_used_goes_first(self, cache: Cache) -> None:
        cache.fill("first", 1, idle=300)
        cache.fill("second", 1, idle=200)
        cache.fill("third", 1, idle=100)
        Entry(cache.path("first")).mark_used()
        for name in ("first", "second", "third"):  # access times say something else
            os.utime(cache.path(name), ns=(1, cache.path(name).stat().st_mtime_ns))
        cache.reserve("new", 1, max_mb=3)
        assert cache.here == ["first", "third"]

    def test_B7_percent_of_the_file_system(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        cache.fill("old", 3, idle=200)
        cache.fill("young", 3, idle=100)
        cache.reserve("small", 2, max_used_percent=85)
        assert cache.here == ["old", "young"]
        cache.reserve("new", 3, max_used_percent=85)
        assert cache.here == ["young"]

    def test_B7_the_size_limit_replaces_the_percentage(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        cache.fill("a", 3)
        cache.reserve("new", 4, max_mb=8, max_used_percent=1)
        assert cache.here == ["a"]

    def test_C8_the_file_system_s_free_space_counts_whatever_the_limit(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        cache.fill("a", 6)
        cache.reserve("new", 6, max_mb=100)
        assert cache.here == []

    def test_C8_room_for_the_disk_is_kept_beside_the_image(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        cache.fill("a", 3)
        cache.reserve("new", 3, headroom=3, max_mb=100)
        assert cache.here == ["a"]
        cache.reserve("new", 3, headroom=5, max_mb=100)
        assert cache.here == []

    def test_B6_an_image_larger_than_the_limit_evicts_nothing(self, cache: Cache) -> None:
        cache.fill("a", 1)
        with pytest.raises(CacheFailed, match=r"6 MB needed, the limit is 5 MB"):
            cache.reserve("new", 6, max_mb=5)
        assert cache.here == ["a"]
        assert not Entry(cache.path("new")).journal.exists(), "and nothing is reserved"

    @pytest.mark.parametrize("limits", [{"max_mb": 5}, {"max_used_percent": 50}])
    def test_B6_nothing_goes_when_that_would_not_be_enough(
        self, cache: Cache, limits: dict[str, Any], tmp_path: Path
    ) -> None:
        cache.disk_size = 10 * MB
        cache.fill("a", 1)
        cache.fill("base", 3)
        os.link(cache.path("base"), tmp_path / "disk.0.base")
        with pytest.raises(CacheFailed, match=r"3 MB needed, there can be [12] MB"):
            cache.reserve("new", 3, **limits)
        assert cache.here == ["a", "base"]

    def test_B6_nothing_goes_when_what_is_in_use_would_be_needed(self, cache: Cache) -> None:
        """That somebody reads an entry is known only from its lock."""
        cache.fill("idle", 1, idle=100)
        busy = cache.fill("busy", 3, idle=200)
        with locks.shared(busy.lock, purpose="read", timeout=1), pytest.raises(CacheFailed):
            cache.reserve("new", 4, max_mb=5)
        assert cache.here == ["busy", "idle"]

    def test_an_older_version_of_the_image_goes_last(self, cache: Cache) -> None:
        """Without it the new one cannot come as a difference."""
        cache.fill("new", 2, idle=500)
        cache.fill("other", 2, idle=1)
        cache.reserve("new", 2, max_mb=5)
        assert cache.here == ["new"]
        cache.reserve("new", 4, max_mb=5)
        assert cache.here == []


class TestNeverEvicted:
    def test_B5_what_disks_are_linked_to(self, cache: Cache, tmp_path: Path) -> None:
        cache.fill("base", 2, idle=900)
        cache.fill("young", 2, idle=1)
        os.link(cache.path("base"), tmp_path / "disk.0.base")
        cache.reserve("new", 2, max_mb=5)
        assert cache.here == ["base"], "it would free nothing"
        (tmp_path / "disk.0.base").unlink()
        cache.reserve("newer", 4, max_mb=5)
        assert cache.here == [], "but after the last such disk it goes like any other"

    @pytest.mark.parametrize("how", [locks.shared, locks.exclusive])
    def test_B4_what_somebody_reads_or_fills(self, cache: Cache, how: Callable[..., Any]) -> None:
        busy = cache.fill("busy", 2, idle=900)
        cache.fill("young", 2, idle=1)
        with how(busy.lock, purpose="read", timeout=1):
            cache.reserve("new", 2, max_mb=5)
        assert cache.here == ["busy"]

    def test_B4_a_lock_of_a_dead_process_pins_nothing(self, cache: Cache) -> None:
        entry = cache.fill("a", 2)
        entry.lock.write_text("elsewhere pid 1, read since 1\n")
        cache.reserve("new", 2, max_mb=3)
        assert cache.here == []

    def test_B14_what_was_used_a_moment_ago(self, cache: Cache) -> None:
        cache.fill("a", 2, idle=50)
        cache.fill("b", 2, idle=150)
        with pytest.raises(CacheFailed):
            cache.reserve("new", 4, max_mb=5, min_age=100.0)
        assert cache.here == ["a", "b"], "nothing at all, for one would not be enough"
        cache.reserve("new", 2, max_mb=5, min_age=100.0)
        assert cache.here == ["a"]

    def test_a_clock_that_was_set_back_keeps_nothing(self, cache: Cache) -> None:
        cache.fill("a", 2, idle=-86400)
        cache.reserve("new", 2, max_mb=2, min_age=100.0)
        assert cache.here == []

    def test_B3_what_was_used_before_the_clock_was_set_back_goes_first(self, cache: Cache) -> None:
        cache.fill("fresh", 2, idle=1)
        cache.fill("stale", 2, idle=-86400)
        cache.reserve("new", 2, max_mb=4)
        assert cache.here == ["fresh"]

    def test_a_clock_that_is_set_right_by_a_second_changes_nothing(self, cache: Cache) -> None:
        cache.fill("a", 2, idle=-1)
        with pytest.raises(CacheFailed):
            cache.reserve("new", 2, max_mb=2, min_age=100.0)
        assert cache.here == ["a"]

    @pytest.mark.parametrize("mode", [0o660, 0o444])
    def test_what_is_not_ours(self, cache: Cache, mode: int) -> None:
        origin = cache.path("origin")
        origin.parent.mkdir()
        origin.write_bytes(bytes(3 * MB))
        origin.chmod(mode)
        cache.fill("a", 2)
        cache.reserve("new", 2, max_mb=2)
        assert cache.here == ["origin"]
        assert room.used(cache.root) <= 2 * MB + SLACK, "nor does it count"

    def test_B8_recovery_snapshots_count_and_stay(self, cache: Cache, tmp_path: Path) -> None:
        snapshots = tmp_path / "snaps" / "7"
        snapshots.mkdir(parents=True)
        (snapshots / "disk.0").write_bytes(os.urandom(2 * MB))
        os.link(snapshots / "disk.0", snapshots / "another name")
        cache.fill("a", 2)
        counted = str(tmp_path / "snaps")
        cache.reserve("new", 1, max_mb=5.5, counted=counted)
        assert cache.here == ["a"]
        cache.reserve("new", 2, max_mb=5, counted=counted)
        assert cache.here == []
        with pytest.raises(CacheFailed):
            cache.reserve("new", 4, max_mb=5, counted=counted)
        assert sorted(os.listdir(snapshots)) == ["another name", "disk.0"]

    def test_B8_a_missing_directory_counts_nothing(self, cache: Cache) -> None:
        cache.reserve("new", 1, max_mb=1, counted="/no/such/directory")


class TestSeveral:
    def test_B8_all_datastores_count_together(self, cache: Cache) -> None:
        cache.fill("1/a", 3, idle=100)
        cache.fill("22/b", 3, idle=200)
        cache.reserve("3/new", 3, max_mb=7)
        assert cache.here == ["a"]

    def test_directories_that_are_no_datastores_are_left_alone(self, cache: Cache) -> None:
        cache.fill("replica_snaps/a", 3)
        (cache.root / "link").symlink_to(cache.root / "replica_snaps")
        cache.reserve("new", 3, max_mb=3)
        assert (cache.root / "replica_snaps" / "a").exists()

    def test_B8_a_datastore_that_is_a_link_counts(self, cache: Cache, tmp_path: Path) -> None:
        """Operators put datastores on disks of their own."""
        (tmp_path / "elsewhere").mkdir()
        (cache.root / "22").symlink_to(tmp_path / "elsewhere")
        cache.fill("22/b", 3, idle=200)
        cache.fill("1/a", 3, idle=100)
        assert room.used(cache.root) >= 6 * MB
        cache.reserve("3/new", 3, max_mb=7)
        assert cache.here == ["a"]

    def test_C8_the_file_system_of_the_datastore_counts(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        statvfs = os.statvfs

        def note(path: Any) -> os.statvfs_result:
            asked.append(path)
            return statvfs(path)

        monkeypatch.setattr(os, "statvfs", note)
        cache.reserve("3/new", 1)
        assert asked == [cache.root / "3"]

    def test_B10_what_a_killed_fill_had_reserved_frees_nothing(self, cache: Cache) -> None:
        """Its journal says much, and its lock is ours when we look before we evict."""
        for name, idle in (("killed", 300), ("other", 200)):
            entry = cache.fill(name, 1, idle=idle)
            entry.reserve(50 * MB)
            age(entry.journal, idle)
        cache.reserve("new", 2, max_mb=2)
        assert cache.here == [], "one of them is not enough"
        assert {text for _, text in cache.said} == {
            f"evicted {cache.path(name)} (1 MB) to make room" for name in ("killed", "other")
        }

    def test_B10_what_another_fill_has_reserved_counts(self, cache: Cache) -> None:
        with cache.filling("one"):
            cache.reserve("one", 3, max_mb=5)
            assert room.used(cache.root) >= 3 * MB
            with cache.filling("two"), pytest.raises(CacheFailed):
                cache.reserve("two", 3, max_mb=5)
        with cache.filling("two"):
            cache.reserve("two", 3, max_mb=5)  # that one has ended, and with it its reservation

    @pytest.mark.parametrize("limits", [{}, {"max_mb": 100}])
    def test_B10_reserved_space_is_not_free(self, cache: Cache, limits: dict[str, Any]) -> None:
        cache.disk_size = 10 * MB
        with cache.filling("one"):
            cache.reserve("one", 6, **limits)
            with pytest.raises(CacheFailed):
                cache.reserve("two", 5, **limits)
            cache.reserve("two", 3, **limits)

    def test_B10_what_has_come_of_a_reservation_counts_once(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        with cache.filling("one"):
            cache.reserve("one", 4, max_mb=8)
            part, _ = Entry(cache.path("one")).new_part(seed=True)
            part.write_bytes(os.urandom(3 * MB))
            os.sync()
            assert 4 * MB <= room.used(cache.root) < 4 * MB + SLACK
            cache.reserve("two", 3.9, max_mb=8)

    def test_B10_a_fill_under_way_is_no_victim(self, cache: Cache) -> None:
        with cache.filling("one"):
            cache.reserve("one", 3, max_mb=5)
            part, _ = Entry(cache.path("one")).new_part(seed=True)
            part.write_bytes(bytes(MB))
            with pytest.raises(CacheFailed):
                cache.reserve("two", 3, max_mb=5)
            assert part.exists()

    def test_what_has_come_already_is_not_needed_again(self, cache: Cache) -> None:
        cache.disk_size = 10 * MB
        part, _ = fresh(cache, "new").new_part(seed=True)
        part.write_bytes(os.urandom(6 * MB))
        os.sync()
        cache.reserve("new", 9)
        assert part.exists()

    def test_one_at_a_time_decides(self, cache: Cache) -> None:
        (cache.root / "1").mkdir()
        with locks.exclusive(cache.root / ".onestor-cache.lock", purpose="trim", timeout=1):
            with pytest.raises(LockTimeout):
                cache.reserve("new", 1, timeout=0.1)
            assert not Entry(cache.path("new")).journal.exists()


@contextlib.contextmanager
def as_another_user(cache: Cache, closed: list[Path]) -> Iterator[None]:
    """Work as a user whom all of the cache belongs to but for what is `closed`."""
    if os.geteuid() != 0:
        for path in closed:
            path.chmod(0)
        yield
        return
    nobody = 65534
    modes = {path: path.stat().st_mode for path in cache.root.parents}
    modes = {path: mode for path, mode in modes.items() if not mode & 0o001}
    for path in [cache.root, *cache.root.rglob("*")]:
        if path not in closed:
            os.chown(path, nobody, nobody, follow_symlinks=False)
    for path in closed:
        path.chmod(0o600)
    try:
        for path in modes:
            path.chmod(0o711)
        os.seteuid(nobody)
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def fresh(cache: Cache, name: str) -> Entry:
    path = cache.path(name)
    path.parent.mkdir(exist_ok=True)
    return Entry(path)


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 100, b"[" * 4000 + b"\n"])
    def test_B12_one_damaged_sidecar_among_ten(self, cache: Cache, content: bytes) -> None:
        for number in range(10):
            cache.fill(f"image{number}", 1, idle=1000 - number)
        damaged = Entry(cache.path("image4"))
        damaged.sidecar.write_bytes(content)
        age(damaged.sidecar, 996)
        cache.reserve("new", 6, max_mb=10)
        assert cache.here == ["image6", "image7", "image8", "image9"]

    @pytest.mark.parametrize("content", [b"", b"{", b'{"reserved": "much"}', b'{"reserved": -5}'])
    def test_B12_a_damaged_journal(self, cache: Cache, content: bytes) -> None:
        cache.fill("a", 2)
        fresh(cache, "broken").journal.write_bytes(content)
        with cache.filling("broken"):
            cache.reserve("new", 2, max_mb=3)
        assert cache.here == []

    @pytest.mark.parametrize("what", ["its lock", "its files", "a link"])
    def test_B12_what_another_user_has_left_stops_no_eviction(
        self, cache: Cache, what: str
    ) -> None:
        """Somebody has run a driver as root once."""
        for number, name in enumerate(("theirs", "a", "b")):
            cache.fill(name, 2, idle=900 - number).lock.write_text("")
        theirs = Entry(cache.path("theirs"))
        closed = [theirs.lock, theirs.sidecar] if what == "its files" else [theirs.lock]
        if what == "a link":
            theirs.lock.unlink()
            theirs.lock.symlink_to("/dev/null")
            closed.clear()
        with as_another_user(cache, closed):
            cache.reserve("new", 2, max_mb=5)
            # One that cannot even be looked at is no entry: it does not count either.
            assert cache.here == (["b", "theirs"] if what == "a link" else ["theirs"])

    @pytest.mark.parametrize("point", ["evict.image", "evict.sidecar"])
    def test_B13_an_interrupted_eviction(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch, point: str
    ) -> None:
        entry = cache.fill("a", 2)

        def reach(name: str) -> None:
            if name == point:
                raise Killed

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(crashpoints, "reach", reach)
            cache.reserve("new", 2, max_mb=3)
        assert cache.here == []
        assert Entry(cache.path("a")).find(version_of(b"")) is None
        cache.reserve("new", 3, max_mb=3)
        assert not entry.sidecar.exists(), "the next run removes the remainder"
        shutil.rmtree(cache.path("a").parent)

    def test_B13_a_sidecar_without_a_file_goes_when_its_room_is_needed(self, cache: Cache) -> None:
        entry = cache.fill("a", 2)
        cache.path("a").unlink()
        cache.reserve("new", (3 * MB + SLACK - 2048) / MB, max_mb=3)
        assert not entry.sidecar.exists()


class TestSweep:
    def part(self, cache: Cache, name: str, idle: float) -> Path:
        entry = fresh(cache, name)
        entry.reserve(MB)
        part, _ = entry.new_part(seed=True)
        part.write_bytes(os.urandom(MB))
        chunks_of(part).write_bytes(b"x")
        os.sync()
        age(entry.journal, idle)
        return part

    def test_B15_what_nobody_repeats_goes_after_a_while(self, cache: Cache) -> None:
        old, young = self.part(cache, "old", 1100), self.part(cache, "young", 900)
        cache.reserve("new", 1)
        assert not old.exists() and not chunks_of(old).exists()
        assert not Entry(cache.path("old")).journal.exists()
        assert young.exists()
        ((severity, text),) = cache.said
        assert severity == "INFO" and str(cache.path("old")) in text

    def test_B15_K16_temporaries_of_the_dead_go(self, cache: Cache) -> None:
        """Of two datastores: none of them has a fill that would sweep."""
        names = foreign(".a.fill", pid=str(DEAD_PID)), foreign(".a.fill")
        for path in (cache.path("a"), cache.root / "7" / "a"):
            path.parent.mkdir(exist_ok=True)
            for name in names:
                (path.parent / name).write_text("{}")
            cache.trim()
            assert [(path.parent / name).exists() for name in names] == [False, True]

    def test_B15_a_fill_under_way_is_not_swept_however_old(self, cache: Cache) -> None:
        part = self.part(cache, "slow", 5000)
        with cache.filling("slow"):
            cache.reserve("new", 1)
        assert part.exists()

    def test_A6_our_own_part_is_not_swept_but_taken_up(self, cache: Cache) -> None:
        part = self.part(cache, "new", 5000)
        cache.reserve("new", 1)
        assert Entry(cache.path("new")).part() == part

    def test_B15_the_entry_stays_when_its_part_is_swept(self, cache: Cache) -> None:
        entry = cache.fill("a", 1, idle=5000)
        part, _ = entry.new_part(seed=True)
        entry.journal.unlink()  # a kill has left the part without its note
        cache.reserve("new", 1)
        assert not part.exists()
        assert cache.here == ["a"]

    def test_what_fills_have_left_goes_before_it_is_old_when_room_is_needed(
        self, cache: Cache
    ) -> None:
        """With the image, and where there is none yet, too."""
        part = self.part(cache, "interrupted", 500)
        cache.fill("whole", 1, idle=200)
        cache.trim(max_mb=1)
        assert not part.exists() and not Entry(cache.path("interrupted")).journal.exists()
        assert cache.here == ["whole"] and cache.said == []
        entry = Entry(cache.path("whole"))
        newer, _ = entry.new_part(seed=False)
        newer.write_bytes(os.urandom(MB))
        cache.trim(max_mb=0)
        assert not newer.exists() and cache.here == []

    def test_B15_orphans_are_those_long_unused(self, cache: Cache) -> None:
        cache.fill("old", 1, idle=1100)
        cache.fill("young", 1, idle=900)
        assert room.orphan_candidates(cache.root / "1", 1000.0) == ["old"]
        assert room.orphan_candidates(cache.root / "missing", 1000.0) == []

    def test_B15_nothing_waits_longer_when_the_clock_was_set_back(self, cache: Cache) -> None:
        part = self.part(cache, "part", -86400)
        cache.fill("orphan", 1, idle=-86400)
        cache.fill("young", 1, idle=-900)
        assert room.orphan_candidates(cache.root / "1", 1000.0) == ["orphan"]
        cache.reserve("new", 1)
        assert not part.exists()

    def test_B15_an_orphan_in_use_stays(self, cache: Cache) -> None:
        entry = cache.fill("a", 1)
        with locks.shared(entry.lock, purpose="read", timeout=1):
            room.drop_idle(cache.path("a"), "x", cache.say)
            assert cache.here == ["a"] and cache.said == []
        room.drop_idle(cache.path("a"), "the image is no more", cache.say)
        assert cache.here == []
        assert cache.said == [
            ("INFO", f"{cache.path('a')} left the cache: the image is no more")
        ]  # fmt: skip

    def test_B15_an_origin_is_no_orphan(self, cache: Cache) -> None:
        cache.fill("other", 1)
        origin = cache.path("origin")
        origin.write_bytes(b"an origin")
        age(origin, 5000)
        assert room.orphan_candidates(cache.root / "1", 1000.0) == []
        room.drop_idle(origin, "x", cache.say)
        assert origin.exists()


class TestTrim:
    def test_as_far_as_the_limits_say(self, cache: Cache) -> None:
        for number, name in enumerate("abcd"):
            cache.fill(name, 1, idle=1000 - number)
        cache.trim(max_mb=2)
        assert cache.here == ["c", "d"]
        cache.trim(max_mb=2)
        assert cache.here == ["c", "d"]

    def test_as_far_as_possible_and_no_failure(self, cache: Cache, tmp_path: Path) -> None:
        cache.fill("base", 3)
        os.link(cache.path("base"), tmp_path / "disk.0.base")
        cache.fill("idle", 1)
        cache.trim(max_mb=1)
        assert cache.here == ["base"]

    def test_an_empty_cache(self, cache: Cache) -> None:
        cache.trim(max_mb=1)
        assert room.used(cache.root) == 0
