"""onestor vm, flatten and thin: what the disks of a VM are made of, and changing that."""

from __future__ import annotations

import os
from typing import Any

import click

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.commands import output, running

_COLUMNS = ("DISK", "IMAGE", "SIZE", "WRITTEN", "BASE", "SNAPS", "COPY", "FLAT", "FILES")
_NUMBERS = ("IMAGE", "SIZE", "WRITTEN", "SNAPS", "COPY", "FLAT")


@click.group()
def vm() -> None:
    """The disks of a VM."""


@vm.command("show")
@click.argument("vm_id", metavar="ID", type=click.IntRange(0))
@output.json_option
def show(vm_id: int, as_json: bool) -> None:
    """Show what each disk of a VM is made of, and what it would take to flatten it.

    WRITTEN is what the disk takes beside its base, which others may share; COPY is the age of its
    recovery copy; FLAT is the most it takes when it is flattened.
    """

    def work(request: Request) -> str:
        from onestor_lib.frontend.services.reshaping import Disks

        rows = Disks(request, vm_id, "show VM").rows()
        if as_json:
            return output.lines(rows)
        return output.table(_COLUMNS, [_cells(row) for row in rows], right=_NUMBERS)

    running.run("vm", work)


@click.command()
@click.argument("vm_id", metavar="VM", type=click.IntRange(0))
@click.argument("disk", type=click.IntRange(0))
@output.json_option
def flatten(vm_id: int, disk: int, as_json: bool) -> None:
    """Make a disk one complete file, which needs no base; the VM is powered off."""

    def work(request: Request) -> str:
        from onestor_lib.frontend.services.reshaping import Disks

        row = Disks(request, vm_id, "flatten disk").flatten(disk)
        return output.lines([row]) if as_json else _told(row, "is a file of its own")

    running.run("flatten", work)


@click.command()
@click.argument("vm_id", metavar="VM", type=click.IntRange(0))
@click.argument("disk", type=click.IntRange(0))
@output.json_option
def thin(vm_id: int, disk: int, as_json: bool) -> None:
    """Make a disk an overlay on its image's base again; the VM is powered off.

    A live migration leaves disks complete, for one.
    """

    def work(request: Request) -> str:
        from onestor_lib.frontend.services.reshaping import Disks

        row = Disks(request, vm_id, "make disk thin").thin(disk)
        return output.lines([row]) if as_json else _told(row, "lies on its image")

    running.run("thin", work)


def _told(row: dict[str, Any], what: str) -> str:
    now = "now" if row["done"] else "already"
    return f"VM {row['vm']} {row['disk']} {what} {now}, {output.megabytes(row['bytes'])}"


def _cells(row: dict[str, Any]) -> list[str]:
    image = "-" if row["image"] is None else str(row["image"])
    if row["error"]:
        return [row["disk"], image, "-", "-", "-", "-", "-", "-", row["error"]]
    files = row["files"]
    base = f"shared {row['shared']}x" if row["shared"] else "alone" if len(files) > 1 else "none"
    total = sum(each["bytes"] for each in files)
    return [
        row["disk"],
        image,
        output.megabytes(row["size"]),
        output.megabytes(files[0]["bytes"]),
        base,
        str(len(row["snapshots"])),
        output.seconds(row["recovery"]),
        output.megabytes(total) if len(files) > 1 else "-",
        " on ".join(os.path.basename(each["path"]) for each in files),
    ]
