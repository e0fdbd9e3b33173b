"""agent.paths: RESTRICTED_DIRS, SAFE_DIRS, and files directly in a datastore."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from onestor_lib.agent import paths
from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed
from onestor_lib.agent.paths import Rules


def read(path: Path, rules: Rules) -> bytes:
    fd = paths.open_image(str(path), rules, step="stat")
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("sec/x", "secret/x", "a b/x", "s.c/x", "sxc/x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def safe(*directories: Path | str) -> Rules:
    return Rules(restricted=["/"], safe=[str(each) for each in directories])


def test_J7_rules_compare_whole_components(tree: Path) -> None:
    assert read(tree / "sec" / "x", safe(tree / "sec")) == b"sec/x"
    assert read(tree / "sec" / "x", safe(f"{tree}/sec/")) == b"sec/x"
    with pytest.raises(NotAllowed):
        read(tree / "secret" / "x", safe(tree / "sec"))


def test_J7_a_dot_is_no_wildcard_and_a_space_no_separator(tree: Path) -> None:
    assert read(tree / "a b" / "x", safe(tree / "a b")) == b"a b/x"
    for directory in ("sxc", "a b"):
        with pytest.raises(NotAllowed):
            read(tree / directory / "x", safe(tree / "s.c", tree / "a"))


def test_J7_links_and_parent_references_are_resolved_first(tree: Path) -> None:
    (tree / "sec" / "link").symlink_to(tree / "secret" / "x")
    (tree / "sec" / "dir").symlink_to(tree / "secret")
    for path in ("sec/link", "sec/dir/x", "sec/../secret/x", "sec//..//secret/x"):
        with pytest.raises(NotAllowed):
            read(tree / path, safe(tree / "sec"))
    (tree / "good").symlink_to(tree / "sec")
    assert read(tree / "secret" / ".." / "good" / "x", safe(tree / "good")) == b"sec/x"


def test_J7_only_restricted_directories_are_refused(tree: Path) -> None:
    rules = Rules(restricted=[str(tree / "secret")], safe=[])
    assert read(tree / "sec" / "x", rules) == b"sec/x"
    with pytest.raises(NotAllowed):
        read(tree / "secret" / "x", rules)


def test_J8_nothing_is_told_about_a_restricted_file(tree: Path) -> None:
    (tree / "secret" / "fifo").mkdir()
    for name in ("x", "fifo", "missing"):
        path = tree / "secret" / name
        with pytest.raises(NotAllowed) as refusal:
            read(path, safe(tree / "sec"))
        assert str(refusal.value).replace(str(path), "P") == (
            f"stat P: / is in RESTRICTED_DIRS and SAFE_DIRS allows only {tree}/sec"
        )


def test_J14_the_message_names_path_rule_and_attribute(tree: Path) -> None:
    rules = Rules(restricted=["/nowhere", str(tree)], safe=[])
    expected = f"stat {tree}/sec/x: {tree} is in RESTRICTED_DIRS and SAFE_DIRS allows only no "
    with pytest.raises(NotAllowed, match=re.escape(expected)):
        read(tree / "sec" / "x", rules)


def test_J9_the_open_file_is_checked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link swapped between the check of the name and the opening of the file."""
    link = tree / "sec" / "link"
    link.symlink_to(tree / "sec" / "x")
    first_look = os.path.realpath

    def realpath_then_swap(path: str) -> str:
        found = first_look(path)
        if path == str(link):
            link.unlink()
            link.symlink_to(tree / "secret" / "x")
        return found

    monkeypatch.setattr(os.path, "realpath", realpath_then_swap)
    with pytest.raises(NotAllowed):
        read(link, safe(tree / "sec"))


def test_H28_missing_and_odd_files_are_named(tree: Path) -> None:
    rules = safe(tree)
    with pytest.raises(Missing, match="no such file"):
        read(tree / "missing", rules)
    os.mkfifo(tree / "fifo")
    for path in (tree / "fifo", tree / "sec"):
        with pytest.raises(InvalidInput, match="not a regular file"):
            read(path, rules)
    with pytest.raises(InvalidInput, match="not an absolute path"):
        read(Path("sec/x"), rules)


def test_refused_files_do_not_stay_open(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InvalidInput):
            read(tree / "fifo", safe(tree))
    assert len(os.listdir("/proc/self/fd")) == before


class TestInside:
    """Which paths datastore rm accepts."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        base = tmp_path / "datastores" / "1"
        base.mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "datastores")
        return base

    @pytest.mark.parametrize(
        "path",
        ["datastores/1/i", "datastores//1///i", "datastores/1/./i", "datastores/1/../1/i",
         "link/1/i"],
    )  # fmt: skip
    def test_H7_normalised_real_paths_are_compared(self, base: Path, path: str) -> None:
        for given in (str(base), f"{base}/", str(base).replace("/1", "//1")):
            found = paths.inside(f"{base.parent.parent}/{path}", given, step="rm")
            assert found == base / "i"

    @pytest.mark.parametrize(
        "path",
        ["1", "1/", "1/.", "1/..", "2/i", "1/sub/i", "1/../2/i", "1/i/..", "1/.lock", "i", "", "/"],
    )
    def test_H7_what_is_outside_the_base_is_refused(self, base: Path, path: str) -> None:
        with pytest.raises(NotAllowed, match="not an image in"):
            paths.inside(f"{base.parent}/{path}" if path != "/" else "/", str(base), step="rm")

    def test_an_image_that_is_a_link_is_judged_by_its_own_name(self, base: Path) -> None:
        (base / "i").symlink_to("/etc/hostname")
        assert paths.inside(f"{base}/i", str(base), step="rm") == base / "i"
