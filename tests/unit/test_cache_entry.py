"""agent.cache.entry: when an entry is a hit, whose files are touched, and crashes between steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, NoReturn

import pytest

from onestor_lib.agent import crashpoints, locks, publish
from onestor_lib.agent.cache import entry as entries
from onestor_lib.agent.cache import record, room
from onestor_lib.agent.cache.entry import Entry, chunks_of
from onestor_lib.agent.errors import CacheFailed, LockTimeout
from onestor_lib.agent.version import Version
from tests.unit.caching import age, fill, version_of, write_part

CONTENT = b"the image's content"


class Killed(BaseException):
    """The process died here: nothing is cleaned up."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "1").mkdir()
    return tmp_path / "1" / "0a1b"


@pytest.fixture
def die_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose the crash point to die at, within this process; "" for none."""

    def choose(name: str) -> None:
        assert not name or name in crashpoints.POINTS

        def reach(now: str) -> None:
            if now == name:
                raise Killed

        monkeypatch.setattr(crashpoints, "reach", reach)

    return choose


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def die(work: Callable[[], object]) -> None:
    with pytest.raises(Killed):
        work()


class TestHits:
    def test_a_complete_entry_of_this_version_is_a_hit(self, path: Path) -> None:
        entry = fill(path, CONTENT)
        found = entry.find(version_of(CONTENT))
        assert found and found.source == "fe"
        assert entry.image == path and not entry.is_hidden
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o444, "no VM can write to a base"
        assert names(path) == [".0a1b.sidecar", "0a1b"]

    @pytest.mark.parametrize("fact", ["size", "mtime_ns", "inode"])
    def test_A10_another_version_is_a_miss(self, path: Path, fact: str) -> None:
        entry = fill(path, CONTENT)
        facts = version_of(CONTENT).to_json()
        facts[fact] += 1
        assert entry.find(Version.from_json(facts)) is None

    @pytest.mark.parametrize("damage", ["missing", "empty", "shorter", "longer", "touched"])
    def test_A7_a_file_that_is_not_what_was_recorded_is_a_miss(
        self, path: Path, damage: str
    ) -> None:
        entry = fill(path, CONTENT)
        if damage == "missing":
            path.unlink()
        elif damage == "touched":
            os.utime(path, ns=(1, 1))
        else:
            size = {"empty": 0, "shorter": len(CONTENT) - 1, "longer": len(CONTENT) + 1}[damage]
            facts = path.stat()
            os.truncate(path, size)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert entry.find(version_of(CONTENT)) is None
        assert Entry(path).find(version_of(CONTENT)) is None

    def test_A10_a_copy_put_in_its_place_is_a_miss(self, path: Path) -> None:
        """The same size and time: another file all the same."""
        entry = fill(path, CONTENT)
        facts = path.stat()
        copy = path.with_name("copy")
        copy.write_bytes(b"x" * len(CONTENT))
        copy.chmod(0o444)
        os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        copy.rename(path)
        assert entry.find(version_of(CONTENT)) is None

    @pytest.mark.parametrize("content", [b"", b"{", b"\n", b"\xff\n", b"{}\n"])
    def test_A9_a_damaged_sidecar_is_a_miss(self, path: Path, content: bytes) -> None:
        entry = fill(path, CONTENT)
        entry.sidecar.write_bytes(content)
        assert Entry(path).find(version_of(CONTENT)) is None
        again = fill(path, CONTENT)
        assert again.find(version_of(CONTENT)), "and it is repaired by the next fill"
        assert again.image == path

    def test_B3_uses_are_recorded(self, path: Path) -> None:
        entry = fill(path, CONTENT, idle=1000)
        before = entries.last_used(entry.sidecar)
        entry.mark_used()
        assert entries.last_used(entry.sidecar) > before + 900
        entry.sidecar.unlink()
        entry.mark_used()  # gone meanwhile: no failure


class TestForeignFiles:
    """What lies at the image's path and is not ours."""

    @pytest.fixture(params=["no sidecar", "writable", "link", "dangling link"])
    def foreign(self, path: Path, request: pytest.FixtureRequest) -> Path:
        if request.param == "no sidecar":
            path.write_bytes(b"an origin")
            path.chmod(0o444)
        elif request.param == "writable":
            fill(path, CONTENT)  # another driver's file may have come to lie beside a sidecar
            path.unlink()
            path.write_bytes(b"an origin")
            path.chmod(0o660)
        else:
            target = path.with_name("elsewhere")
            if request.param == "link":
                target.write_bytes(b"an origin")
            path.symlink_to(target)
        return path

    def test_the_entry_gets_a_hidden_name(self, foreign: Path) -> None:
        target = os.path.exists(foreign) and foreign.read_bytes()
        before = foreign.lstat()  # afterwards: our own reading counts as an access
        entry = fill(foreign, CONTENT)
        assert entry.is_hidden
        assert entry.image.name == ".0a1b.image"
        assert entry.find(version_of(CONTENT))
        assert entry.image.read_bytes() == CONTENT
        entry.drop()
        assert not entry.image.exists()
        assert foreign.lstat() == before, "not even touched"
        assert not target or foreign.read_bytes() == target

    def test_it_is_no_source_for_a_fill(self, foreign: Path) -> None:
        part, reuse = Entry(foreign).new_part(seed=True)
        assert not reuse and part.stat().st_size == 0

    def test_its_name_is_known_as_that_of_the_image(self, foreign: Path) -> None:
        fill(foreign, CONTENT)
        assert entries.names_in(foreign.parent) == {"0a1b"}

    def test_the_entry_keeps_its_name_when_the_other_file_goes(self, foreign: Path) -> None:
        """Otherwise nobody would find it again: a cache would grow past its limit."""
        entry = fill(foreign, CONTENT)
        foreign.unlink()
        again = Entry(foreign)
        assert again.image == entry.image and again.find(version_of(CONTENT))
        (stored,) = room.survey(foreign.parent.parent)
        assert stored.bytes >= entry.image.stat().st_blocks * 512 > 0
        again.drop()
        assert not entry.image.exists() and not entry.sidecar.exists()
        assert not Entry(foreign).is_hidden

    def test_locks_and_journals_are_the_same_for_both(self, path: Path) -> None:
        """Whether the file is there may change while somebody holds the lock."""
        plain = Entry(path)
        path.write_bytes(b"an origin")
        hidden = Entry(path)
        assert hidden.is_hidden
        assert (hidden.lock, hidden.journal) == (plain.lock, plain.journal)


class TestParts:
    def test_A6_what_has_come_is_taken_up_under_a_new_name(self, path: Path) -> None:
        entry = Entry(path)
        first, reuse = entry.new_part(seed=True)
        assert not reuse
        assert first.stat().st_mode & 0o777 == 0o600
        first.write_bytes(b"half")
        chunks_of(first).write_bytes(b"of an earlier try")
        second, reuse = entry.new_part(seed=True)
        assert reuse
        assert second != first and second.read_bytes() == b"half"
        assert names(path) == sorted([".0a1b.fill", second.name])

    def test_an_older_version_is_the_seed(self, path: Path) -> None:
        fill(path, CONTENT)
        part, reuse = Entry(path).new_part(seed=True)
        assert reuse
        assert part.read_bytes() == CONTENT
        assert part.stat().st_ino != path.stat().st_ino
        part.write_bytes(b"newer")
        assert path.read_bytes() == CONTENT, "a reader goes on reading the old bytes (A2)"

    @pytest.mark.parametrize(
        "name",
        ["", "../0a1b", "0a1b", ".0a1b.sidecar", f".other.{'a' * 16}.part", ".0a1b.xyz.part", 7,
         None, f".0a1b.{'a' * 16}.part.chunks/../../../etc/passwd"],
    )  # fmt: skip
    def test_B12_a_journal_names_no_other_file(self, path: Path, name: object) -> None:
        victim = path.with_name(f".other.{'a' * 16}.part")
        victim.write_bytes(b"another image's")
        entry = Entry(path)
        entry.journal.write_text(f'{{"part": {name!r}}}'.replace("'", '"').replace("None", "null"))
        assert entry.part() is None
        part, reuse = entry.new_part(seed=True)
        assert not reuse and part.read_bytes() == b""
        assert victim.read_bytes() == b"another image's"

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'"part"'])
    def test_B12_a_damaged_journal_counts_as_none(self, path: Path, content: bytes) -> None:
        entry = Entry(path)
        entry.journal.write_bytes(content)
        assert entry.read_journal() == {}
        entry.reserve(5)
        assert entry.read_journal()["reserved"] == 5

    def test_a_reservation_keeps_the_part_known(self, path: Path) -> None:
        entry = Entry(path)
        part, _ = entry.new_part(seed=True)
        entry.reserve(5)
        assert entry.part() == part

    def test_A6_K16_a_part_that_nobody_knows_goes_with_the_next_fill(
        self, path: Path, die_at: Callable[[str], None]
    ) -> None:
        """Killed between the note of the new name and the renaming."""
        entry = Entry(path)
        entry.new_part(seed=True)[0].write_bytes(b"half")
        die_at("fill.noted")
        die(lambda: entry.new_part(seed=True))
        assert entry.part() is None
        die_at("")
        fill(path, CONTENT)
        assert names(path) == [".0a1b.sidecar", "0a1b"]


class TestCrashes:
    """Killed between two steps of a fill; what the next action finds."""

    def begin(self, path: Path) -> tuple[Entry, Path, str]:
        entry = Entry(path)
        part, _ = entry.new_part(seed=True)
        return entry, part, write_part(part, CONTENT)

    @pytest.mark.parametrize("older", [False, True])
    @pytest.mark.parametrize("point", ["fill.synced", "fill.recorded", "fill.renamed"])
    def test_A2_A6_A10_never_a_hit_that_is_not_complete(
        self, path: Path, die_at: Callable[[str], None], point: str, older: bool
    ) -> None:
        if older:
            fill(path, b"the older version", mtime_ns=9)
        entry, part, digest = self.begin(path)
        die_at(point)
        die(lambda: entry.publish(part, version_of(CONTENT), digest, "fe"))
        after = Entry(path)
        hit = after.find(version_of(CONTENT))
        assert bool(hit) is (point == "fill.renamed")
        if not hit and older:
            assert path.read_bytes() == b"the older version", "whoever has linked it keeps it"
        if point == "fill.recorded":
            assert after.find(version_of(b"the older version", mtime_ns=9)) is None
        die_at("")
        after.finish()
        assert bool(Entry(path).find(version_of(CONTENT))) is (point != "fill.synced")
        if point == "fill.synced":
            assert after.new_part(seed=True)[1], "but all has come already"
        else:
            assert path.read_bytes() == CONTENT

    def test_finish_does_nothing_to_a_part_that_is_not_complete(self, path: Path) -> None:
        entry, part, _ = self.begin(path)
        entry.finish()
        assert part.exists() and not path.exists()

    def test_A10_finish_does_nothing_to_a_part_written_to_since(
        self, path: Path, die_at: Callable[[str], None]
    ) -> None:
        entry, part, digest = self.begin(path)
        die_at("fill.recorded")
        die(lambda: entry.publish(part, version_of(CONTENT), digest, "fe"))
        die_at("")
        part.chmod(0o600)
        part.write_bytes(CONTENT + b"more")
        Entry(path).finish()
        assert not path.exists()

    def test_A15_a_file_that_has_come_meanwhile_is_not_replaced(self, path: Path) -> None:
        """`datastore cp` on a front-end that is a host, say: that is an origin."""
        entry, part, digest = self.begin(path)
        path.write_bytes(b"an origin")
        path.chmod(0o660)
        with pytest.raises(CacheFailed, match=f"{path}: a file that is not ours has come"):
            entry.publish(part, version_of(CONTENT), digest, "fe")
        assert path.read_bytes() == b"an origin"

    def test_A6_finish_leaves_a_part_that_somebody_writes_to(
        self, path: Path, die_at: Callable[[str], None]
    ) -> None:
        """A receiver of the killed fill may have waited for its turn."""
        entry, part, digest = self.begin(path)
        die_at("fill.recorded")
        die(lambda: entry.publish(part, version_of(CONTENT), digest, "fe"))
        die_at("")
        fd = os.open(part, os.O_RDONLY)
        try:
            locks.become_writer(fd, part, 0)
            with pytest.raises(LockTimeout, match="an earlier transfer has not ended"):
                Entry(path).finish()
        finally:
            os.close(fd)
        assert not path.exists()
        Entry(path).finish()
        assert path.read_bytes() == CONTENT

    @pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "digest", "size"])
    def test_A8_only_what_was_received_is_published(self, path: Path, damage: str) -> None:
        entry, part, digest = self.begin(path)
        if damage == "no manifest":
            chunks_of(part).unlink()
        elif damage == "cut manifest":
            os.truncate(chunks_of(part), 31)
        elif damage == "digest":
            digest = "0" * 64
        else:
            os.truncate(part, len(CONTENT) - 1)
        with pytest.raises(CacheFailed, match=str(part)):
            entry.publish(part, version_of(CONTENT), digest, "fe")
        assert not path.exists()
        assert Entry(path).find(version_of(CONTENT)) is None

    @pytest.mark.parametrize("point", ["evict.image", "evict.sidecar"])
    def test_B13_a_kill_while_an_entry_is_dropped(
        self, path: Path, die_at: Callable[[str], None], point: str
    ) -> None:
        entry = fill(path, CONTENT)
        entry.lock.write_text("")
        die_at(point)
        die(entry.drop)
        assert Entry(path).find(version_of(CONTENT)) is None
        assert not path.exists(), "a file without sidecar would pass for an origin"
        die_at("")
        Entry(path).drop()
        assert names(path) == [".0a1b.lock"]


class TestDrop:
    def test_B2_B11_everything_goes_but_the_lock(self, path: Path) -> None:
        entry = fill(path, CONTENT)
        entry.lock.write_text("a holder, present or past")
        inode = entry.lock.stat().st_ino
        part, _ = entry.new_part(seed=True)
        chunks_of(part).write_bytes(b"x")
        neighbour = fill(path.with_name("0a1b.2"), CONTENT)
        entry.drop()
        assert names(path) == [".0a1b.2.sidecar", ".0a1b.lock", "0a1b.2"]
        assert entry.lock.stat().st_ino == inode
        assert neighbour.find(version_of(CONTENT))
        entry.drop()  # and nothing there is fine

    def test_the_image_goes_before_its_sidecar(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = fill(path, CONTENT)
        removed: list[str] = []
        remove = publish.remove

        def note(each: Path) -> bool:
            if os.path.lexists(each):
                removed.append(each.name)
            return remove(each)

        monkeypatch.setattr(publish, "remove", note)
        entry.drop()
        assert removed == ["0a1b", ".0a1b.sidecar"]

    def test_B5_a_disk_that_has_linked_it_keeps_its_base(self, path: Path, tmp_path: Path) -> None:
        entry = fill(path, CONTENT)
        os.link(path, tmp_path / "disk.0.base")
        entry.drop()
        assert (tmp_path / "disk.0.base").read_bytes() == CONTENT

    def test_giving_up_keeps_the_entry(self, path: Path) -> None:
        entry = fill(path, CONTENT)
        part, _ = entry.new_part(seed=True)
        chunks_of(part).write_bytes(b"x")
        entry.give_up()
        assert names(path) == [".0a1b.sidecar", "0a1b"]
        assert entry.find(version_of(CONTENT))


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/d/1/0a1b", True), ("/d/123/x.y_z-1", True), ("/d/1/.hidden", False), ("/d/x/0a", False),
        ("/d/1/2/0a", False), ("/e/1/0a", False), ("/d/1/a b", False), ("/d/1/a\nb", False),
        ("/d/1/0a.image", False), ("/d/1/" + "a" * 152, False), ("/d/1/-o", True),
        ("/d/../1/0a", False), ("/d/1/0a/", True), ("/d/1/ü", False),
    ],
)  # fmt: skip
def test_J4_what_may_have_an_entry(path: str, good: bool) -> None:
    assert entries.may_be_cached(Path(path), Path("/d")) is good


def test_A14_files_beside_an_image_are_not_taken_for_entries(path: Path) -> None:
    for name in ("0a1b", "0a1b.tmp", "0a1b.qcow2", ".0a1b.lock", ".0a1b.manifest", ".monitor"):
        path.with_name(name).write_text("")
    assert entries.names_in(path.parent) == set()
    fill(path.with_name("0c"), CONTENT)
    Entry(path.with_name("0d")).reserve(5)
    path.with_name(f".0e.{'a' * 16}.part").write_text("")
    assert entries.names_in(path.parent) == {"0c", "0d", "0e"}
    assert entries.names_in(path.parent / "missing") == set()


def test_B3_what_vanishes_was_used_just_now(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    age(tmp_path / "x", 500)
    assert entries.last_used(tmp_path / "gone") - entries.last_used(tmp_path / "x") >= 499


def test_record_source_is_kept(path: Path) -> None:
    entry = fill(path, CONTENT)
    found = record.read(entry.sidecar)
    assert found and found.filled > 0 and found.local == Version.of(path.stat())


def refuse(*arguments: object) -> NoReturn:
    raise AssertionError("no data is read for a hit")


def test_A16_a_hit_reads_nothing_but_the_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fill(path, CONTENT)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "pread", refuse)
    assert entry.find(version_of(CONTENT))
