"""A disk as one file, or as an overlay on its image again: what becomes of its bitmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import qemu_img
from onestor_lib.agent.operations import reshaping
from tests.tool.conftest import qemu_img as run_qemu_img
from tests.tool.placing import BULK, Placing, place_image

HOW: dict[str, Any] = {"check_space": True, "timeout": 60, "lock_timeout": 10, "bulk": BULK}


@pytest.fixture
def placing(tmp_path: Path) -> Placing:
    """A VM that is off has a thin disk."""
    made = place_image(tmp_path).thin()
    made.run_here()
    assert made.warnings == []
    return made


def flatten(placing: Placing) -> dict[str, Any]:
    return reshaping.flatten(placing.call, path=str(placing.disk), image_format="qcow2", **HOW)


def thin(placing: Placing) -> dict[str, Any]:
    image = placing.arguments()["image"]
    return reshaping.thin(
        placing.call, path=str(placing.disk), image=image, qcow2_options=[], **HOW
    )


def back_up(placing: Placing) -> None:
    """What a backup leaves in a disk for the next increment."""
    run_qemu_img("bitmap", "--add", "-f", "qcow2", placing.disk, "one-7-0")


def bitmaps(placing: Placing) -> list[str]:
    return qemu_img.bitmaps(placing.disk, step="look")


def test_the_next_backup_has_to_be_a_full_one(placing: Placing) -> None:
    back_up(placing)
    assert flatten(placing)["done"]
    assert bitmaps(placing) == []
    (warning,) = placing.warnings
    assert "the next backup of the VM has to be a full one" in warning
    back_up(placing)
    assert thin(placing)["done"]
    assert bitmaps(placing) == []
    assert placing.warnings == [warning, warning]


def test_without_backups_nothing_is_said_of_them(placing: Placing) -> None:
    assert flatten(placing)["done"] and thin(placing)["done"]
    assert placing.warnings == []


def test_a_disk_that_is_what_it_is_to_be_keeps_its_bitmaps(placing: Placing) -> None:
    back_up(placing)
    assert not thin(placing)["done"]
    assert bitmaps(placing) == ["one-7-0"]
    assert placing.warnings == []
