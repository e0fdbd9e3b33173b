"""agent.usage: what the host probe reports. The script around it: tests/tool."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest

from onestor_lib.agent import usage

MB = 1 << 20


def fill(path: Path, megabytes: float, size: int = 0) -> Path:
    """A file with so much data, and a hole up to `size` behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"x" * int(megabytes * MB))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(max(size, int(megabytes * MB)))
    return path


def report(datastore: Path) -> dict[int, list[str]]:
    """The decoded lines by VM; everything must have the form of contract section 4.1."""
    found = {}
    for line in usage.vm_lines(str(datastore)):
        match = re.fullmatch(r'VM = \[ ID = (\d+), MONITOR = "([A-Za-z0-9+/]+=*)" \]', line)
        assert match, line
        text = base64.b64decode(match[2], validate=True).decode("ascii")
        for entry in text.split("\n"):
            assert re.fullmatch(
                r"DISK_SIZE = \[ ID=\d+, SIZE=\d+ \]"
                r"|SNAPSHOT_SIZE = \[ ID=\d+, DISK_ID=\d+, SIZE=\d+ \]", entry
            ), entry  # fmt: skip
        found[int(match[1])] = text.split("\n")
    return found


def test_I1_snapshots_of_one_to_three_digits(tmp_path: Path) -> None:
    fill(tmp_path / "7" / "disk.3", 1)
    for snapshot, size in (("0", 1), ("9", 2), ("10", 3), ("123", 0)):
        fill(tmp_path / "7" / "disk.3.snap" / snapshot, size)
    fill(tmp_path / "7" / "disk.3.snap" / ".disk.3.host-1-2-3.tmp", 1)
    assert report(tmp_path)[7] == [
        "DISK_SIZE = [ ID=3, SIZE=1 ]",
        "SNAPSHOT_SIZE = [ ID=0, DISK_ID=3, SIZE=1 ]",
        "SNAPSHOT_SIZE = [ ID=9, DISK_ID=3, SIZE=2 ]",
        "SNAPSHOT_SIZE = [ ID=10, DISK_ID=3, SIZE=3 ]",
        "SNAPSHOT_SIZE = [ ID=123, DISK_ID=3, SIZE=0 ]",
    ]


def test_I2_directories_without_disks_stop_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "1" / "disk.0", 1)
    (tmp_path / "2").mkdir()
    fill(tmp_path / "3" / "disk.0", 1)
    for name in ("vm", ".monitor.d", "4x", "-5"):
        fill(tmp_path / name / "disk.0", 1)
    fill(tmp_path / "6", 1)
    assert list(report(tmp_path)) == [1, 3]


def test_I5_every_disk_with_its_size_of_now(tmp_path: Path) -> None:
    for disk in (0, 1, 12):
        fill(tmp_path / "7" / f"disk.{disk}", disk)
    for other in ("disk.0.base", "disk.x", "disk.1.tmp", "vm.xml", "kernel"):
        fill(tmp_path / "7" / other, 1)
    assert sorted(report(tmp_path)[7]) == [
        f"DISK_SIZE = [ ID={disk}, SIZE={disk} ]" for disk in (0, 1, 12)
    ]
    fill(tmp_path / "7" / "disk.0", 5)
    assert "DISK_SIZE = [ ID=0, SIZE=5 ]" in report(tmp_path)[7]


@pytest.mark.parametrize("kind", ["dangling", "loop", "not ascii"])
@pytest.mark.parametrize("place", ["1", "2/disk.1", "2/disk.0.snap/5", "2/disk.0.snap"])
def test_I6_odd_entries_stop_nothing(tmp_path: Path, place: str, kind: str) -> None:
    fill(tmp_path / "2" / "disk.0", 1)
    (tmp_path / "2" / "disk.0.snap").mkdir()
    if place == "2/disk.0.snap":
        (tmp_path / "2" / "disk.0.snap").rmdir()
    odd = tmp_path / place
    if kind == "not ascii":
        name = odd.name[:-1] + "٣" if odd.name[-1].isdigit() else odd.name + "é"
        fill(odd.with_name(name) / "x", 0)
        fill(odd.with_name(name + "٣"), 0)
    else:
        odd.symlink_to(odd.name if kind == "loop" else "missing")
    fill(tmp_path / "10" / "disk.0", 1)
    found = report(tmp_path)
    assert found[10] == ["DISK_SIZE = [ ID=0, SIZE=1 ]"]
    assert "DISK_SIZE = [ ID=0, SIZE=1 ]" in found[2]


def test_I6_what_vanishes_between_listing_and_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vm in (1, 2, 3):
        fill(tmp_path / str(vm) / "disk.0", 1)
    listdir = os.listdir

    def listdir_then_lose(path: str) -> list[str]:
        names = listdir(path)
        if path.endswith("/2"):
            (tmp_path / "2" / "disk.0").unlink()
        if path.endswith("/3"):
            raise FileNotFoundError(path)
        return names

    monkeypatch.setattr(os, "listdir", listdir_then_lose)
    assert list(report(tmp_path)) == [1]


def test_I7_thin_disks_count_their_blocks(tmp_path: Path) -> None:
    fill(tmp_path / "7" / "disk.0", 10, size=10 << 30)
    fill(tmp_path / "7" / "disk.1", 0.001)
    disk, small = report(tmp_path)[7]
    assert re.fullmatch(r"DISK_SIZE = \[ ID=0, SIZE=(10|11) \]", disk)
    assert small == "DISK_SIZE = [ ID=1, SIZE=1 ]", "rounded up, as du does"


def test_I7_L11_the_recovery_layout_of_the_ssh_driver(tmp_path: Path) -> None:
    snapshots = tmp_path / "7" / "disk.0.snap"
    fill(snapshots / "base", 4)
    fill(snapshots / "base.1", 2)
    fill(snapshots / "0", 1)
    (snapshots / "disk.0.snap").symlink_to(".")
    (tmp_path / "7" / "disk.0").symlink_to("disk.0.snap/base.1")
    assert report(tmp_path)[7] == [
        "DISK_SIZE = [ ID=0, SIZE=6 ]", "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=1 ]",
    ]  # fmt: skip


def test_I7_L11_the_chain_layout_of_the_local_driver(tmp_path: Path) -> None:
    snapshots = tmp_path / "7" / "disk.0.snap"
    for snapshot, size in (("0", 3), ("1", 2), ("2", 1)):
        fill(snapshots / snapshot, size)
    (snapshots / "disk.0.snap").symlink_to(".")
    (tmp_path / "7" / "disk.0").symlink_to("disk.0.snap/2")
    assert report(tmp_path)[7] == [
        "DISK_SIZE = [ ID=0, SIZE=1 ]",
        "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=3 ]",
        "SNAPSHOT_SIZE = [ ID=1, DISK_ID=0, SIZE=2 ]",
    ]


def test_I7_a_base_shared_through_the_cache_is_not_counted(tmp_path: Path) -> None:
    base = fill(tmp_path / "cache" / "image", 8)
    disk = fill(tmp_path / "100" / "7" / "disk.0", 1)
    os.link(base, disk.parent / "disk.0.base")
    fill(disk.parent / "disk.0.snap" / "0", 2)
    (disk.parent / "disk.0.snap" / "disk.0.base").symlink_to("../disk.0.base")
    assert report(tmp_path / "100")[7] == [
        "DISK_SIZE = [ ID=0, SIZE=1 ]", "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=2 ]",
    ]  # fmt: skip


def test_a_datastore_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        usage.vm_lines(str(tmp_path / "missing"))
    assert usage.vm_lines(str(tmp_path)) == []


def test_capacity_is_that_of_df(tmp_path: Path) -> None:
    figures, now = usage.capacity(str(tmp_path)), os.statvfs(tmp_path)
    assert figures["TOTAL_MB"] == now.f_blocks * now.f_frsize // MB
    assert abs(figures["FREE_MB"] - now.f_bavail * now.f_frsize // MB) < 512
    text = usage.capacity_text(figures)
    assert re.fullmatch(r"USED_MB=\d+\nTOTAL_MB=\d+\nFREE_MB=\d+", text)


def test_a_datastore_before_its_first_image_has_the_figures_of_its_parent(tmp_path: Path) -> None:
    assert (
        usage.capacity(f"{tmp_path}//1/")["TOTAL_MB"] == usage.capacity(str(tmp_path))["TOTAL_MB"]
    )
    assert not (tmp_path / "1").exists()
    (tmp_path / "link").symlink_to("missing")
    for path in ("link", "1/2"):
        with pytest.raises(FileNotFoundError):
            usage.capacity(str(tmp_path / path))
