"""agent.cache.record: what is damaged counts as nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import publish
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.record import Record
from onestor_lib.agent.chunks import CHUNK, Manifest
from onestor_lib.agent.version import Version

SIZE = 2 * CHUNK + 5
MANIFEST = Manifest(SIZE, b"a" * 32 + bytes(32) + b"c" * 32)
RECORD = Record(
    Version(SIZE, 1_700_000_000_123_456_789, 42),
    MANIFEST.digest(),
    Version(SIZE, 5, 6),
    "fe",
    filled=7,
    verified=8,
)


@pytest.fixture
def sidecar(tmp_path: Path) -> Path:
    path = tmp_path / ".0a.sidecar"
    RECORD.write(path, MANIFEST)
    return path


def test_what_is_written_is_read(sidecar: Path) -> None:
    found = record.read(sidecar)
    assert found == RECORD
    manifest = record.read_manifest(sidecar, RECORD)
    assert manifest and manifest.to_bytes() == MANIFEST.to_bytes()


def test_A9_a_record_cut_anywhere_never_lies(sidecar: Path) -> None:
    """A record is read whole or not at all, and so is the manifest behind it."""
    content = sidecar.read_bytes()
    line_end = content.index(b"\n") + 1
    for length in range(len(content)):
        sidecar.write_bytes(content[:length])
        assert record.read(sidecar) == (RECORD if length >= line_end else None)
        assert record.read_manifest(sidecar, RECORD) is None
    sidecar.write_bytes(content + b"x")
    assert record.read_manifest(sidecar, RECORD) is None, "nor with more than belongs there"


@given(st.binary(max_size=300))
def test_A9_garbage_counts_as_nothing(content: bytes) -> None:
    fd = os.memfd_create("sidecar")
    try:
        os.write(fd, content)
        path = Path(f"/proc/self/fd/{fd}")
        assert record.read(path) is None
        assert record.read_manifest(path, RECORD) is None
    finally:
        os.close(fd)


FACTS: dict[str, Any] = {
    "version": {"size": 1, "mtime_ns": 2, "inode": 3}, "digest": "d",
    "local": {"size": 1, "mtime_ns": 2, "inode": 3}, "source": "fe", "filled": 1, "verified": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"version": None}, {"version": {}}, {"version": []}, {"version": "1"},
        {"version": {"size": 1, "mtime_ns": 2}},
        {"version": {"size": 1, "mtime_ns": 2, "inode": "3"}}, {"filled": float("inf")},
        {"version": {"size": 1, "mtime_ns": 2.0, "inode": 3}},
        {"version": {"size": True, "mtime_ns": 2, "inode": 3}},
        {"version": {"size": None, "mtime_ns": None, "inode": None}},
        {"local": None}, {"local": {}}, {"filled": "soon"}, {"filled": None}, {"verified": []},
    ],
)  # fmt: skip
def test_A9_other_types_count_as_nothing(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "sidecar"
    path.write_bytes(json.dumps(FACTS).encode() + b"\n")
    assert record.read(path), "it is the change that makes it unreadable"
    path.write_bytes(json.dumps({**FACTS, **changed}).encode() + b"\n")
    assert record.read(path) is None


@pytest.mark.parametrize("missing", sorted(FACTS))
def test_A9_a_missing_fact_counts_as_nothing(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "sidecar"
    path.write_bytes(json.dumps({k: v for k, v in FACTS.items() if k != missing}).encode() + b"\n")
    assert record.read(path) is None


@pytest.mark.parametrize("line", [b"[]\n", b"null\n", b"1\n", b'"x"\n', b"[" * 4000 + b"\n"])
def test_A9_json_of_another_shape_counts_as_nothing(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "sidecar"
    path.write_bytes(line)
    assert record.read(path) is None


def test_A9_what_cannot_be_opened_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "directory", "loop"):
        assert record.read(tmp_path / name) is None
        assert record.read_manifest(tmp_path / name, RECORD) is None


def test_A9_a_manifest_that_is_not_the_recorded_one_counts_as_none(sidecar: Path) -> None:
    content = bytearray(sidecar.read_bytes())
    content[-1] ^= 1
    sidecar.write_bytes(content)
    assert record.read(sidecar) == RECORD, "it is enough for a hit"
    assert record.read_manifest(sidecar, RECORD) is None


def test_A10_a_kill_while_writing_leaves_the_old_record(
    sidecar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *arguments: object) -> NoReturn:
        assert path != sidecar, "the record itself is never open for writing"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        RECORD._replace(source="other").write(sidecar, MANIFEST)
    assert record.read(sidecar) == RECORD
    assert publish.is_temporary("." + sidecar.name) is False


@pytest.mark.parametrize("fact", ["size", "mtime_ns", "inode"])
def test_A10_a_record_is_bound_to_size_time_and_inode(tmp_path: Path, fact: str) -> None:
    file = tmp_path / "0a"
    file.write_bytes(b"x" * 10)
    local = Version.of(file.stat())
    kept = RECORD._replace(local=local)
    assert kept.describes(file)
    other = local._replace(**{fact: getattr(local, fact) + 1})
    assert other != local
    assert not RECORD._replace(local=other).describes(file)


def test_A7_a_record_describes_no_missing_file_and_no_link(tmp_path: Path) -> None:
    file = tmp_path / "0a"
    file.write_bytes(b"x")
    kept = RECORD._replace(local=Version.of(file.stat()))
    (tmp_path / "link").symlink_to(file)
    assert not kept.describes(tmp_path / "link")
    file.unlink()
    assert not kept.describes(file)


def test_versions_survive_json() -> None:
    version = Version(1 << 50, 1 << 62, 1 << 63)
    assert Version.from_json(json.loads(json.dumps(version.to_json()))) == version
