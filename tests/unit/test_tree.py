"""agent.tree: what another machine says is in a directory leads nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import tree
from onestor_lib.agent.errors import InvalidInput, NotAllowed
from onestor_lib.agent.tree import DIRECTORY, FILE, LINK, SAME, Item


def test_a_directory_made_again_is_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "disk.0.snap").mkdir(parents=True)
    (one / "disk.0").write_bytes(b"overlay")
    (one / "disk.0.snap/disk.0.base").symlink_to("../disk.0.base")
    (one / "disk.0.base").write_bytes(b"base")
    os.link(one / "disk.0.base", one / "disk.1.base")
    (one / ".disk.0.lock").write_bytes(b"")
    (one / tree.marker_name()).write_bytes(b"")
    os.mkfifo(one / "backup.socket")
    items = tree.from_json([list(item) for item in tree.listing(one)])
    assert [item.path for item in items] == [
        "disk.0.base", "disk.1.base", "disk.0", "disk.0.snap", "disk.0.snap/disk.0.base"
    ]  # fmt: skip
    assert items[1] == Item("disk.1.base", SAME, target="disk.0.base")
    two.mkdir()
    tree.make(two, items)
    for item in items:
        if item.kind == FILE:
            (two / item.path).write_bytes((one / item.path).read_bytes())
    tree.complete(two, items)
    assert (two / "disk.1.base").samefile(two / "disk.0.base")
    assert os.readlink(two / "disk.0.snap/disk.0.base") == "../disk.0.base"


@pytest.mark.parametrize("change", ["shorter", "missing", "more"])
def test_D7_what_is_not_what_was_sent(tmp_path: Path, change: str) -> None:
    (tmp_path / "disk.0").write_bytes(b"content")
    items = tree.listing(tmp_path)
    if change == "more":
        (tmp_path / "disk.1").write_bytes(b"")
    elif change == "shorter":
        (tmp_path / "disk.0").write_bytes(b"cont")
    else:
        items.append(Item("disk.2", LINK, target="disk.0"))
    with pytest.raises(NotAllowed, match="not what was sent"):
        tree.complete(tmp_path, items)


def test_two_files_of_equal_content_may_arrive_as_one(tmp_path: Path) -> None:
    """Two bases with one digest are both links to the one entry of the target's cache."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    for name in ("disk.0.base", "disk.1.base"):
        (one / name).write_bytes(b"base")
    items = tree.listing(one)
    assert [item.kind for item in items] == [FILE, FILE]
    two.mkdir()
    (two / "disk.0.base").write_bytes(b"base")
    os.link(two / "disk.0.base", two / "disk.1.base")
    tree.complete(two, items)


def test_what_is_left_out_is_no_other_name_of_anything(tmp_path: Path) -> None:
    """A disk that was set aside shares its base, and its name would come first."""
    aside = tmp_path / ".disk.1.20260101T000000Z-1.unknown"
    aside.mkdir()
    (aside / "disk.1.base").write_bytes(b"base")
    os.link(aside / "disk.1.base", tmp_path / "disk.0.base")
    (kept,) = tree.listing(tmp_path, lambda path: path.startswith("disk."))
    assert (kept.path, kept.kind) == ("disk.0.base", FILE)
    assert [item.path for item in tree.listing(tmp_path) if item.kind == FILE] == ["disk.0.base"]


def test_D7_a_write_of_the_same_size_is_a_change_and_other_blocks_are_none(tmp_path: Path) -> None:
    file = tmp_path / "disk.0"
    file.write_bytes(bytes(1 << 20))
    (before,) = tree.listing(tmp_path)
    assert before.is_unchanged(before._replace(allocated=4096))
    with file.open("r+b") as changed:
        changed.write(b"x")
    os.utime(file, ns=(0, before.mtime + 1))
    (now,) = tree.listing(tmp_path)
    assert not before.is_unchanged(now) and not before.is_unchanged(None)


@pytest.mark.parametrize(
    "items",
    [
        [("../up", FILE)], [("/etc/passwd", FILE)], [("a/b", FILE)], [("", FILE)], [(".", FILE)],
        [("a", LINK), ("a/b", FILE)], [("a", FILE), ("a/b", FILE)], [("a\0b", FILE)],
        [("a", DIRECTORY), ("a/..", FILE)], [("a", SAME)],
    ],
)  # fmt: skip
def test_names_that_lead_out_of_it(items: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInput, match="is no path in it"):
        tree.from_json([list(Item(*item, target="/etc")) for item in items])


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from([DIRECTORY, FILE, LINK, SAME]))))
def test_nothing_that_is_let_through_leaves_the_directory(items: list[Any]) -> None:
    try:
        found = tree.from_json([list(Item(*item)) for item in items])
    except InvalidInput:
        return
    links = {item.path for item in found if item.kind == LINK}
    for item in found:
        path = os.path.normpath(f"/d/{item.path}")
        assert path.startswith("/d/")
        assert not any(item.path.startswith(f"{link}/") for link in links)


def test_D11_links_that_name_the_directory_lead_into_it(tmp_path: Path) -> None:
    where = tmp_path / "7"
    (where / "disk.0.snap").mkdir(parents=True)
    (where / "disk.0").symlink_to(str(where).replace("/7", "//7") + "/disk.0.snap/base.1")
    (where / "disk.0.snap/self").symlink_to(where / "disk.0.snap")
    (where / "disk.1").symlink_to("/elsewhere")
    tree.make_links_relative(where)
    assert os.readlink(where / "disk.0") == "disk.0.snap/base.1"
    assert os.readlink(where / "disk.0.snap/self") == "."
    assert os.readlink(where / "disk.1") == "/elsewhere"
