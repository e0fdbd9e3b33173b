"""How the commands look: at terminals of 80 and 120 columns, and piped.

What they should show lies in ``screens/``; with UPDATE_SCREENS in the environment it is written
anew, to be read before it is committed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.commands.conftest import Desk
from tests.drivers.conftest import MEDIUM_QCOW2, write

SCREENS = Path(__file__).parent / "screens"


def masked(seen: str) -> str:
    """Without ages, which differ from run to run."""
    return re.sub(r"\b\d{1,2} s\b", lambda match: "9 s".rjust(len(match[0])), seen)


def expect(name: str, seen: str) -> None:
    """Compare with what was approved."""
    seen = masked(seen)
    file = SCREENS / f"{name}.txt"
    if "UPDATE_SCREENS" in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text(seen)
    assert seen == file.read_text()


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """Two images in caches, one of them no more; a VM with a snapshot's worth of things to show."""
    image = desk.bed.image(MEDIUM_QCOW2)
    image.name = "debian-12-with-a-name-that-is-longer-than-others"
    desk.bed.cloud.save(image)
    gone = desk.bed.image(MEDIUM_QCOW2)
    desk.run("cache", "warm", str(gone.id), "--hosts", "host02")
    desk.bed.cloud.delete(gone)
    vm = desk.started(image)
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "3600"
    desk.bed.cloud.save(vm)
    write(desk.node("host01"), desk.bed.disk_path(vm), "qcow2", 7)
    return desk


# Each with the widths at which it looks different: one table is made as the other, and where there
# is room for all of it, it is as wide as it is; one that lists what another one does has its look.
COMMANDS = {
    "cache-list": (("cache", "list"), (80, 120)),
    "cache-show": (("cache", "show", "0"), ()),
    "recovery-list": (("recovery", "list"), (80,)),
    "vm-show": (("vm", "show", "0"), (80,)),
}


def test_at_terminals_and_piped(filled: Desk) -> None:
    for name, (words, widths) in COMMANDS.items():
        for width in widths:
            seen = filled.screen(width, *words)
            assert max(map(len, seen.splitlines())) <= width
            expect(f"{name}-{width}", seen)
        expect(f"{name}-piped", filled.run(*words))


def test_a_bar_at_a_terminal_only(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    desk.started(image)
    verify = ("cache", "verify", "--host", "host01")
    seen = desk.screen(80, *verify)
    assert "verify" in seen and "100%" in seen
    assert "%" not in desk.run(*verify) + desk.complaints
    warm = ("cache", "warm", str(image.id), "--hosts")
    seen = desk.screen(80, *warm, "host03,host04")
    assert "warm" in seen and "%" in seen
    assert "%" not in desk.run(*warm, "host02") + desk.complaints
