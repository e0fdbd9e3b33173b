"""A VM's directory that goes from one machine to another, by us or by its hypervisor."""

from __future__ import annotations

import os
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import domains, tombstones, vms
from onestor_lib.frontend.services.hosts import Hosts


class Move:
    """``vm`` with its directory at ``source``, and where that goes, or has gone to."""

    def __init__(
        self,
        request: Request,
        vm: xml.Element,
        source: arguments.VmPath,
        target: arguments.VmPath,
        client: oned.Client,
    ) -> None:
        self.vm, self.source, self.target = vm, source, target
        self._client = client
        self.settings, _ = vms.settings_of(request.settings, client, target)
        self._hosts = Hosts(self.settings, request.log)

    def run(self) -> dict[str, Any]:
        """Move the directory; see ``onestor_lib.agent.operations.directory.move``."""
        crashpoints.reach("frontend.moving")
        places = {"source": self.source, "target": self.target}
        known = {what: tombstones.noted(place) for what, place in places.items()}
        notes: dict[str, Any] = {what: note for what, note in known.items() if note is not None}
        if "target" in notes:
            notes["domain"] = domains.of(self.vm, self.settings)

        def drop(question: dict[str, Any]) -> dict[str, Any]:
            self._drop_notes()
            return {}

        done = self._call("directory.move", on_ask=drop, notes=notes, **self._how())
        crashpoints.reach("frontend.moved")
        return done

    def prepare(self, vm_text: str) -> dict[str, Any]:
        """Before a live migration; ``vm_text`` is what oned has sent."""
        datastore = self._client.datastore(int(os.path.basename(self.source.datastore)))
        done = self._call(
            "directory.prepare",
            domain=domains.of(self.vm, self.settings),
            descriptions={"vm.xml": vm_text, "ds.xml": datastore.to_text()},
            **self._how(),
        )
        self._drop_notes()  # it runs with what the source has; the target has been made anew
        return done

    def retire(self) -> dict[str, Any]:
        """After a live migration."""
        return self._call(
            "directory.retire",
            domain=domains.of(self.vm, self.settings),
            moved_host=self.source.host != self.target.host,
        )

    def abandon(self) -> dict[str, Any]:
        """After a live migration that has failed."""
        return self._call("directory.abandon", domain=domains.of(self.vm, self.settings))

    def _drop_notes(self) -> None:
        for place in (self.source, self.target):
            tombstones.forget(place)

    def _call(self, operation: str, **arguments_of_it: Any) -> dict[str, Any]:
        with self._hosts.agent(self.source.host, sends=True) as agent:
            done: dict[str, Any] = agent.call(
                operation,
                path=self.source.path,
                target=self.target.path,
                peer={"host": self.target.host, "argv": self._argv()},
                disks=vms.own_disks(self.vm),
                **arguments_of_it,
            )
        sent = int(done.get("sent", 0))
        self._hosts.log.tally.sent(self.source.host, self.target.host, sent)
        return done

    def _argv(self) -> list[str]:
        """What starts an agent at the target; nothing when it is the source's machine by name."""
        here = self._hosts.is_here
        source, target = self.source.host, self.target.host
        if source == target or (here(source) and here(target)):
            return []
        return self._hosts.bulk_argv(target, "REPLICA_SSH_OPTS", is_from_here=here(source))

    def _how(self) -> dict[str, Any]:
        return {
            "stall": self.settings.seconds("STALL_TIMEOUT"),
            "bytes_per_second": self.settings.megabytes("REPLICA_BWLIMIT_MB_S") or 0,
            "check_space": self.settings.yes("CHECK_FREE_SPACE"),
            "bulk": self._hosts.bulk_priority(),
        }


def described(done: dict[str, Any]) -> str:
    """What has been done, in words."""
    if done["done"] == "moved":
        linked = f", {' '.join(done['linked'])} there already" if done["linked"] else ""
        return f"{done['sent'] / MB:.1f} MB sent{linked}"
    return {
        "same": "both are one directory",
        "already": "it is there already",
        "renamed": "renamed",
        "prepared": f"prepared, {done['sent'] / MB:.1f} MB sent",
    }[str(done["done"])]
