"""tm/onestor/monitor_ds as the host's probe runs it (contract section 4.1)."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tool.conftest import ROOT, draw, listing

LINE = re.compile(r'VM = \[ ID = (\d+), MONITOR = "([A-Za-z0-9+/]+=*)" \]')


@pytest.fixture
def script(tmp_path: Path, library: Path) -> Path:
    """The probe as it lies on a host: remotes only, copied by rsync -L."""
    remotes = tmp_path / "var tmp" / "one"
    shutil.copytree(ROOT / "remotes" / "tm", remotes / "tm")
    shutil.copytree(library, remotes / "onestor_lib", copy_function=os.link)
    return remotes / "tm" / "onestor" / "monitor_ds"


@pytest.fixture
def datastore(tmp_path: Path) -> Path:
    datastore = tmp_path / "datastores" / "100"
    draw(datastore / "1" / "disk.0", "A-")
    (datastore / "2").mkdir()
    draw(datastore / "3" / "disk.0", "AB")
    for number, snapshot in enumerate(("0", "9", "10", "123")):
        draw(datastore / "3" / "disk.0.snap" / snapshot, "S" * number)
    (datastore / "3" / "disk.1").symlink_to("missing")
    snapshots = datastore / "20" / "disk.0.snap"
    draw(snapshots / "base", "AAA")
    draw(snapshots / "base.1", "B")
    (snapshots / "disk.0.snap").symlink_to(".")
    (datastore / "20" / "disk.0").symlink_to("disk.0.snap/base.1")
    (datastore / ".monitor").write_text("onestor\n")
    return datastore


def probe(script: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-S", script, *argv],
        capture_output=True, text=True, cwd="/", env={}, check=False,
    )  # fmt: skip


def test_I1_I2_I6_I7_the_whole_answer(script: Path, datastore: Path) -> None:
    before = listing(script.parents[2])
    done = probe(script, datastore)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("]\n")
    found = {}
    for line in done.stdout.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        found[int(match[1])] = base64.b64decode(match[2], validate=True).decode("ascii").split("\n")
    assert found == {
        1: ["DISK_SIZE = [ ID=0, SIZE=1 ]"],
        3: [
            "DISK_SIZE = [ ID=0, SIZE=2 ]",
            "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=0 ]",
            "SNAPSHOT_SIZE = [ ID=9, DISK_ID=0, SIZE=1 ]",
            "SNAPSHOT_SIZE = [ ID=10, DISK_ID=0, SIZE=2 ]",
            "SNAPSHOT_SIZE = [ ID=123, DISK_ID=0, SIZE=3 ]",
        ],
        20: ["DISK_SIZE = [ ID=0, SIZE=4 ]"],
    }
    assert listing(script.parents[2]) == before, "no bytecode (trap 38)"


def test_an_empty_datastore_has_no_lines(script: Path, tmp_path: Path) -> None:
    done = probe(script, tmp_path / "var tmp")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("argv", [[], ["/", "/"], ["/nonexistent"], ["/etc/hostname"], [""]])
def test_trap40_nothing_on_stdout_when_in_doubt(script: Path, argv: list[str]) -> None:
    done = probe(script, *argv)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("monitor_ds: ")


def test_K13_runs_by_itself(script: Path, datastore: Path) -> None:
    done = subprocess.run(
        [script, datastore], capture_output=True, text=True, cwd=datastore.parent, check=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 3


def test_no_child_process(script: Path, datastore: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    subprocess.run(
        ["strace", "-f", "-o", calls, "-e", "trace=execve,fork,vfork,clone,clone3",
         "/usr/bin/python3", "-I", "-S", script, datastore],
        check=True, capture_output=True,
    )  # fmt: skip
    started = [line for line in calls.read_text().splitlines() if "(" in line]
    assert len(started) == 1 and "execve" in started[0]
