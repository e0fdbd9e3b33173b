"""One of the actions on a snapshot of a VM's disk (contract section 2.4)."""

from __future__ import annotations

import time
from typing import Any

from onestor_lib.frontend import arguments, oned, qcow2_options
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import domains, vms
from onestor_lib.frontend.services.hosts import Hosts


class DiskSnapshot:
    """``host:DIR/disk.i snapid vmid dsid``: the snapshot, and what oned knows of its disk."""

    def __init__(self, request: Request) -> None:
        words = arguments.words(request.argv, "host:DIR/disk.i snapid vmid dsid")
        self.target = vms.disk_path(words[0], words[2])
        self.id = arguments.number(words[1], "the snapshot's id")
        client = oned.Client()
        self.vm = client.vm(self.target.vm_id)
        self.disk = vms.describe(self.vm, self.target)
        datastore = arguments.number(words[3], "the datastore's id")
        self.settings, _ = vms.settings_of(
            request.settings, client, self.target,
            image_datastore=vms.image_datastore(self.disk, datastore), disk=self.disk,
        )  # fmt: skip
        self._log = request.log
        self._hosts = Hosts(self.settings, request.log)

    def create(self) -> None:
        """Of a VM that does not run."""
        self._call("disk.snapshot", "created", **self._copying())

    def create_live(self) -> None:
        """Of a VM that runs."""
        is_qcow2 = self.disk.image_format == "qcow2"
        self._call(
            "disk.snapshot_live",
            "created while the VM runs",
            **self._copying(),
            live=domains.live(self.vm, self.settings, step="create live snapshot"),
            qcow2_options=qcow2_options.effective(self.settings) if is_qcow2 else [],
        )

    def revert(self) -> None:
        """Let the disk be what it was, but not smaller than oned counts it."""
        sparse = self.settings.yes("SPARSE")
        grow_to = self.disk.grow_to
        self._call("disk.revert", "reverted to", **self._copying(), grow_to=grow_to, sparse=sparse)

    def delete(self) -> None:
        """Remove it."""
        self._call("disk.forget", "deleted")

    def _copying(self) -> dict[str, Any]:
        return {
            "check_space": self.settings.yes("CHECK_FREE_SPACE"),
            "timeout": self.settings.seconds("CONVERT_TIMEOUT"),
            "bulk": self._hosts.bulk_priority(),
        }

    def _call(self, operation: str, done: str, **facts: Any) -> None:
        begin = time.monotonic()
        with self._hosts.agent(self.target.host) as host:
            host.call(
                operation,
                path=self.target.path,
                image_format=self.disk.image_format,
                snapshot=self.id,
                lock_timeout=self.settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
                **facts,
            )
        self._log.info(
            f"VM {self.target.vm_id} {self.target.name} on {self.target.host}: "
            f"snapshot {self.id} {done}, {time.monotonic() - begin:.2f} s"
        )
