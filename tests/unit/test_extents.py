"""agent.extents: data and holes of real files. Reflinks and other file systems: tests/tool."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import extents
from onestor_lib.agent.chunks import CHUNK

BLOCK = 1 << 16


class Sparse:
    """A file of data blocks (any letter) and holes ("-")."""

    def __init__(self, path: Path, pattern: str, tail: bytes = b"") -> None:
        self.size = len(pattern) * BLOCK + len(tail)
        self.path = path
        with path.open("wb") as file:
            for index, letter in enumerate(pattern):
                if letter != "-":
                    os.pwrite(file.fileno(), letter.encode() * BLOCK, index * BLOCK)
            os.pwrite(file.fileno(), tail, self.size - len(tail))
            file.truncate(self.size)
        self.fd = os.open(path, os.O_RDWR)


def not_supported(*arguments: object) -> NoReturn:
    raise OSError(errno.EXDEV, "")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[Sparse]]:
    files: list[Sparse] = []
    yield files
    for file in files:
        os.close(file.fd)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("", []), ("--", []), ("A", [(0, 1)]), ("-A-BB", [(1, 2), (3, 5)]), ("A--", [(0, 1)])],
)
def test_data_extents(
    tmp_path: Path, opened: list[Sparse], pattern: str, expected: list[tuple[int, int]]
) -> None:
    file = Sparse(tmp_path / "f", pattern)
    opened.append(file)
    found = list(extents.data(file.fd, file.size))
    assert found == [(start * BLOCK, end * BLOCK) for start, end in expected]


def test_data_chunks_come_once_each(tmp_path: Path, opened: list[Sparse]) -> None:
    file = Sparse(tmp_path / "f", "A-A" + "-" * 13 + "-" * 16 + "-" * 15 + "A" + "A", b"tail")
    opened.append(file)
    assert list(extents.data_chunks(file.fd, file.size)) == [0, 2, 3]


def test_without_SEEK_DATA_everything_may_be_data(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Sparse(tmp_path / "f", "-A-")
    opened.append(file)

    def lseek(fd: int, position: int, how: int) -> NoReturn:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(extents.data(file.fd, file.size)) == [(0, file.size)]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kernel", ["copies", "cannot copy"])
@pytest.mark.parametrize("pattern", ["", "A", "-", "A-B--", "--A"])
def test_C4_copies_are_identical_and_keep_or_fill_holes(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch,
    sparse: bool, kernel: str, pattern: str,
) -> None:  # fmt: skip
    source, target = Sparse(tmp_path / "s", pattern, b"tail"), Sparse(tmp_path / "t", "")
    opened += [source, target]
    if kernel == "cannot copy":
        monkeypatch.setattr(os, "copy_file_range", not_supported)
    extents.copy(source.fd, target.fd, source.size, sparse=sparse)
    assert target.path.read_bytes() == source.path.read_bytes()
    holes = pattern.count("-") * BLOCK
    allocated = target.path.stat().st_blocks * 512
    if sparse:
        assert allocated <= source.size - holes + 4096
    else:
        assert allocated >= source.size


def test_errors_other_than_not_supported_are_raised(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = Sparse(tmp_path / "s", "A"), Sparse(tmp_path / "t", "")
    opened += [source, target]

    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="full"):
        extents.copy(source.fd, target.fd, source.size, sparse=True)
    monkeypatch.setattr("fcntl.ioctl", full)
    with pytest.raises(OSError, match="full"):
        extents.reflink(source.fd, target.fd)


@pytest.mark.parametrize("kernel", ["copies", "cannot copy"])
def test_a_source_that_became_shorter_ends_the_copy(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    source, target = Sparse(tmp_path / "s", "AB"), Sparse(tmp_path / "t", "")
    opened += [source, target]
    if kernel == "cannot copy":
        monkeypatch.setattr(os, "copy_file_range", not_supported)

    def data(fd: int, size: int) -> Iterator[tuple[int, int]]:
        os.truncate(source.path, BLOCK)  # just after its extents were looked up
        yield 0, size

    monkeypatch.setattr(extents, "data", data)
    with pytest.raises(OSError, match="became shorter") as failure:
        extents.copy(source.fd, target.fd, source.size, sparse=False)
    assert failure.value.errno == errno.EIO


def test_A22_a_kernel_that_says_it_copied_nothing(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    """copy_file_range(2) gives 0 at the end of a file, and on some file systems before it."""
    source, target = Sparse(tmp_path / "s", "A-BC", b"tail"), Sparse(tmp_path / "t", "")
    opened += [source, target]
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    extents.copy(source.fd, target.fd, source.size, sparse=True)
    assert target.path.read_bytes() == source.path.read_bytes()
    assert target.path.stat().st_blocks * 512 <= 3 * BLOCK + 4096


@given(st.binary(max_size=100), st.integers(0, 120), st.integers(0, 120))
def test_read_exactly(content: bytes, count: int, offset: int) -> None:
    fd = os.memfd_create("content")
    try:
        os.write(fd, content)
        assert extents.read_exactly(fd, count, offset) == content[offset : offset + count]
    finally:
        os.close(fd)


def test_write_chunk_writes_zeros_too(tmp_path: Path, opened: list[Sparse]) -> None:
    """Where there was data before, a chunk of zeros has to replace it."""
    file = Sparse(tmp_path / "f", "A")
    opened.append(file)
    extents.write_chunk(file.fd, 0, bytes(BLOCK))
    assert file.path.read_bytes() == bytes(BLOCK)


def test_write_chunk_writes_all(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pwrite(2) may write less than it was given."""
    file, pwrite = Sparse(tmp_path / "f", ""), os.pwrite
    opened.append(file)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    extents.write_chunk(file.fd, 3, b"more than seven bytes")
    assert file.path.read_bytes() == bytes(3) + b"more than seven bytes"


PAGE = extents.PAGE


@given(
    st.lists(st.sampled_from([bytes(PAGE), b"A" * PAGE, bytes(PAGE - 1) + b"B"]), max_size=12),
    st.binary(max_size=PAGE - 1),
)
def test_A20_scattered_data_does_not_grow_to_whole_chunks(pages: list[bytes], tail: bytes) -> None:
    """Only pages with data are written; what is read back is the block all the same."""
    block, written = b"".join(pages) + tail, 0
    fd = os.memfd_create("target")
    try:
        os.ftruncate(fd, len(block) + PAGE)
        extents.write_data(fd, PAGE, block)
        written = os.fstat(fd).st_blocks * 512
        assert os.pread(fd, len(block) + PAGE, 0) == bytes(PAGE) + block
    finally:
        os.close(fd)
    with_data = sum(any(page) for page in pages) + (1 if tail else 0)
    assert written <= with_data * PAGE


def test_A20_data_on_the_disk_takes_the_pages_it_has(tmp_path: Path, opened: list[Sparse]) -> None:
    file = Sparse(tmp_path / "f", "-" * (CHUNK // BLOCK))
    opened.append(file)
    block = bytearray(CHUNK)
    block[5 * PAGE : 6 * PAGE] = b"x" * PAGE
    block[-1] = 1
    extents.write_data(file.fd, 0, block)
    os.fsync(file.fd)
    assert file.path.read_bytes() == block
    assert file.path.stat().st_blocks * 512 <= 2 * PAGE


@pytest.mark.parametrize("block", [b"", b"x", bytes(PAGE), bytes(PAGE) + b"x", b"x" * PAGE * 3])
def test_A20_blocks_at_the_end_of_a_file(
    tmp_path: Path, opened: list[Sparse], block: bytes
) -> None:
    file = Sparse(tmp_path / "f", "")
    opened.append(file)
    os.ftruncate(file.fd, len(block))
    extents.write_data(file.fd, 0, block)
    assert file.path.read_bytes() == block


def test_A22_holes_are_not_guessed_from_allocated_blocks(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems report no blocks for fresh data: its chunks are found all the same."""
    file, fstat = Sparse(tmp_path / "f", "A-"), os.fstat
    opened.append(file)

    def no_blocks(fd: int) -> os.stat_result:
        facts = list(fstat(fd))
        return os.stat_result(facts, {"st_blocks": 0})

    monkeypatch.setattr(os, "fstat", no_blocks)
    assert os.fstat(file.fd).st_blocks == 0
    assert list(extents.data_chunks(file.fd, file.size)) == [0]


def test_A22_what_to_write_is_not_asked_of_the_file_system(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that calls fresh data a hole must not make us leave out anything."""
    file = Sparse(tmp_path / "f", "-")
    opened.append(file)

    def all_holes(fd: int, position: int, how: int) -> NoReturn:
        raise OSError(errno.ENXIO, "")

    monkeypatch.setattr(os, "lseek", all_holes)
    block = bytes(PAGE) + b"data" * 1000 + bytes(PAGE)
    extents.write_data(file.fd, 0, block)
    extents.write_chunk(file.fd, len(block), b"more")
    assert file.path.read_bytes()[: len(block) + 4] == block + b"more"


def allocated(file: Sparse) -> int:
    os.fsync(file.fd)
    return os.fstat(file.fd).st_blocks * 512


def test_A20_what_becomes_zeros_becomes_a_hole(tmp_path: Path, opened: list[Sparse]) -> None:
    file = Sparse(tmp_path / "f", "ABC")
    opened.append(file)
    before = allocated(file)
    extents.clear(file.fd, BLOCK, BLOCK)
    assert file.path.read_bytes() == b"A" * BLOCK + bytes(BLOCK) + b"C" * BLOCK
    assert allocated(file) == before - BLOCK


def test_A20_what_is_written_over_data_leaves_holes_where_it_is_zeros(
    tmp_path: Path, opened: list[Sparse]
) -> None:
    file = Sparse(tmp_path / "f", "ABC")
    opened.append(file)
    before = allocated(file)
    block = b"x" * extents.PAGE + bytes(BLOCK - 2 * extents.PAGE) + b"y" * extents.PAGE
    extents.overwrite(file.fd, BLOCK, block)
    assert file.path.read_bytes() == b"A" * BLOCK + block + b"C" * BLOCK
    assert allocated(file) == before - BLOCK + 2 * extents.PAGE
    extents.overwrite(file.fd, BLOCK, b"z" * BLOCK)
    assert file.path.read_bytes() == b"A" * BLOCK + b"z" * BLOCK + b"C" * BLOCK


def test_A20_where_holes_cannot_be_made_the_content_is_right(
    tmp_path: Path, opened: list[Sparse], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "_punch", lambda *arguments: False)
    file = Sparse(tmp_path / "f", "ABC")
    opened.append(file)
    block = b"x" * extents.PAGE + bytes(BLOCK - extents.PAGE)
    extents.clear(file.fd, 0, BLOCK)
    extents.overwrite(file.fd, BLOCK, block)
    assert file.path.read_bytes() == bytes(BLOCK) + block + b"C" * BLOCK


def test_A20_nothing_is_punched_beside_what_was_asked(tmp_path: Path, opened: list[Sparse]) -> None:
    """The last chunk of a file may end anywhere; its size stays."""
    file = Sparse(tmp_path / "f", "AB", b"tail")
    opened.append(file)
    extents.clear(file.fd, BLOCK, BLOCK + 4)
    assert file.path.read_bytes() == b"A" * BLOCK + bytes(BLOCK + 4)
