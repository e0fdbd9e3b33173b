"""agent.publish: files that appear whole or not at all, and sweeping. Crashes: see tests/tool."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from onestor_lib.agent import publish
from onestor_lib.agent.errors import Terminated
from onestor_lib.agent.publish import Temporary

DEAD_PID = 1 << 22  # never given out: above the largest pid_max


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def foreign(name: str, **parts: str) -> str:
    """A temporary's name with parts of its owner replaced."""
    match = publish._NAME.match(publish.temporary_name(name))
    assert match
    owner = {**match.groupdict(), **parts}
    return ".{final}.{host}-{boot}-{pid}-{start}-0123456789abcdef.tmp".format(**owner)


def test_published_content_is_complete_and_has_its_mode(tmp_path: Path) -> None:
    final = tmp_path / "disk 0*"
    with Temporary(final) as temporary:
        assert not final.exists()
        assert stat.S_IMODE(temporary.path.stat().st_mode) == 0o600
        temporary.path.write_text("content")
        temporary.publish(mode=0o640)
    assert names(tmp_path) == ["disk 0*"]
    assert final.read_text() == "content"
    assert stat.S_IMODE(final.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError, Terminated, KeyboardInterrupt])
def test_K15_an_unpublished_temporary_goes_with_its_block(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), Temporary(tmp_path / "disk.0"):
        raise error
    with pytest.raises(error), publish.temporary_directory(tmp_path / "disk.0.snap") as directory:
        (directory / "0").write_text("")
        raise error
    assert names(tmp_path) == []


def test_A6_nobody_who_knew_its_name_finds_a_temporary_that_was_renewed(tmp_path: Path) -> None:
    with Temporary(tmp_path / "disk.0") as temporary:
        before = temporary.path
        before.write_text("content")
        temporary.renew()
        assert names(tmp_path) == [temporary.path.name] != [before.name]
        assert publish.is_temporary(temporary.path.name)
        assert {before, temporary.path} & publish._unfinished == {temporary.path}
        temporary.publish()
    assert names(tmp_path) == ["disk.0"]
    with pytest.raises(ValueError), Temporary(tmp_path / "disk.1") as temporary:
        temporary.renew()
        raise ValueError
    assert names(tmp_path) == ["disk.0"]


def test_an_existing_name_is_replaced_only_on_request(tmp_path: Path) -> None:
    final = tmp_path / "disk.0"
    final.write_text("old")
    with Temporary(final) as temporary, pytest.raises(FileExistsError):
        temporary.publish()
    assert (names(tmp_path), final.read_text()) == (["disk.0"], "old")
    publish.write_file(final, b"new")
    assert (names(tmp_path), final.read_text()) == (["disk.0"], "new")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*arguments: object, **options: object) -> NoReturn:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", link)
    for expected in ([], [FileExistsError]):
        with Temporary(tmp_path / "disk.0") as temporary:
            if expected:
                with pytest.raises(FileExistsError):
                    temporary.publish()
            else:
                temporary.publish()
    assert names(tmp_path) == ["disk.0"]


def test_A10_content_is_synced_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def note(module: Any, name: str, say: Callable[..., str]) -> None:
        real = getattr(module, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            events.append(say(*arguments))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, noted)

    def of(fd: int) -> str:
        return "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    note(os, "fsync", lambda fd: f"sync {of(fd)}")
    note(os, "fchmod", lambda fd, mode: "mode")
    note(os, "link", lambda old, new: "name")
    note(Path, "rename", lambda old, new: "name")
    with Temporary(tmp_path / "disk.0") as temporary:
        temporary.publish()
    publish.write_file(tmp_path / "disk.0", b"")
    assert events == ["mode", "sync file", "name", "sync directory"] * 2


def test_J12_names_are_unpredictable_and_never_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({publish.temporary_name("disk.0") for _ in range(100)}) == 100
    target = tmp_path / "target"
    target.write_text("untouched")
    planted = tmp_path / publish.temporary_name("disk.0")
    planted.symlink_to(target)
    monkeypatch.setattr(publish, "temporary_name", lambda final: planted.name)
    with pytest.raises(FileExistsError):
        Temporary(tmp_path / "disk.0")
    assert target.read_text() == "untouched"
    assert planted.is_symlink()


def test_J12_a_temporary_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    target.chmod(0o600)
    with Temporary(tmp_path / "disk.0") as temporary:
        temporary.path.unlink()
        temporary.path.symlink_to(target)
        with pytest.raises(OSError, match="symbolic links"):
            temporary.publish(mode=0o666)
    assert names(tmp_path) == ["target"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_K16_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = [
        foreign("disk.0", pid=str(DEAD_PID)),
        foreign("disk.1", start="1"),  # the process id was given out again
        foreign("disk.2", boot="00000000"),  # the machine was started anew
    ]
    kept = [
        foreign("disk.3"),
        foreign("disk.4", host="other", pid=str(DEAD_PID)),
        ".disk.5.tmp", "disk.6.tmp", ".disk.0.lock", ".disk.0.2026Z-1.unknown", "disk.0",
    ]  # fmt: skip
    for name in dead + kept:
        (tmp_path / name).write_text("")
    directory = tmp_path / foreign("8", pid=str(DEAD_PID))
    (directory / "sub").mkdir(parents=True)
    assert sorted(publish.sweep(tmp_path)) == ["8", "disk.0", "disk.1", "disk.2"]
    assert names(tmp_path) == sorted(kept)
    assert publish.sweep(tmp_path) == []


def test_sweeping_never_fails_its_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert publish.sweep(tmp_path / "missing") == []
    (tmp_path / foreign("disk.0", pid=str(DEAD_PID))).write_text("")

    def fail(path: Path) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(publish, "remove", fail)
    assert publish.sweep(tmp_path) == []


def test_clean_up_never_hides_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> NoReturn:
        raise OSError(errno.EIO, "clean-up failed")

    monkeypatch.setattr(publish, "remove", fail)
    with pytest.raises(ValueError, match="first"), Temporary(tmp_path / "disk.0"):
        raise ValueError("first")


def test_K15_the_last_resort_of_a_terminated_process(tmp_path: Path) -> None:
    Temporary(tmp_path / "disk.0")  # a signal between two instructions: no block was entered
    assert len(names(tmp_path)) == 1
    publish.discard_unfinished()
    assert names(tmp_path) == []


def test_is_temporary() -> None:
    assert publish.is_temporary(publish.temporary_name("disk.0"))
    for name in ("disk.0", ".disk.0.record", ".disk.0.lock", ".x.tmp"):
        assert not publish.is_temporary(name)
    assert re.fullmatch(r"\.disk\.0\..+\.tmp", publish.temporary_name("disk.0"))


class TestRemove:
    def test_what_is_not_there_is_no_error(self, tmp_path: Path) -> None:
        assert publish.remove(tmp_path / "x") is False
        assert publish.remove(tmp_path / "x" / "y") is False

    def test_links_are_removed_and_never_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        (outside / "sub").mkdir(parents=True)
        (outside / "file").write_text("kept")
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        targets = [outside, outside / "file", Path("missing"), tree]
        for number, target in enumerate(targets):
            (tree / "sub" / f"link{number}").symlink_to(target)
        (tmp_path / "link").symlink_to(outside)
        for name in ("tree", "link"):
            assert publish.remove(tmp_path / name) is True
        assert names(tmp_path) == ["outside"]
        assert names(outside) == ["file", "sub"]

    def test_a_directory_somebody_writes_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        rmdir, late = os.rmdir, ["a", "b"]

        def rmdir_too_late(path: str, **options: Any) -> None:
            if late:
                (tree / late.pop()).write_text("")
            rmdir(path, **options)

        monkeypatch.setattr(os, "rmdir", rmdir_too_late)
        assert publish.remove(tree) is True
        assert names(tmp_path) == []
        tree.mkdir()
        late.extend("abcdefgh")
        with pytest.raises(OSError, match="not empty"):
            publish.remove(tree)
