"""What an agent can be asked to do: the table from operation names to functions.

Each function takes the :class:`~onestor_lib.agent.server.Call` and the request's arguments by
name, and returns something JSON can carry. Modules are loaded when first needed: an agent usually
lives for one operation, and what it does not load it does not compile.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

OPERATIONS = {
    "disk.place": "disk:place",
    "disk.delete": "disk:delete",
    "disk.save": "saving:prepare",
    "disk.returned": "saving:returned",
    "image.replace": "saving:replace",
    "image.returned": "saving:returned_by",
    "disk.snapshot": "disk_snapshots:create",
    "disk.snapshot_live": "disk_snapshots:create_live",
    "disk.revert": "disk_snapshots:revert",
    "disk.forget": "disk_snapshots:delete",
    "disk.resize": "resizing:resize",
    "disk.make": "volatile:make",
    "disk.receive": "volatile:receive",
    "host.examine": "examining:examine",
    "host.clock": "examining:clock",
    "host.reach": "examining:reach",
    "disk.describe": "reshaping:describe",
    "disk.flatten": "reshaping:flatten",
    "disk.thin": "reshaping:thin",
    "recovery.look": "recovery:look",
    "recovery.copy": "recovery:copy",
    "recovery.note": "recovery:note",
    "recovery.read": "recovery:read",
    "recovery.fetch": "recovery:fetch",
    "recovery.copies": "recovery:copies",
    "recovery.describe": "recovery:describe",
    "recovery.renew": "recovery:renew",
    "recovery.forget": "recovery:forget",
    "recovery.tidy": "recovery:tidy",
    "recovery.hold": "recovery:hold",
    "directory.layouts": "layouts:describe",
    "directory.examine": "directory:examine",
    "directory.move": "directory:move",
    "directory.prepare": "directory:prepare",
    "directory.retire": "directory:retire",
    "directory.abandon": "directory:abandon",
    "directory.tidy": "directory:tidy",
    "directory.receive": "directory:receive",
    "directory.delete": "disk:delete_directory",
    "image.describe": "image:describe",
    "image.create": "datastore:create",
    "image.measure": "datastore:measure",
    "image.missing": "image:missing",
    "image.remove": "datastore:remove",
    "cache.have": "cache:have",
    "cache.entries": "cache:all_entries",
    "cache.hold": "cache:hold",
    "cache.read": "cache:read",
    "cache.follow": "cache:follow",
    "cache.verify": "cache:verify",
    "cache.trim": "cache:trim",
    "transfer.pull": "transfer:pull",
    "transfer.send": "transfer:send",
    "transfer.receive": "transfer:receive",
    "transfer.copy": "transfer:copy_here",
    "datastore.mark": "markers:put",
    "usage.capacity": "usage:capacity",
    "usage.promised": "usage:promised",
    "usage.disks": "usage:disks",
    "intake.pour": "intake:pour",
    "intake.receive": "intake:receive",
    "source.describe": "source:describe",
    "source.peek": "source:peek",
    "source.read": "source:read",
    "program.run": "program:run",
    "cache.drop": "cache:drop",
    "image.identify": "exporting:identify",
    "image.make": "formatting:make",
    "snapshot.delete": "image_snapshots:delete",
    "snapshot.revert": "image_snapshots:revert",
    "snapshot.flatten": "image_snapshots:flatten",
}


def load(name: str) -> Callable[..., Any]:
    """The function behind an operation's name."""
    module, _, function = OPERATIONS[name].partition(":")
    found = importlib.import_module(f"{__name__}.{module}")
    operation: Callable[..., Any] = getattr(found, function)
    return operation
