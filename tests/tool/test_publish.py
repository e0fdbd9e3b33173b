"""agent.publish: processes killed at every step, and processes that live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from onestor_lib.agent import crashpoints, publish
from tests.tool.conftest import ROOT

PUBLISHER = """
import sys
from pathlib import Path
from onestor_lib.agent import crashpoints, publish
final, point, replace = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
crashpoints.choose(point)
crashpoints.NOTE = Path(sys.argv[4])
with publish.Temporary(final) as temporary:
    temporary.path.write_text("complete")
    print("created", flush=True)
    sys.stdin.readline()
    temporary.publish(replace=replace)
"""


def publisher(
    final: Path, point: str = "", *, replace: bool = False, note: str | Path = os.devnull
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(final), point, str(replace), str(note)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("point", [p for p in crashpoints.POINTS if p.startswith("publish.")])
def test_A2_A10_a_final_name_is_old_or_complete_after_a_crash(
    tmp_path: Path,
    crash_note: Path,
    crashed: Callable[[], list[str]],
    point: str,
    replace: bool,
) -> None:
    if point == "publish.linked":
        replace = False
    elif point == "publish.renamed":
        replace = True
    final = tmp_path / "disk.0"
    if replace:
        final.write_text("old")
    process = publisher(final, point, replace=replace, note=crash_note)
    process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert crashed() == [point]
    if final.exists():
        assert final.read_text() in ("old", "complete")
    else:
        assert not replace
    published = point in ("publish.linked", "publish.renamed", "publish.done")
    assert (final.exists() and final.read_text() == "complete") == published
    publish.sweep(tmp_path)
    assert os.listdir(tmp_path) == (["disk.0"] if published or replace else [])
    if published:
        assert final.read_text() == "complete", "sweeping a second name harms no content"


def test_K16_the_living_keep_and_the_killed_lose_their_temporaries(tmp_path: Path) -> None:
    process = publisher(tmp_path / "disk.0")
    assert process.stdout
    assert process.stdout.readline() == "created\n"
    assert publish.sweep(tmp_path) == []
    (name,) = os.listdir(tmp_path)
    assert publish.is_temporary(name)
    process.kill()
    process.communicate()
    assert publish.sweep(tmp_path) == ["disk.0"]
    assert os.listdir(tmp_path) == []


def test_K15_an_unpublished_temporary_of_a_process_that_ends(tmp_path: Path) -> None:
    process = publisher(tmp_path / "no" / "disk.0")
    process.communicate("\n")
    assert process.returncode == 1
    process = publisher(tmp_path / "disk.0")
    process.communicate("\n")
    assert (process.returncode, os.listdir(tmp_path)) == (0, ["disk.0"])
