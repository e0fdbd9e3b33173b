"""frontend.services.doctor: what is made of answers. Real faults on real hosts: tests/commands."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed, HostUnreachable
from onestor_lib.frontend import state
from onestor_lib.frontend.services.doctor import frontend, hosts
from onestor_lib.frontend.services.doctor.asking import Answers
from onestor_lib.frontend.services.doctor.findings import ERROR, OK, WARNING, Finding

GOOD = {"is": "1.2", "wrong": ""}
MACHINE: Any = SimpleNamespace(name="host01")
SYSTEM = SimpleNamespace(text=lambda path: "/var/lib/one/datastores/100")
FLEET: Any = SimpleNamespace(systems=[SYSTEM])
ANSWERS: Any = SimpleNamespace(all_is_reached=lambda: False)


def room(**changed: Any) -> dict[str, Any]:
    return {"wrong": "", "free": 50, "size": 100, "inodes": 5000, **changed}


@pytest.mark.parametrize(
    ("said", "level", "text"),
    [
        (room(), OK, "50 %"),
        (room(inodes=None), OK, "50 %"),
        (room(inodes=999), WARNING, "999 free inodes"),
        (room(free=9), WARNING, "9 %"),
        (room(free=1), ERROR, "1 %"),
        (room(size=0, free=0), ERROR, "0 %"),
    ],
)
def test_free_space_and_inodes(said: dict[str, Any], level: str, text: str) -> None:
    (found,) = hosts.judge_datastore("host01", "/d", said, "more room")
    assert (found.level, text in found.text) == (level, True)


def test_an_old_python() -> None:
    facts = {"python": [3, 8, 10], "qemu_img": GOOD, "libvirt": GOOD}
    first, *others = hosts._programs(MACHINE, facts)
    assert (first.level, first.text) == (ERROR, "3.8, 3.9 is needed")
    assert [each.level for each in others] == [OK, OK]


class TestMesh:
    WAYS = {"host01": "host01", "host02": "host02", "10.0.0.2": "host02"}

    def judged(self, answers: Answers) -> list[Finding]:
        return [*hosts._mesh("host01", answers, self.WAYS)]

    def test_L8_an_address_counts_as_another_way_to_the_same_host(self) -> None:
        (found,) = self.judged(Answers(mesh={"host01": dict.fromkeys(self.WAYS, "")}))
        assert (found.level, found.text) == (OK, "gets to 2 of 2 hosts")
        mesh = {"host01": {"host01": "", "host02": "", "10.0.0.2": "timed out"}}
        (found,) = self.judged(Answers(mesh=mesh))
        said = "to 10.0.0.2, REPLICA_STORAGE_IP of host02: timed out"
        assert (found.level, found.text) == (ERROR, said)
        assert found.mend == "as oneadmin on host01: ssh 10.0.0.2 true"

    def test_whoever_is_down_is_told_once(self) -> None:
        mesh = {"host01": {"host01": "", "host02": "timed out", "10.0.0.2": "timed out"}}
        down = HostUnreachable("connect", "timed out", host="host02")
        (found,) = self.judged(Answers(mesh=mesh, unreachable={"host02": down}))
        assert (found.level, found.text) == (OK, "gets to 1 of 2 hosts")


@pytest.mark.parametrize(
    ("rules", "level"),
    [
        ("  /var/lib/one/** rwk,", OK),
        ('  owner "/var/lib/one/datastores/**" rw,', OK),
        ("  /var/lib/one/** r,", WARNING),
        ("  /var/lib/onestor/** rwk,", WARNING),
        ("", WARNING),
    ],
)
def test_who_may_open_disks(rules: str, level: str) -> None:
    facts = {"qemu_owner": None, "libvirt": GOOD, "apparmor": rules, "uid": 9869}
    owner, apparmor = hosts._qemu("host01", facts, FLEET)
    assert (owner.level, owner.check) == (WARNING, "qemu")
    assert (apparmor.level, apparmor.check) == (level, "apparmor")


def test_blocks_that_are_shared() -> None:
    *_, found = hosts._datastores("host01", {"/d": room(shares=True)})
    assert found.check == "reflink" and "share their blocks" in found.text


@pytest.mark.parametrize(("age", "level"), [(60.0, OK), (1200.0, WARNING)])
def test_the_timer(age: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "directory", lambda: tmp_path)
    assert frontend._timer().level == ERROR
    lock = tmp_path / "recovery.lock"
    lock.touch()
    then = time.time() - age
    os.utime(lock, (then, then))
    assert frontend._timer().level == level


@pytest.mark.parametrize(("status", "text"), [(0, "has 1 key"), (1, "has no key"), (2, "status 2")])
def test_the_keys(status: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = process.Result(("ssh-add",), status, b"a key\n" * (not status), b"", False, 0.1)
    monkeypatch.setattr(process, "run", lambda *argv, **options: done)
    found = frontend._keys(ANSWERS)
    assert (found.level == OK) is (status == 0) and text in found.text


def test_without_an_ssh_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*argv: object, **options: object) -> None:
        raise CommandFailed("ssh-add", "no such program")

    monkeypatch.setattr(process, "run", run)
    found = frontend._keys(ANSWERS)
    assert (found.level, found.text) == (ERROR, "no such program")
