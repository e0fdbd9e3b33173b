"""What a host's monitoring runs: the probe monitor_ds_vm and monitor_ds (contract section 4.1)."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from tests.oned.runner import Call, Runner

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/var/lib/one",
    "USER": "oneadmin",
}

LIST = 'cd "$1" && for f in */.monitor; do [ -f "$f" ] && echo "${f%/.monitor}"; done; true'

VM = re.compile(r'VM = \[ ID = "?(\d+)"?, MONITOR = "([^"]*)" \]')
ENTRY = re.compile(r"(DISK_SIZE|SNAPSHOT_SIZE|DISK_RECOVERY_SNAPSHOT) = \[ (.*) \]")
PAIR = re.compile(r'([A-Z_]+)=("[^"]*"|\d+)')
FIELDS = {
    "DISK_SIZE": [{"ID", "SIZE"}],
    "SNAPSHOT_SIZE": [{"ID", "DISK_ID", "SIZE"}],
    "DISK_RECOVERY_SNAPSHOT": [{"ID", "TIMESTAMP"}, {"ID", "MSG"}],
}


class UnparsableMonitoring(Exception):
    """oned puts the host into ERROR: Error parsing monitor information."""


@dataclass(frozen=True)
class Entry:
    """One line of a VM's monitoring: DISK_SIZE and the like."""

    name: str
    fields: dict[str, str]


@dataclass(frozen=True)
class VmMonitoring:
    """What a host tells of one VM."""

    vm_id: int
    entries: list[Entry]


def probe_monitor_ds(
    runner_of_host: Runner,
    datastores: str = "/var/lib/one/datastores",
    remotes: str = "/var/tmp/one",
) -> list[VmMonitoring]:
    """Run monitor_ds of every datastore directory with a .monitor, and read what they print.

    Directories count whose name is a datastore's id, a number. Errors of the scripts are of no
    interest: a failed one's output is thrown away.
    """
    output = ""
    listing = _run(runner_of_host, ["/bin/sh", "-c", LIST, "sh", datastores], "/")
    for name in sorted(listing.split()):
        directory = f"{datastores}/{name}"
        driver = _run(runner_of_host, ["cat", f"{directory}/.monitor"], "/")
        driver = driver[:-1] if driver.endswith("\n") else driver
        script = f"{remotes}/tm/{driver}/monitor_ds"
        if not name.isdigit() or not driver or not _exists(runner_of_host, script):
            continue
        output += _run(runner_of_host, [script, directory], datastores)
    return parse(output)


def parse(output: str) -> list[VmMonitoring]:
    """Read the output of the probe; anything beside the grammar is an error, as for oned."""
    vms = []
    for line in output.splitlines():
        vm = VM.fullmatch(line)
        if not vm:
            raise UnparsableMonitoring(line)
        try:
            decoded = base64.b64decode(vm.group(2), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise UnparsableMonitoring(line) from error
        vms.append(
            VmMonitoring(int(vm.group(1)), [_entry(entry) for entry in decoded.splitlines()])
        )
    return vms


def _entry(line: str) -> Entry:
    entry = ENTRY.fullmatch(line)
    if not entry:
        raise UnparsableMonitoring(line)
    name, inner = entry.groups()
    fields = {key: value.strip('"') for key, value in PAIR.findall(inner)}
    written = ", ".join(f"{key}={value}" for key, value in PAIR.findall(inner))
    if written != inner or set(fields) not in FIELDS[name]:
        raise UnparsableMonitoring(line)
    return Entry(name, fields)


def _exists(runner: Runner, path: str) -> bool:
    argv = ["test", "-e", path]
    return Call(runner.popen(argv, env=ENVIRONMENT, cwd="/"), " ".join(argv)).wait().code == 0


def _run(runner: Runner, argv: list[str], cwd: str) -> str:
    result = Call(runner.popen(argv, env=ENVIRONMENT, cwd=cwd), " ".join(argv)).wait()
    return "" if result.code else result.stdout
