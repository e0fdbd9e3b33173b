"""onestor recovery: list and drop. The copies themselves: tests/life/test_recovery.py."""

from __future__ import annotations

from tests.commands.conftest import Desk
from tests.drivers.conftest import configure_system


def test_drop_when_a_replica_is_down(desk: Desk) -> None:
    """The others lose their copies all the same, and it is told which one may have some still."""
    configure_system(desk.bed, REPLICA_HOST="host04 host03")
    desk.bed.configure('CONNECT_TIMEOUT="1"\n')
    paths = {name: desk.keep_copy(name, 7, age=60) for name in ("host03", "host04")}
    desk.node("host04").cut()
    assert desk.run("recovery", "drop", "7", status=1) == ""
    assert "removed from host03; " in desk.complaints and "host04" in desk.complaints
    there = [name for name, path in paths.items() if desk.node(name).exists(path)]
    assert there == ["host04"]
    desk.node("host04").heal()
    assert desk.rows("recovery", "drop", "7") == [{"vm": 7, "removed": ["host04"]}]
    assert not desk.node("host04").exists(paths["host04"])


def test_the_youngest_of_all_replicas_is_listed(desk: Desk) -> None:
    """Whichever replica answers first."""
    configure_system(desk.bed, REPLICA_HOST="host03 host04")
    for disk, young, old in (("disk.0", "host03", "host04"), ("disk.1", "host04", "host03")):
        desk.keep_copy(young, 7, disk, age=100)
        desk.keep_copy(old, 7, disk, age=5000)
    rows = desk.rows("recovery", "list")
    assert [(row["disk"], row["replica"]) for row in rows] == [
        ("disk.0", "host03"),
        ("disk.1", "host04"),
    ]
    assert all(100 <= row["age"] < 4000 for row in rows)
