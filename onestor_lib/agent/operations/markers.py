"""The markers of system datastores' directories on this host."""

from __future__ import annotations

from pathlib import Path

from onestor_lib.agent import vm_directory
from onestor_lib.agent.errors import from_os_error
from onestor_lib.agent.server import Call


def put(call: Call, *, markers: dict[str, str]) -> None:
    """Give each of the directories ``markers`` its marker; our own are made.

    Where the content is another driver's, or "" for none, a marker of ours is replaced, and no
    other one touched.
    """
    for path, content in markers.items():
        directory = Path(path)
        try:
            if content == vm_directory.DRIVER:
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                vm_directory.mark(directory, content)
            else:
                vm_directory.unmark(directory, content)
        except OSError as error:
            raise from_os_error("mark the datastore", error, path=path) from error
