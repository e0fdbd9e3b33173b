"""onestor recovery: what a VM is built from when its host has died."""

from __future__ import annotations

import fcntl
import time
from typing import Any

import click

from onestor_lib.frontend import oned, state
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.commands import output, running
from onestor_lib.frontend.commands.running import Report

_COLUMNS = ("VM", "DISK", "EVERY", "AGE", "LAG", "SIZE", "REPLICA", "ERROR")
_NUMBERS = ("VM", "EVERY", "AGE", "LAG", "SIZE")


@click.group()
def recovery() -> None:
    """Recovery copies: what a VM is built from when its host has died."""


@recovery.command("run")
@output.json_option
def run(as_json: bool) -> None:
    """Make the copies that are due; the exit status is 1 if one has failed.

    A timer runs this every minute.
    """
    running.run("recovery", lambda request: _run(request, as_json))


def _run(request: Request, as_json: bool) -> Report | None:
    from onestor_lib.frontend.services import markers
    from onestor_lib.frontend.services.recovery_pass import Pass

    if not oned.Client().leads():
        request.log.info("another front-end leads: it makes the copies")
        return None
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
        seconds = time.monotonic() - begin
    for what, count in done.items():
        request.log.tally.add("recovery_copies_total", count, outcome=what)
    counts = ", ".join(f"{count} {what}" for what, count in done.items())
    if any(done.values()):
        request.log.info(f"{counts}, {seconds:.1f} s")
    markers.sweep(request)  # last: a host that does not answer holds up no copy of this pass
    text = output.lines([{**done, "seconds": round(seconds, 3)}]) if as_json else ""
    return Report(text, is_good=not done["failed"])


@recovery.command("list")
@output.json_option
def show(as_json: bool) -> None:
    """Show every disk that asks for copies, or has one."""

    def work(request: Request) -> str:
        from onestor_lib.frontend.services import overview

        rows = overview.rows(request)
        if as_json:
            return output.lines(rows)
        return output.table(_COLUMNS, [_cells(row) for row in rows], right=_NUMBERS)

    running.run("recovery", work)


@recovery.command("drop")
@click.argument("vm", type=click.IntRange(0))
@output.json_option
def drop(vm: int, as_json: bool) -> None:
    """Remove all copies of a VM; the next pass makes new ones unless the attribute is gone."""

    def work(request: Request) -> str:
        from onestor_lib.frontend.services import overview

        removed = overview.drop(request, vm)
        if as_json:
            return output.lines([{"vm": vm, "removed": removed}])
        where = f"removed from {', '.join(removed)}" if removed else "there were none"
        return f"recovery copies of VM {vm}: {where}"

    running.run("recovery", work)


def _cells(row: dict[str, Any]) -> list[str]:
    ages = [output.seconds(row[name]) for name in ("frequency", "age", "lag")]
    size = output.megabytes(row["size"])
    return [str(row["vm"]), row["disk"], *ages, size, row["replica"] or "-", row["error"]]
