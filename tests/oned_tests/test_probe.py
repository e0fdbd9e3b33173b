"""What the probe of a host runs, and what it chokes on (contract section 4.1)."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.oned.probe import Entry, UnparsableMonitoring, VmMonitoring, parse, probe_monitor_ds
from tests.oned.runner import LocalRunner
from tests.oned_tests.conftest import Machine


def vm_line(number: int, text: str) -> str:
    return f'VM = [ ID = {number}, MONITOR = "{base64.b64encode(text.encode()).decode()}" ]\n'


GOOD = (
    "DISK_SIZE = [ ID=0, SIZE=1025 ]\n"
    "SNAPSHOT_SIZE = [ ID=1, DISK_ID=0, SIZE=7 ]\n"
    'DISK_RECOVERY_SNAPSHOT = [ ID=0, TIMESTAMP="1795187420" ]\n'
    'DISK_RECOVERY_SNAPSHOT = [ ID=1, MSG="no answer, gave up" ]\n'
)


def probe(machine: Machine) -> list[VmMonitoring]:
    return probe_monitor_ds(
        LocalRunner(), str(machine.root / "datastores"), str(machine.root / "remotes")
    )


def datastore(machine: Machine, name: str, monitor: str | None) -> Path:
    directory = machine.root / "datastores" / name
    directory.mkdir(parents=True)
    if monitor is not None:
        (directory / ".monitor").write_text(monitor)
    return directory


def test_one_script_for_each_directory_with_a_driver(machine: Machine) -> None:
    for name, monitor in (
        ("100", None),
        ("101", ""),
        ("102", "onestor\n"),
        ("103", "onestor"),
        ("104", "replica\n"),
        ("replica_snaps", "onestor\n"),
    ):
        datastore(machine, name, monitor)
    machine.recorder("tm/onestor/monitor_ds", vm_line(10, GOOD))
    assert len(probe(machine)) == 2
    called = [call["argv"] for call in machine.calls()]
    assert called == [[str(machine.root / "datastores" / name)] for name in ("102", "103")]
    assert machine.calls()[0]["cwd"] == str(machine.root / "datastores")
    assert machine.calls()[0]["stdin"] == ""


def test_lines_are_decoded(machine: Machine) -> None:
    datastore(machine, "102", "onestor\n")
    machine.recorder("tm/onestor/monitor_ds", vm_line(10, GOOD) + vm_line(11, ""))
    first, second = probe(machine)
    assert first == VmMonitoring(
        10,
        [
            Entry("DISK_SIZE", {"ID": "0", "SIZE": "1025"}),
            Entry("SNAPSHOT_SIZE", {"ID": "1", "DISK_ID": "0", "SIZE": "7"}),
            Entry("DISK_RECOVERY_SNAPSHOT", {"ID": "0", "TIMESTAMP": "1795187420"}),
            Entry("DISK_RECOVERY_SNAPSHOT", {"ID": "1", "MSG": "no answer, gave up"}),
        ],
    )
    assert second == VmMonitoring(11, [])


def test_failed_scripts_and_stderr_are_thrown_away(machine: Machine) -> None:
    datastore(machine, "102", "onestor\n")
    machine.script("tm/onestor/monitor_ds", "echo garbage; echo trouble >&2; exit 1")
    assert probe(machine) == []


def test_no_datastores_at_all(machine: Machine) -> None:
    assert probe(machine) == []


@pytest.mark.parametrize(
    "output",
    [
        "hello\n",
        "\n" + vm_line(1, GOOD),
        'VM = [ ID = 10, MONITOR = "not base64" ]\n',
        "VM = [ ID = 10 ]\n",
        vm_line(1, GOOD)[:-4],
        vm_line(1, "DISK_SIZE = [ ID=0 ]\n"),
        vm_line(1, "DISK_SIZE = [ ID=0, SIZE=1.2 ]\n"),
        vm_line(1, "DISK_SIZE = [ ID=0, SIZE= ]\n"),
        vm_line(1, "DISK_SIZE = [ ID=0 SIZE=12 ]\n"),
        vm_line(1, "POLL = [ ID=0, SIZE=12 ]\n"),
        vm_line(1, "\nDISK_SIZE = [ ID=0, SIZE=12 ]\n"),
    ],
)
def test_anything_else_is_an_error(output: str) -> None:
    with pytest.raises(UnparsableMonitoring):
        parse(output)
