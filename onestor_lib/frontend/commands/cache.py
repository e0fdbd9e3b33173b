"""onestor cache: what is in the caches of replicas and hosts."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from onestor_lib.agent.errors import InvalidInput, OnestorError
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.commands import output, running
from onestor_lib.frontend.commands.running import Report

_COLUMNS = ("HOST", "TIER", "IMAGE", "SIZE", "STATE", "DISKS", "USED", "CHECKED", "NAME")
_NUMBERS = ("IMAGE", "SIZE", "DISKS", "USED", "CHECKED")

_LEVELS = {"failed": "error", "repaired": "warning"}  # of results

Row = dict[str, Any]
Failed = dict[str, OnestorError]

host_option = click.option(
    "--host", "names", multiple=True, metavar="HOST", help="Only this one; may be repeated."
)


@click.group()
def cache() -> None:
    """Images that are kept near the disks: on replicas, and on each host."""


@cache.command("list")
@host_option
@output.json_option
def show_all(names: tuple[str, ...], as_json: bool) -> None:
    """Show what is in the caches of all machines."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.caches import Caches

        return _report(*Caches(request, names).rows(), as_json)

    running.run("cache", work)


@cache.command("show")
@click.argument("image")
@output.json_option
def show(image: str, as_json: bool) -> None:
    """Show where an image (its id or name) is cached, and whether in its present version."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.caches import Caches

        caches = Caches(request)
        return _report(*caches.rows_of(caches.image(image)), as_json)

    running.run("cache", work)


@cache.command("verify")
@click.argument("image", required=False)
@host_option
@output.json_option
def verify(image: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Read cached images again and compare them; a damaged one is filled anew."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.caches import COMPLETE, DAMAGED, STALE, Caches

        caches = Caches(request, names)
        rows, failed = caches.rows_of(caches.image(image)) if image else caches.rows()
        rows = [row for row in rows if row["state"] in (COMPLETE, DAMAGED, STALE)]
        with _bar(sum(row["bytes"] for row in rows), "verify") as advance:
            found = caches.verify(rows, advance)
        return _outcome(found, failed, as_json, ("HOST", "IMAGE", "RESULT", "NAME", "DETAIL"))

    running.run("cache", work)


@cache.command("prune")
@host_option
@output.json_option
def prune(names: tuple[str, ...], as_json: bool) -> None:
    """Remove images that are no more from the caches, and what their limits do not allow."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.caches import Caches

        rows, failed = Caches(request, names).prune()
        return _outcome(rows, failed, as_json, ("HOST", "FREED"))

    running.run("cache", work)


@cache.command("drop")
@click.argument("image")
@host_option
@output.json_option
def drop(image: str, names: tuple[str, ...], as_json: bool) -> None:
    """Remove an image from the caches, where it is not in use this moment.

    Disks of VMs that are based on it are not touched.
    """

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.caches import Caches

        caches = Caches(request, names)
        rows, failed = caches.drop(caches.image(image))
        return _outcome(rows, failed, as_json, ("HOST", "DROPPED"))

    running.run("cache", work)


@cache.command("warm")
@click.argument("image")
@click.option("--hosts", metavar="H1,H2", help="The machines to fill, with commas between.")
@click.option("--cluster", metavar="ID", help="All machines of this cluster.")
@output.json_option
def warm(image: str, hosts: str | None, cluster: str | None, as_json: bool) -> None:
    """Bring an image into the caches of many machines at once.

    Each fetches from the one before it while that is being filled: all of them take hardly longer
    than one.
    """

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services import warming
        from onestor_lib.frontend.services.caches import Caches

        if (hosts is None) == (cluster is None):
            raise InvalidInput("choose hosts", "give either --hosts or --cluster")
        caches = Caches(request)
        fleet = caches.fleet
        names = [name.strip() for name in (hosts or "").split(",") if name.strip()]
        machines = fleet.chosen(names) if cluster is None else fleet.in_cluster(cluster)
        chosen = caches.image(image)
        with _chains("warm") as told:
            rows = warming.warm(request, fleet, chosen, machines, told)
        return _outcome(rows, {}, as_json, ("HOST", "RESULT", "SECONDS", "ERROR"))

    running.run("cache", work)


def _report(rows: list[Row], failed: Failed, as_json: bool) -> Report:
    _complain(failed)
    if as_json:
        return Report(output.lines(rows), not failed)
    now = time.time()
    cells = [
        [
            row["host"],
            row["tier"],
            "-" if row["image"] is None else str(row["image"]),
            output.megabytes(row["bytes"]),
            row["state"],
            str(row["shared"]),
            output.seconds(now - row["used"]),
            output.seconds(now - row["verified"] if row["verified"] else None),
            row["name"] or "(no image any more)",
        ]
        for row in rows
    ]
    return Report(output.table(_COLUMNS, cells, right=_NUMBERS), not failed)


def _outcome(rows: list[Row], failed: Failed, as_json: bool, titles: tuple[str, ...]) -> Report:
    """What was done on each machine; it is not well where something has failed."""
    _complain(failed)
    good = not failed and all(row.get("result") != "failed" for row in rows)
    if as_json:
        return Report(output.lines(rows), good)
    cells = [[_cell(title, row.get(title.lower())) for title in titles] for row in rows]
    levels = [_LEVELS.get(str(row.get("result")), "") for row in rows]
    return Report(output.table(titles, cells, levels=levels), good)


def _cell(title: str, value: Any) -> str:
    if title == "FREED":
        return output.megabytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else str(value)


def _complain(failed: Failed) -> None:
    for error in failed.values():
        click.echo(f"onestor: {error}", err=True)


@contextlib.contextmanager
def _bar(size: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    lock = threading.Lock()
    with click.progressbar(length=size, label=label, file=sys.stderr, show_eta=True) as bar:

        def told(done: int) -> None:
            with lock:
                bar.update(done)

        yield told


@contextlib.contextmanager
def _chains(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """One bar for the sum of all chains, which tell of themselves from their threads."""
    done: dict[str, int] = {}
    lock = threading.Lock()
    bars: dict[str, Any] = {}

    with contextlib.ExitStack() as stack:

        def told(chain: str, now: int, size: int) -> None:
            if not sys.stderr.isatty():
                return
            with lock:
                before = done.get(chain, 0)
                done[chain] = max(before, now)
                if "bar" not in bars:
                    bars["bar"] = stack.enter_context(
                        click.progressbar(length=0, label=label, file=sys.stderr, show_eta=True)
                    )
                bar = bars["bar"]
                if chain not in bars:
                    bars[chain] = size
                    bar.length = (bar.length or 0) + size
                bar.update(done[chain] - before)

        yield told
