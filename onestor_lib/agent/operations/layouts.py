"""What the disks of a VM are made of, looked at before its datastore gets another driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestor_lib.agent import chain, layout, vm_directory
from onestor_lib.agent.errors import OnestorError, from_os_error, to_json
from onestor_lib.agent.server import Call

_STEP = "look at the disk"


def describe(call: Call, *, path: str, disks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layout of each of ``disks``, or the error that says why the actions could not use it.

    Of each disk ``name``, ``format`` and the ids of its ``snapshots`` are given. Nothing is
    changed, and only headers are read: the VM may run.
    """
    return [_describe(Path(path), **disk) for disk in disks]


def _describe(directory: Path, *, name: str, format: str, snapshots: list[int]) -> dict[str, Any]:
    disk = directory / name
    try:
        found = layout.kind(disk, format, step=_STEP)
        for number in snapshots:
            file = vm_directory.snapshots_path(disk) / str(number)
            chain.layers(file, format, within=directory, step="look at the snapshot")
    except OnestorError as error:
        return {"name": name, "error": to_json(error)}
    except OSError as error:
        return {"name": name, "error": to_json(from_os_error(_STEP, error, path=str(disk)))}
    return {"name": name, "layout": found}
