"""agent.cache.scrub: what is found wrong with an entry, and what follows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.cache import record, scrub
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import LockTimeout
from tests.unit.caching import fill, version_of

CONTENT = b"A" * CHUNK + b"B" * CHUNK + bytes(CHUNK) + b"tail"


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return fill(tmp_path / "1" / "0a1b", CONTENT, idle=500)


def flip(path: Path, offset: int) -> None:
    """One byte, with size and time as they were."""
    facts = path.stat()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(facts.st_mode)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_an_intact_entry_stays_and_it_is_written_down(entry: Entry) -> None:
    before = record.read(entry.sidecar)
    used = entry.sidecar.stat().st_mtime_ns
    assert scrub.verify(entry.path, timeout=1) == ""
    after = record.read(entry.sidecar)
    assert before and after
    assert after.verified >= before.verified and after.digest == before.digest
    assert entry.find(version_of(CONTENT))
    assert entry.sidecar.stat().st_mtime_ns == used, "looking at it is no use (B3)"


DAMAGE: dict[str, tuple[Callable[[Entry], None], str]] = {
    "first": (lambda entry: flip(entry.image, 0), "1 of its chunks differ, the first at byte 0"),
    "second": (lambda entry: flip(entry.image, CHUNK + 9), f"the first at byte {CHUNK}"),
    "hole": (lambda entry: flip(entry.image, 2 * CHUNK + 5), f"the first at byte {2 * CHUNK}"),
    "end": (lambda entry: flip(entry.image, len(CONTENT) - 1), f"byte {3 * CHUNK}"),
    "short": (lambda entry: os.truncate(entry.image, 5), "another size"),
    "gone": (lambda entry: entry.image.unlink(), "its file is gone"),
    "touched": (lambda entry: os.utime(entry.image, (1, 1)), "replaced or touched"),
    "sidecar": (lambda entry: os.truncate(entry.sidecar, 9), "its sidecar is damaged"),
    "manifest": (
        lambda entry: flip(entry.sidecar, entry.sidecar.stat().st_size - 1),
        "its manifest is damaged",
    ),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_A8_B12_damage_is_told_and_the_entry_dropped(entry: Entry, kind: str) -> None:
    spoil, expected = DAMAGE[kind]
    spoil(entry)
    assert expected in (scrub.verify(entry.path, timeout=1) or "")
    assert not entry.image.exists() and not entry.sidecar.exists()
    assert entry.lock.exists(), "B11"
    assert scrub.verify(entry.path, timeout=1) is None


def test_B5_disks_with_a_damaged_base_are_counted(entry: Entry, tmp_path: Path) -> None:
    for number in range(3):
        os.link(entry.image, tmp_path / f"disk.{number}.base")
    flip(entry.image, 0)
    found = scrub.verify(entry.path, timeout=1)
    assert found and found.endswith("; 3 disks of VMs have it as their base")


def test_a_foreign_file_is_not_looked_at(tmp_path: Path) -> None:
    origin = tmp_path / "1" / "0a1b"
    origin.parent.mkdir()
    origin.write_bytes(b"an origin")
    assert scrub.verify(origin, timeout=1) is None
    assert origin.read_bytes() == b"an origin"


def test_B4_readers_are_not_held_up_and_a_filler_is_waited_for(entry: Entry) -> None:
    with locks.exclusive(entry.lock, purpose="fill", timeout=1), pytest.raises(LockTimeout):
        scrub.verify(entry.path, timeout=0)


def test_one_that_leaves_meanwhile_is_not_damaged(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(now: Entry, *more: object) -> str:
        entry.drop()
        return "its file is gone"

    monkeypatch.setattr(scrub, "damage", look)
    assert scrub.verify(entry.path, timeout=1) is None


def test_one_filled_anew_meanwhile_is_not_dropped(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, looks = scrub.damage, []

    def look(now: Entry, *more: object) -> str:
        looks.append(now)
        found = damage(now)
        if len(looks) == 1:
            entry.drop()
            fill(entry.path, CONTENT)
        return found

    flip(entry.image, 0)
    monkeypatch.setattr(scrub, "damage", look)
    assert scrub.verify(entry.path, timeout=1) == ""
    assert entry.find(version_of(CONTENT))
