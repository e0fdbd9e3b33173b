"""The command ``onestor``: what administrators and timers ask of the drivers."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

import onestor_lib
from onestor_lib.frontend import boundary, config, state

_AGENT, _SOCKET = Path("/var/run/one/ssh-agent.env"), "SSH_AUTH_SOCK"  # contract section 7
_COLUMNS = ("VM", "DISK", "EVERY", "AGE", "LAG", "SIZE", "REPLICA", "ERROR")
_ALL_LINES = (7, 0)  # people see what oned is told from that version on


@click.group()
@click.version_option(onestor_lib.__version__, prog_name="onestor")
def main() -> None:
    """Storage drivers for OpenNebula: images cached near the hosts, disks on the hosts' own."""
    if _SOCKET not in os.environ and (agent := config.assignment_in(_AGENT, _SOCKET)):
        os.environ[_SOCKET] = agent


@main.group()
def recovery() -> None:
    """Recovery copies: what a VM is built from when its host has died."""


@recovery.command("run")
def recovery_run() -> None:
    """Make the copies that are due; a timer runs this every minute."""
    sys.exit(boundary.run("tm", "recovery", [], _run))


def _run(request: boundary.Request) -> str | None:
    from onestor_lib.frontend.services.recovery_pass import Pass

    request.log.version = _ALL_LINES
    directory = state.directory()
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    with (directory / "recovery.lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            request.log.info("another pass is at work")
            return None
        begin = time.monotonic()
        done = Pass(request).run()
    counts = ", ".join(f"{count} {what}" for what, count in done.items())
    if any(done.values()):
        request.log.info(f"{counts}, {time.monotonic() - begin:.1f} s")
    return None


@recovery.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a disk.")
def recovery_list(as_json: bool) -> None:
    """Show every disk that asks for copies, or has one."""

    def work(request: boundary.Request) -> str:
        from onestor_lib.frontend.services import overview

        request.log.version = _ALL_LINES
        rows = overview.rows(request)
        if as_json:
            return "\n".join(json.dumps(row) for row in rows)
        return _table(rows)

    sys.exit(boundary.run("tm", "recovery", [], work))


@recovery.command("drop")
@click.argument("vm", type=click.IntRange(0))
def recovery_drop(vm: int) -> None:
    """Remove all copies of a VM; the next pass makes new ones unless the attribute is gone."""

    def work(request: boundary.Request) -> str:
        from onestor_lib.frontend.services import overview

        request.log.version = _ALL_LINES
        return overview.drop(request, vm)

    sys.exit(boundary.run("tm", "recovery", [], work))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [_COLUMNS, *(tuple(_cells(row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[-1]]).rstrip()
        for line in lines
    )


def _cells(row: dict[str, Any]) -> list[str]:
    def seconds(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.0f} s"

    size = "-" if row["size"] is None else f"{row['size'] / 2**20:.0f} MB"
    found = [str(row["vm"]), row["disk"], seconds("frequency"), seconds("age"), seconds("lag")]
    return [*found, size, row["replica"] or "-", row["error"] or ""]


if __name__ == "__main__":
    main()
