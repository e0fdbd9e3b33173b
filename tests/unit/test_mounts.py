"""agent.mounts: a datastore whose volume is not mounted is an error, and nothing is created."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onestor_lib.agent import mounts, usage
from onestor_lib.agent.errors import Missing
from onestor_lib.agent.operations import usage as operations
from tests.tool.placing import LocalCall

STEP = "monitor datastore"


class Machine:
    """A fstab, and a directory that something may be mounted at."""

    def __init__(self, root: Path) -> None:
        self.fstab = root / "fstab"
        self.volume = root / "datastores"
        self.datastore = self.volume / "1"
        self.volume.mkdir()

    def write(self, point: Path | str, options: str = "defaults", *, more: str = "") -> None:
        self.fstab.write_text(
            f"# <file system> <mount point>\n\nUUID=1 / ext4 defaults 0 1\nproc /proc proc\n"
            f"UUID=2 none swap sw 0 0\n{more}UUID=3 {point} xfs {options} 0 2\nbad\n"
        )

    def require(self, path: Path | str = "", *, required: bool = False) -> None:
        path = str(path or self.datastore)
        mounts.require(path, required=required, step=STEP, fstab=self.fstab)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("path", ["", "/1", "/1/x", "//1/"])
def test_I10_a_volume_that_is_not_mounted(machine: Machine, path: str) -> None:
    machine.write(machine.volume)
    cause = rf"{STEP} .*: {machine.volume} is in {machine.fstab}, but not mounted"
    with pytest.raises(Missing, match=cause):
        machine.require(f"{machine.volume}{path}")
    assert list(machine.volume.iterdir()) == []


def test_I10_what_has_no_volume_of_its_own_is_no_error(machine: Machine) -> None:
    machine.require()
    for point in (
        "/",
        "/proc",
        f"{machine.volume}/10",
        f"{machine.volume}s",
        f"{machine.volume}/1x",
    ):
        machine.write(point)
        machine.require()


def test_I10_a_volume_that_is_mounted_is_no_error(machine: Machine) -> None:
    machine.write("/proc")
    machine.require("/proc/self")
    machine.require("/proc")


@pytest.mark.parametrize("options", ["noauto", "rw,noauto,nofail", "nofail,x-systemd.automount"])
def test_I10_what_is_mounted_on_demand_may_be_missing(machine: Machine, options: str) -> None:
    machine.write(machine.volume, options)
    machine.require()
    machine.write(machine.volume, "nofail,noautomatic")
    with pytest.raises(Missing):
        machine.require()


def test_I10_links_and_blanks(machine: Machine, tmp_path: Path) -> None:
    blank = tmp_path / "a b"
    (blank / "1").mkdir(parents=True)
    machine.datastore.symlink_to(blank / "1")
    machine.write(str(blank).replace(" ", "\\040"))
    with pytest.raises(Missing, match="a b is in"):
        machine.require()
    (tmp_path / "link").symlink_to(blank)
    machine.write(tmp_path / "link")
    with pytest.raises(Missing, match="a b is in"):
        machine.require()


def test_I10_the_option_must_be_a_mount_point(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Missing, match=r"REQUIRE_MOUNT"):
        machine.require(required=True)
    assert list(machine.volume.iterdir()) == []
    real = os.path.ismount
    for point in (machine.volume, machine.datastore):
        with monkeypatch.context() as patch:
            patch.setattr(
                os.path, "ismount", lambda path, point=point: path == str(point) or real(path)
            )
            machine.require(required=True)
            machine.require(f"{machine.volume}//1/", required=True)
    machine.require("/proc/1", required=True)


def test_I10_monitor_fails_and_creates_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, path = LocalCall(lambda question: {}), str(machine.datastore)
    monkeypatch.setattr(mounts, "FSTAB", machine.fstab)
    figures = operations.capacity(call, path=path, require_mount=False)
    assert figures["TOTAL_MB"] == usage.capacity(str(machine.volume))["TOTAL_MB"]
    with pytest.raises(Missing):
        operations.capacity(call, path=path, require_mount=True)
    machine.write(machine.volume)
    with pytest.raises(Missing):
        operations.capacity(call, path=path, require_mount=False)
    assert list(machine.volume.iterdir()) == []
