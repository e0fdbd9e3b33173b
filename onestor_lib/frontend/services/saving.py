"""Bringing a disk back into its image datastore: mvds and cpds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import Missing, NotAllowed
from onestor_lib.agent.publish import is_temporary
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import bridges, domains, forgetting, kept, transfer, vms
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "save disk"


class Saving:
    """One ``mvds`` or ``cpds``: a disk becomes the content of an image."""

    def __init__(self, request: Request, *, place: str, source: str, vm: str, datastore: str):
        self.target = vms.disk_path(place, vm)
        self.source = arguments.checked_path(arguments.arg_path(source))
        self._client = client = oned.Client()
        self.vm = client.vm(self.target.vm_id)
        self.disk = vms.describe(self.vm, self.target)
        self.settings, found = vms.settings_of(
            request.settings,
            client,
            self.target,
            image_datastore=arguments.number(datastore, "the datastore's id"),
            disk=self.disk,
        )
        assert found is not None
        self._datastore: xml.Element = found
        self._request, self._log = request, request.log
        self._action = request.action
        self._hosts = Hosts(self.settings, request.log)
        self.target = kept.located(self._hosts, self.target)

    def bring_back(self) -> None:
        """The disk, with its snapshots, replaces its image; then it is gone from the host."""
        begin = time.monotonic()
        with self._hosts.agent(self.target.host, sends=True) as host:
            ready = self._prepare(host, snapshot=None, with_snapshots=True, live=None)
            record = vms.record_of(self._action, self.vm, self.target, self.disk.image_id)
            note = {**record, "source": self.source}
            if ready["there"]:
                returned = {**note, "disk": self.target.name, "host": self.target.host}
                sent = self._replace(host, ready, returned)
                self._tell(sent, begin)
            elif not self._is_returned(ready["record"], note):
                return  # known from the image: nothing of the VM is left
            host.call("disk.returned", path=self.target.path, record=note)
        forgetting.forget(self._request, self.target)

    def copy(self, snapshot: int | None) -> None:
        """The disk as it is now, or one of its snapshots, becomes a new image."""
        begin = time.monotonic()
        runs = self.vm.text("LCM_STATE") == vms.HOTPLUG_SAVEAS and snapshot is None
        with self._hosts.agent(self.target.host, sends=True) as host:
            live = domains.live(self.vm, self.settings, step=_STEP) if runs else None
            ready = self._prepare(host, snapshot=snapshot, with_snapshots=False, live=live)
            if not ready["there"]:
                raise Missing(_STEP, "no such file", host=self.target.host, path=self.target.path)
            sent = self._replace(host, ready)
        self._tell(sent, begin)

    def _prepare(
        self,
        host: AgentClient,
        *,
        snapshot: int | None,
        with_snapshots: bool,
        live: dict[str, Any] | None,
    ) -> dict[str, Any]:
        ready: dict[str, Any] = host.call(
            "disk.save",
            path=self.target.path,
            image_format=self.disk.image_format,
            snapshot=snapshot,
            with_snapshots=with_snapshots,
            live=live,
            check_space=self.settings.yes("CHECK_FREE_SPACE"),
            timeout=self.settings.seconds("CONVERT_TIMEOUT"),
            lock_timeout=self.settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
            bulk=self._hosts.bulk_priority(),
        )
        return ready

    def _replace(
        self, host: AgentClient, ready: dict[str, Any], returned: dict[str, Any] | None = None
    ) -> int:
        """Let the image have what is ``ready`` on the host; the bytes that were sent."""
        sequence = vms.sequence(self.vm)
        crashpoints.reach("frontend.prepared")
        sent = 0
        items = {"image": ready["image"], **ready["snapshots"]}
        with self._store() as store:

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                nonlocal sent
                if question["ask"] == "wanted":
                    # A cancelled action goes on, and the image may be somebody else's (trap 8).
                    vms.require_wanted(
                        self._client, self.target.vm_id, sequence, self._log, step=_STEP
                    )
                    return {}
                self._require_allowed(question, store.host, items)
                brought = transfer.bring(
                    self._hosts,
                    host,
                    items[question["item"]]["path"],
                    host=store.host,
                    version=None,
                    temporary=question["temporary"],
                    manifest=question["manifest"],
                    reuse=False,
                )
                sent += int(brought["sent"])
                return brought

            store.call(
                "image.replace",
                on_ask=answer,
                path=self.source,
                base=arguments.checked_path(self._datastore.text("BASE_PATH")),
                size=ready["image"]["size"],
                allocated=ready["allocated"],
                snapshots={name: facts["size"] for name, facts in ready["snapshots"].items()},
                sparse=self.settings.yes("SPARSE"),
                check_space=self.settings.yes("CHECK_FREE_SPACE"),
                returned_from=returned,
                bulk=self._hosts.bulk_priority(),
            )
        crashpoints.reach("frontend.saved")
        return sent

    @contextlib.contextmanager
    def _store(self) -> Iterator[AgentClient]:
        """An agent on the machine that has the image datastore (known failure E14)."""
        names = bridges.of(self._datastore)
        if names:
            with bridges.first_answering(self._hosts, names) as agent:
                yield agent
        else:
            with self._hosts.local_agent() as agent:
                yield agent

    def _require_allowed(self, question: dict[str, Any], host: str, items: dict[str, Any]) -> None:
        """Raise :class:`NotAllowed` unless the content goes beside the image."""
        directory = os.path.dirname(self.source)
        for file in (question["temporary"], question["manifest"]):
            inside, _, name = file.rpartition("/")
            parts = inside[len(directory) + 1 :].split("/")
            right = inside.startswith(f"{directory}/") and is_temporary(name)
            if not right or not is_temporary(parts[0]) or parts[1:] not in ([], ["snapshots"]):
                cause = "the host asks for what it must not have"
                raise NotAllowed("bring content", cause, host=host, path=file)
        if question["item"] not in items:
            raise NotAllowed("bring content", f"no {question['item']!r} is wanted", host=host)

    def _is_returned(self, record: dict[str, Any], note: dict[str, str | int]) -> bool:
        """Whether what was left beside the disk says that it is back in its image (trap 22).

        False when that is gone with the VM's directory, and what was left beside the image says
        so; raises :class:`Missing` when nothing does.
        """
        where = f"{self.target.name} on {self.target.host}"
        on_host = (record.get("action"), record.get("source")) == (self._action, self.source)
        if not on_host:
            base = arguments.checked_path(self._datastore.text("BASE_PATH"))
            with self._store() as store:
                known = store.call("image.returned", path=self.source, base=base)
            wanted = {**note, "disk": self.target.name, "host": self.target.host}
            if any(known.get(key) != value for key, value in wanted.items()):
                cause = f"it is not there, and nothing says that it is back in {self.source}"
                raise Missing(_STEP, cause, host=self.target.host, path=self.target.path)
        self._log.info(f"VM {self.target.vm_id} {where} is back in {self.source} already")
        return on_host

    def _tell(self, sent: int, begin: float) -> None:
        self._log.info(
            f"VM {self.target.vm_id} {self.target.name} on {self.target.host} to {self.source}: "
            f"{sent / MB:.1f} MB sent, {time.monotonic() - begin:.2f} s"
        )
