"""agent.vm_directory: names in the VM directory, records, and removal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from onestor_lib.agent import publish, vm_directory
from onestor_lib.agent.errors import Terminated


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_records_survive_and_damage_counts_as_none(tmp_path: Path) -> None:
    disk = tmp_path / "disk.0"
    assert vm_directory.read_record(disk) == {}
    vm_directory.write_record(disk, {"vm": 7, "image": "ü"})
    assert vm_directory.read_record(disk) == {"vm": 7, "image": "ü"}
    for damage in (b"", b"[1]", b"{", b"\xff"):
        vm_directory.record_path(disk).write_bytes(damage)
        assert vm_directory.read_record(disk) == {}


def test_G1_which_placement_of_the_vm_made_what_is_there(tmp_path: Path) -> None:
    """A directory that is gone, or has no records, is of none: nobody made anything there."""
    directory = tmp_path / "7"
    for place in (directory, directory / "disk.0"):
        assert vm_directory.placement(place) == -1
    directory.mkdir()
    (directory / "disk.0").write_text("")
    assert vm_directory.placement(directory) == -1
    for disk, placement in (("disk.0", "5"), ("disk.1", "3")):
        (directory / disk).write_text("")
        vm_directory.write_record(directory / disk, {"sequence": placement})
    assert vm_directory.placement(directory) == 5
    assert vm_directory.placement(directory / "disk.1") == 3
    vm_directory.record_path(directory / "disk.1").write_text("damaged")
    assert vm_directory.placement(directory) == sys.maxsize


@pytest.mark.parametrize("name", [vm_directory.DRIVER, vm_directory.REPLICA])
@pytest.mark.parametrize("before", [None, b"", b"ssh\n", b"onestor\n", b"replica\n"])
def test_trap44_L2_the_marker_says_whose_directory_it_is_and_is_never_empty(
    tmp_path: Path, before: bytes | None, name: str
) -> None:
    marker = tmp_path / ".monitor"
    if before is not None:
        marker.write_bytes(before)
    inode = marker.stat().st_ino if before else 0
    vm_directory.mark(tmp_path, name)
    wanted = f"{name}\n".encode()
    assert marker.read_bytes() == wanted
    if before == wanted:
        assert marker.stat().st_ino == inode, "written only when it has to be"


def test_L2_the_markers_are_those_of_the_stock_probe() -> None:
    assert (vm_directory.DRIVER, vm_directory.REPLICA) == ("onestor", "replica")


def test_C2_a_failure_leaves_no_new_directory_behind(tmp_path: Path) -> None:
    directory = tmp_path / "100" / "7"
    lock = vm_directory.lock(directory / "disk.0", purpose="test", timeout=1)
    with pytest.raises(ValueError), vm_directory.created(directory), lock:
        vm_directory.mark(tmp_path / "100", vm_directory.DRIVER)
        raise ValueError
    assert names(tmp_path) == []


def test_B11_a_failure_leaves_the_lock_of_another_disk(tmp_path: Path) -> None:
    lock = vm_directory.lock(tmp_path / "7" / "disk.0", purpose="test", timeout=1)
    with pytest.raises(ValueError), vm_directory.created(tmp_path / "7"), lock:
        (tmp_path / "7" / ".disk.1.lock").write_text("")
        raise ValueError
    assert ".disk.1.lock" in names(tmp_path / "7")


def test_what_was_there_survives_a_failure(tmp_path: Path) -> None:
    directory = tmp_path / "100" / "7"
    directory.mkdir(parents=True)
    (directory / "disk.1").write_text("")
    (tmp_path / "100" / "8").mkdir()
    with pytest.raises(Terminated), vm_directory.created(directory):
        raise Terminated
    assert names(tmp_path / "100") == ["7", "8"]
    assert names(directory) == ["disk.1"]


def test_C14_what_is_set_aside_is_kept_under_a_name_nobody_touches(tmp_path: Path) -> None:
    disk = tmp_path / "disk.0"
    disk.write_text("old")
    aside = vm_directory.set_aside(disk)
    disk.rename(aside / disk.name)
    assert names(tmp_path) == [aside.name]
    assert aside.name.startswith(".disk.0.") and aside.name.endswith(".unknown")
    assert not publish.is_temporary(aside.name)
    vm_directory.remove_disk(disk)
    publish.sweep(tmp_path)
    assert (aside / "disk.0").read_text() == "old"


def test_a_disk_goes_with_all_that_belongs_to_it_alone(tmp_path: Path) -> None:
    for name in ("disk.1", "disk.1.base", ".disk.1.record", "disk.10", ".disk.1.lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "disk.1.snap").mkdir()
    (tmp_path / "disk.1.snap" / "0").write_text("")
    assert vm_directory.remove_disk(tmp_path / "disk.1") is True
    assert names(tmp_path) == [".disk.1.lock", "disk.10"]
    assert vm_directory.remove_disk(tmp_path / "disk.1") is False


def test_the_disk_goes_last_but_for_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("disk.1", "disk.1.base", ".disk.1.record"):
        (tmp_path / name).write_text("")
    removed: list[str] = []

    def note(path: Path) -> bool:
        removed.append(path.name)
        return True

    monkeypatch.setattr(publish, "remove", note)
    vm_directory.remove_disk(tmp_path / "disk.1")
    assert removed[-2:] == ["disk.1", "disk.1.base"] and len(removed) == 5


def test_a_directory_disappears_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "7"
    directory.mkdir()
    (directory / "disk.0").write_text("")
    seen = []
    remove = publish.remove

    def look(path: Path) -> bool:
        seen.extend(names(tmp_path))
        return remove(path)

    monkeypatch.setattr(publish, "remove", look)
    assert vm_directory.remove(directory) is True
    assert [publish.is_temporary(name) for name in seen] == [True]
    assert vm_directory.remove(directory) is False
    assert names(tmp_path) == []


def test_K15_a_terminated_removal_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "7"
    directory.mkdir()

    def terminated(path: Path) -> NoReturn:
        raise Terminated

    with monkeypatch.context() as patched, pytest.raises(Terminated):
        patched.setattr(publish, "remove", terminated)
        vm_directory.remove(directory)
    publish.discard_unfinished()
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", [True, False])
def test_C3_what_belongs_to_a_disk_is_undone_only_without_it(tmp_path: Path, there: bool) -> None:
    disk = tmp_path / "disk.0"
    vm_directory.write_record(disk, {"vm": 7})
    vm_directory.base_path(disk).write_text("base")
    vm_directory.snapshots_path(disk).mkdir()
    if there:
        disk.write_text("published")
    before = names(tmp_path)
    vm_directory.forget_snapshots(disk)
    vm_directory.forget_base(disk)
    vm_directory.forget_record(disk)
    assert names(tmp_path) == (before if there else [])
