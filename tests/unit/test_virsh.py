"""agent.virsh: when a block copy counts as one that stands still."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from onestor_lib.agent import virsh
from onestor_lib.agent.errors import CommandFailed

DISK = virsh.Disk("vda", "/d/disk.0", is_ready=False, has_job=True, copy="/d/copy")


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> virsh.Domain:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    found = virsh.Domain("one-7", "test:///default")
    monkeypatch.setattr(found, "disk", lambda file: DISK)
    return found


def wait(domain: virsh.Domain, told: list[tuple[int, int]]) -> None:
    domain._wait_ready(
        Path("/d/disk.0"), "vda", "copy", 20.0, lambda done, total: told.append((done, total))
    )


def test_a_guest_that_writes_faster_than_the_copy_goes_does_not_hold_it_for_ever(
    domain: virsh.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is done at each look, and as much is left."""
    steps = itertools.count(1)
    monkeypatch.setattr(domain, "_progress", lambda target: ((n := next(steps)), n + 50))
    told: list[tuple[int, int]] = []
    with pytest.raises(CommandFailed, match="nothing moved for 20 s"):
        wait(domain, told)
    assert told == [(1, 51)]


def test_what_libvirt_says_before_the_copy_has_begun_is_no_progress(
    domain: virsh.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([(0, 1)] * 3 + [(done << 30, 100 << 30) for done in range(100)])
    monkeypatch.setattr(domain, "_progress", lambda target: next(said))
    looks = iter([DISK] * 90 + [DISK._replace(is_ready=True)])
    monkeypatch.setattr(domain, "disk", lambda file: next(looks))
    told: list[tuple[int, int]] = []
    wait(domain, told)
    assert len(told) == 87


def test_a_job_that_does_not_end_leaves_nothing_else_to_try(
    domain: virsh.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(target: str, step: str, **more: object) -> None:
        raise CommandFailed(step, "it takes too long")

    monkeypatch.setattr(domain, "end_job", broken)
    monkeypatch.setattr(domain, "state", lambda: "running")
    with pytest.raises(virsh.StillCopying, match="does not end"):
        domain._abandon(Path("/d/disk.0"), Path("/d/copy"), CommandFailed("copy", "broken"))
    domain._abandon(Path("/d/disk.0"), Path("/d/other"), CommandFailed("copy", "broken"))
    monkeypatch.setattr(domain, "state", lambda: "")
    domain._abandon(Path("/d/disk.0"), Path("/d/copy"), CommandFailed("copy", "broken"))


def test_one_that_catches_up_is_waited_for(
    domain: virsh.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(100, 0, -1))
    monkeypatch.setattr(domain, "_progress", lambda target: (0, next(left, 0)))
    ready = DISK._replace(is_ready=True)
    looks = iter([DISK] * 60 + [ready] * 9)
    monkeypatch.setattr(domain, "disk", lambda file: next(looks))
    told: list[tuple[int, int]] = []
    wait(domain, told)
    assert len(told) == 60
