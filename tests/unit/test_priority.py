"""agent.priority: what is lowered, and that nothing depends on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from onestor_lib.agent import priority, process
from onestor_lib.agent.errors import CommandFailed


class Machine:
    """A process with a niceness of its own, and ionice(1) that may be missing."""

    def __init__(self, nice: int) -> None:
        self.nice = nice
        self.started: list[list[str]] = []
        self.has_ionice = True

    def renice(self, by: int) -> int:
        assert by > 0, "only lowered: raising needs a privilege"
        self.nice += by
        return self.nice

    def run(self, argv: Sequence[str], *, timeout: float, step: str) -> None:
        assert timeout <= 10
        self.started.append(list(argv))
        if not self.has_ionice:
            raise CommandFailed(step, "ionice is not installed")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(5)
    monkeypatch.setattr(os, "getpriority", lambda which, who: made.nice)
    monkeypatch.setattr(os, "nice", made.renice)
    monkeypatch.setattr(process, "run", made.run)
    return made


@pytest.mark.parametrize(("wanted", "expected"), [(0, 5), (5, 5), (10, 10), (19, 19)])
def test_K9_the_niceness_is_a_goal_and_not_a_step(
    machine: Machine, wanted: int, expected: int
) -> None:
    for _ in range(2):  # an agent may do bulk work twice
        priority.lower(wanted, "none")
        assert machine.nice == expected
    assert machine.started == []


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("idle", ["-c", "3"]),
        ("best-effort:7", ["-c", "2", "-n", "7"]),
        ("best-effort:0", ["-c", "2", "-n", "0"]),
    ],
)
def test_K11_the_class_is_set_for_this_process(
    machine: Machine, value: str, options: list[str]
) -> None:
    priority.lower(0, value)
    assert machine.started == [["ionice", *options, "-p", str(os.getpid())]]


@pytest.mark.parametrize("value", ["none", "", "realtime:0"])
def test_anything_else_starts_nothing(machine: Machine, value: str) -> None:
    priority.lower(0, value)
    assert machine.started == []


def test_a_machine_without_ionice_copies_all_the_same(machine: Machine) -> None:
    machine.has_ionice = False
    bulk: dict[str, Any] = {"nice": 10, "ionice": "idle"}
    priority.lower(**bulk)
    assert machine.nice == 10 and machine.started
