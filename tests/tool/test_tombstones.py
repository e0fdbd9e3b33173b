"""Notes of what has to go on machines that did not answer: when it goes, and when it stays."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import vm_directory
from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import arguments, config, state
from onestor_lib.frontend import oned as api
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import tombstones
from tests.tool.conftest import Oned, draw
from tests.tool.test_boundary import FrontEnd, fe

__all__ = ["fe"]

HERE, DOWN = "localhost", "elsewhere"


@dataclass
class Notes:
    """VM 7 was to be deleted on a host that was down; that is this machine, or is down still."""

    root: Path
    oned: Oned

    def __post_init__(self) -> None:
        self.directory = self.root / "datastores" / "100" / "7"
        self.said = io.StringIO()
        values = {"LIBVIRT_URI": "test:///default", "CONNECT_TIMEOUT": "5"}
        settings = config.Settings(config.TM_ATTRIBUTES, values)
        log = Log("recovery", stderr=self.said, file=self.root / "log")
        self.request = Request("tm", "recovery", [], io.BytesIO(), settings, log)
        self.oned.answers["datastore", 100] = "<DATASTORE><TEMPLATE/></DATASTORE>"
        for disk in ("disk.0", "disk.1"):
            draw(self.directory / disk, "A")
        self.made_by(3)

    def made_by(self, placement: int) -> None:
        for disk in ("disk.0", "disk.1"):
            vm_directory.write_record(self.directory / disk, {"sequence": str(placement)})

    def place(self, name: str = "", host: str = HERE) -> arguments.VmPath:
        return arguments.vm_path(f"{host}:{self.directory}/{name}".rstrip("/"), 7)

    def leave(self, name: str = "", host: str = HERE, sequence: str = "3") -> None:
        tombstones.for_place(self.place(name, host), sequence)

    def vm(self, state: str = "3", lcm_state: str = "3", host: str = "host02") -> None:
        """How oned has the VM by now: elsewhere, unless another ``host`` is given."""
        self.oned.answers["vm", 7] = (
            f"<VM><ID>7</ID><STATE>{state}</STATE><LCM_STATE>{lcm_state}</LCM_STATE><TEMPLATE>"
            "<DISK><DISK_ID>0</DISK_ID><IMAGE_ID>4</IMAGE_ID></DISK></TEMPLATE><HISTORY_RECORDS>"
            f"<HISTORY><SEQ>4</SEQ><HOSTNAME>{host}</HOSTNAME><DS_ID>100</DS_ID></HISTORY>"
            "</HISTORY_RECORDS></VM>"
        )

    def sweep(self) -> str:
        """What is said, but for what is for the log file alone."""
        tombstones.sweep(self.request)
        said = self.said.getvalue()
        self.said.truncate(0)
        self.said.seek(0)
        return said

    def left(self) -> list[str]:
        return [name for name, _ in state.every("tombstones")]

    def disks(self) -> list[str]:
        if not self.directory.exists():
            return []
        return sorted(filter(vm_directory.is_disk, os.listdir(self.directory)))

    def clear(self) -> None:
        client = api.Client()
        tombstones.clear(self.request, client, client.vm(7), self.place())


@pytest.fixture
def notes(tmp_path: Path, oned: Oned, monkeypatch: pytest.MonkeyPatch) -> Notes:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return Notes(tmp_path, oned)


def ssh_to_nowhere(directory: Path) -> Path:
    """An OpenSSH client by whose configuration no host answers; it notes each that it is asked for.

    For PATH; the notes lie beside it.
    """
    directory.mkdir()
    ssh = directory / "ssh"
    ssh.write_text(
        f'#!/bin/sh\nfor host; do :; done\necho "$host" >>{directory}/asked\n'
        "printf 'hostname 127.0.0.1\\nport 1\\nuser nobody\\n'\n"
    )
    ssh.chmod(0o755)
    return directory


def test_G1_a_host_that_is_down_still_is_asked_once(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has to go there; that of others goes, and nobody is warned again and again."""
    programs = ssh_to_nowhere(notes.root / "bin")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    notes.leave("disk.0", DOWN)
    notes.leave("disk.1", DOWN)
    kept = notes.left()
    notes.leave()
    assert "VM 7 directory on localhost, which was not reachable then, deleted" in notes.sweep()
    assert notes.left() == kept and len(kept) == 2
    assert (programs / "asked").read_text().split() == [DOWN]
    (line,) = [line for line in (notes.root / "log").read_text().splitlines() if "stays" in line]
    assert "DEBUG" in line and f"{DOWN}: " in line
    assert notes.sweep() == ""


DAMAGED: list[dict[str, Any]] = [
    {"host": HERE},
    {"host": HERE, "vm": None, "path": "/d/100/7", "what": "directory"},
    {"host": HERE, "vm": "x", "path": "/d/100/7", "what": "directory"},
    {"host": "-oProxyCommand=x", "vm": 7, "path": "/d/100/7", "what": "directory"},
    {"host": HERE, "vm": 8, "path": "/d/100/7", "what": "directory"},
    {"host": HERE, "vm": 7, "path": "/d/100/../7", "what": "directory"},
]


def test_G1_a_note_that_is_damaged_is_told_and_stays(notes: Notes) -> None:
    """And holds up no other; one that is no JSON at all is nothing to go by."""
    for number, facts in enumerate(DAMAGED):
        state.write(f"tombstones/{number}", facts)
    (state.directory() / "tombstones" / "odd.json").write_text("{")
    kept = notes.left()
    notes.leave()
    lines = notes.sweep().splitlines()
    assert notes.left() == kept == [f"tombstones/{number}" for number in range(len(DAMAGED))]
    assert notes.disks() == []
    warnings = [line for line in lines if line.startswith("WARN")]
    assert [re.findall(r"tombstones/(\d)", line) for line in warnings] == [
        [str(number)] for number in range(len(DAMAGED))
    ]
    assert warnings[0].endswith(
        "/tombstones/0.json is damaged, and stays: look at it, and remove it"
    )


@pytest.mark.parametrize("name", ["", "disk.1"])
def test_G1_what_a_vm_had_that_oned_does_not_know_any_more_goes(notes: Notes, name: str) -> None:
    notes.leave(name)
    assert "which was not reachable then, deleted" in notes.sweep()
    assert notes.disks() == (["disk.0"] if name else []) and notes.left() == []


@pytest.mark.parametrize(
    ("state", "lcm_state"),
    [("1", "0"), ("2", "0"), ("10", "0"), ("3", "1"), ("3", "10"), ("3", "36"), ("3", "60")],
)
def test_G1_nothing_goes_while_the_vm_may_come_from_there_or_go_there(
    notes: Notes, state: str, lcm_state: str
) -> None:
    notes.leave()
    notes.vm(state, lcm_state)
    assert notes.sweep() == ""
    assert notes.disks() == ["disk.0", "disk.1"] and len(notes.left()) == 1
    notes.vm()
    assert "which was not reachable then, deleted" in notes.sweep()
    assert notes.disks() == [] and notes.left() == []


def test_G1_what_a_vm_left_in_a_datastore_that_is_no_more_goes(notes: Notes) -> None:
    """What its template said is not known then: the settings are those of the front-end."""
    notes.leave()
    notes.vm()
    del notes.oned.answers["datastore", 100]
    assert "which was not reachable then, deleted" in notes.sweep()
    assert notes.disks() == [] and notes.left() == []


@pytest.mark.parametrize(("placement", "stays"), [(3, False), (4, True)])
def test_G1_a_vm_that_is_about_to_start_finds_nothing_old(
    notes: Notes, placement: int, stays: bool
) -> None:
    """What was made there since is no more what was to go."""
    notes.leave()
    notes.vm(lcm_state="60", host=HERE)
    notes.made_by(placement)
    notes.clear()
    assert notes.disks() == (["disk.0", "disk.1"] if stays else [])
    assert notes.left() == []


def test_G1_a_place_is_not_used_as_long_as_its_note_cannot_be_removed(
    notes: Notes, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next pass would delete what the VM has there by then."""
    monkeypatch.setenv("HOME", str(small))
    notes.leave("disk.1")
    notes.leave()
    notes.vm(lcm_state="60", host=HERE)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(OnestorError, match=r"forget what was to go .*: its note cannot be removed"):
        notes.clear()
    assert len(notes.left()) == 2
    subprocess.run(["mount", "-o", "remount,rw", small], check=True)
    notes.clear()
    assert notes.left() == []


def test_G1_a_vm_that_oned_does_not_know_is_deleted_on_a_dead_host(
    fe: FrontEnd, notes: Notes
) -> None:
    """Whatever placement has made it."""
    programs = ssh_to_nowhere(notes.root / "bin")
    fe.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    notes.oned.answers["hostpool", -1] = (
        f"<HOST_POOL><HOST><NAME>{DOWN}</NAME><STATE>3</STATE></HOST></HOST_POOL>"
    )
    done = fe.run("tm", "delete", f"{DOWN}:{notes.directory}", "7", "100")
    assert done.returncode == 0, done.stderr
    assert f"what is there goes when {DOWN} is back" in done.stderr
    assert tombstones.noted(notes.place(host=DOWN)) == sys.maxsize
    assert notes.disks() == ["disk.0", "disk.1"]
