"""Putting an image in place as the disk of a VM."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, oned, qcow2_options, xml
from onestor_lib.frontend.config import TM_ATTRIBUTES, Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import bridges, recovered, recovery, vms
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.origin import Origin
from onestor_lib.frontend.services.supply import Supply

_CACHE = [each.name for each in TM_ATTRIBUTES if each.name.startswith("CACHE_")]
_CACHE_HAD = ("hit", "miss")  # what a host may say of its cache besides "none"


class Placement:
    """One ``clone`` or ``ln``: an image becomes ``disk.N`` of a VM on a host."""

    def __init__(self, action: str, argv: list[str], settings: Settings, log: Log) -> None:
        words = arguments.words(argv, "fe:SOURCE host:DIR/disk.i vmid dsid")
        self.action = action
        self.vm_id = arguments.number(words[2], "the VM's id")
        self.datastore_id = arguments.number(words[3], "the datastore's id")
        self.source = arguments.location(words[0])
        self.target = arguments.vm_path(words[1], self.vm_id)
        if not self.target.name:
            raise InvalidInput("read the arguments", f"{words[1]!r} is no disk")
        self.oned = oned.Client()
        self.configured = settings
        self.log = log

    def run(self, *, persistent: bool) -> None:
        """Do it; a ``persistent`` image comes with its snapshots and goes past every cache.

        It is used by one VM and has other content afterwards (known failure A15).
        """
        begin = time.monotonic()
        vm = self.oned.vm(self.vm_id)
        disk = vms.describe(vm, self.target)
        settings, image_datastore = vms.settings_of(
            self.configured, self.oned, self.target, image_datastore=self.datastore_id, disk=disk
        )
        bridge_hosts = bridges.of(image_datastore)
        if image_datastore is not None:
            _warn_of_others(image_datastore, self.log)
        hosts = Hosts(settings, self.log)
        caches = not persistent and settings.yes("CACHE_ENABLE")
        recovery.warn_of_no_copies(vm, disk, self.target, settings, self.log)
        sequence = vms.sequence(vm)
        crashpoints.reach("frontend.decided")
        with contextlib.ExitStack() as stack:
            origin = stack.enter_context(Origin(hosts, self.source, bridge_hosts))
            facts = origin.describe(disk.image_format, snapshots=persistent)
            version = facts["version"] if disk.image_id else None
            copy = stack.enter_context(
                recovered.held(hosts, self.oned, vm, self.target, disk, version)
            )
            supply = Supply(
                hosts,
                self.oned,
                origin,
                self.target,
                facts,
                purpose=f"{self.action} of {self._image(disk)} for VM {self.vm_id}",
                use_replica=caches,
            )

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                if question["ask"] != "wanted":
                    if copy and question.get("item") in recovered.ITEMS:
                        return copy.bring(hosts, self.target, question)
                    return supply.answer(question)
                vms.require_wanted(self.oned, self.vm_id, sequence, self.log)
                return {}

            shape = shape_of(disk, settings, standalone=persistent, bulk=hosts.bulk_priority())
            with hosts.agent(self.target.host) as host:
                placed = host.call(
                    "disk.place",
                    on_ask=answer,
                    path=self.target.path,
                    shape=shape,
                    source=facts,
                    image=supply.cached() if caches else None,
                    recovered=copy.facts() if copy else None,
                    check_space=settings.yes("CHECK_FREE_SPACE"),
                    record={
                        **vms.record_of(self.action, vm, self.target, disk.image_id),
                        "version": version,
                    },
                    retry=vm.text("LCM_STATE") == vms.PROLOG,
                    lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
                )
                crashpoints.reach("frontend.placed")
        tally = self.log.tally
        how = str(placed["cache"]) if placed["cache"] in _CACHE_HAD else "none"
        tally.fact(image=disk.image_id, cache=how)
        tally.add("cache_requests_total", 1, host=self.target.host, result=how)
        if caches:
            saved = max(0, int(facts["allocated"]) - supply.sent)
            tally.add("saved_bytes_total", saved, host=self.target.host)
        way = f" from {', '.join(supply.way)}" if supply.way else ""
        self.log.info(
            f"VM {self.vm_id} {self.target.name} on {self.target.host} of {self._image(disk)}: "
            f"cache {how}, {supply.sent / MB:.1f} MB sent{way}, "
            f"{time.monotonic() - begin:.2f} s"
        )

    def _image(self, disk: vms.Disk) -> str:
        return f"image {disk.image_id}" if disk.image_id else self.source.path


def _warn_of_others(datastore: xml.Element, log: Log) -> None:
    """Say which attributes of a cache nobody reads (known failure L9)."""
    ignored = [
        name
        for name in datastore.tags("TEMPLATE")
        if name.startswith("CACHE_") and name not in _CACHE
    ]
    if ignored:
        log.warn(f"{', '.join(ignored)} of datastore {datastore.text('ID')}: no effect here")


def shape_of(
    disk: vms.Disk, settings: Settings, *, standalone: bool, bulk: dict[str, Any]
) -> dict[str, Any]:
    """How the disk shall be, see :class:`onestor_lib.agent.new_disk.Shape`."""
    sparse = settings.yes("SPARSE")
    is_qcow2 = disk.image_format == "qcow2"
    thin = is_qcow2 and sparse and not standalone and not settings.yes("QCOW2_STANDALONE")
    return {
        "image_format": disk.image_format,
        "thin": thin,
        "qcow2_options": qcow2_options.effective(settings) if is_qcow2 else [],
        "grow_to": disk.grow_to,
        "sparse": sparse,
        "convert_timeout": settings.seconds("CONVERT_TIMEOUT"),
        "bulk": bulk,
    }
