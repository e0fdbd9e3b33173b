"""The disks of one VM, for people: what they are made of, and changing that while it is off."""

from __future__ import annotations

from typing import Any

from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, oned, qcow2_options, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import bridges, overview, systems, vms
from onestor_lib.frontend.services.hosts import PATIENCE, Hosts
from onestor_lib.frontend.services.origin import Origin
from onestor_lib.frontend.services.supply import Supply

_RECORD = "HISTORY_RECORDS/HISTORY[last()]"

Row = dict[str, Any]


class Disks:
    """The disks of a VM where it is placed now; raises :class:`InvalidInput` and :class:`Missing`.

    ``kind`` says what is to be done, for errors.
    """

    def __init__(self, request: Request, vm_id: int, kind: str) -> None:
        self._request, self._log = request, request.log
        self._kind = kind
        self._client = oned.Client()
        self._vm = self._client.vm(vm_id)
        self._id = vm_id
        host = self._vm.text(f"{_RECORD}/HOSTNAME")
        if not host or self._vm.text("STATE") == vms.DONE:
            raise Missing(kind, f"VM {vm_id} is on no host")
        system = self._client.datastore(int(self._vm.text(f"{_RECORD}/DS_ID")))
        if not systems.is_ours(system):
            cause = f"VM {vm_id} is in datastore {system.text('ID')} of another driver"
            raise InvalidInput(kind, cause)
        base = arguments.checked_path(system.text("BASE_PATH"))
        self._directory = arguments.vm_path(f"{host}:{base}/{vm_id}", vm_id)
        self._log.tally.fact(vm=vm_id, host=host)

    def rows(self) -> list[Row]:
        """A row for each disk; sizes in bytes, the age of its recovery copy in seconds."""
        templates = self._vm.all("TEMPLATE/DISK")
        formats = {f"disk.{each.text('DISK_ID')}": vms.format_of(each) for each in templates}
        settings, _ = vms.settings_of(self._request.settings, self._client, self._directory)
        hosts = Hosts(settings, self._log, patience=PATIENCE)
        with hosts.agent(self._directory.host) as host:
            found = host.call("disk.describe", path=self._directory.path, formats=formats)
        copies = {row["disk"]: row for row in overview.rows(self._request) if row["vm"] == self._id}
        images = {f"disk.{each.text('DISK_ID')}": each.text("IMAGE_ID") for each in templates}
        return [
            {
                "vm": self._id,
                "host": self._directory.host,
                "image": int(images[facts["disk"]]) if images[facts["disk"]] else None,
                **facts,
                "recovery": copies.get(facts["disk"], {}).get("age"),
            }
            for facts in found
        ]

    def flatten(self, disk_id: int) -> Row:
        """Make a disk one complete file; whether that was to be ``done``, and its ``bytes`` now."""
        target, disk = self._require_off(disk_id)
        settings, _ = vms.settings_of(self._request.settings, self._client, target, disk=disk)
        hosts = Hosts(settings, self._log)
        with hosts.agent(target.host) as host:
            done = host.call(
                "disk.flatten",
                on_ask=self._answer,
                path=target.path,
                image_format=disk.image_format,
                check_space=settings.yes("CHECK_FREE_SPACE"),
                timeout=settings.seconds("CONVERT_TIMEOUT"),
                lock_timeout=settings.seconds("BLOCK_JOB_TIMEOUT"),
                bulk=hosts.bulk_priority(),
            )
        return self._row(target, done)

    def thin(self, disk_id: int) -> Row:
        """Make a disk an overlay on its image again; the answer is as that of flatten."""
        target, disk = self._require_off(disk_id)
        image = self._image_of(disk)
        datastore_id = int(image.text("DATASTORE_ID"))
        settings, datastore = vms.settings_of(
            self._request.settings, self._client, target, image_datastore=datastore_id, disk=disk
        )
        hosts = Hosts(settings, self._log)
        source = arguments.Location("localhost", arguments.checked_path(image.text("SOURCE")))
        with Origin(hosts, source, bridges.of(datastore)) as origin:
            facts = origin.describe(disk.image_format, snapshots=False)
            purpose = f"thin {target.name} of VM {self._id}"
            supply = Supply(
                hosts, self._client, origin, target, facts, purpose=purpose, use_replica=True
            )

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                wants = question["ask"] == "wanted"
                return self._answer(question) if wants else supply.answer(question)

            with hosts.agent(target.host) as host:
                done = host.call(
                    "disk.thin",
                    on_ask=answer,
                    path=target.path,
                    image=supply.cached(),
                    qcow2_options=qcow2_options.effective(settings),
                    check_space=settings.yes("CHECK_FREE_SPACE"),
                    timeout=settings.seconds("CONVERT_TIMEOUT"),
                    lock_timeout=settings.seconds("BLOCK_JOB_TIMEOUT"),
                    bulk=hosts.bulk_priority(),
                )
        return self._row(target, done)

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Before the disk is replaced: the VM must not have been started meanwhile."""
        now = self._client.vm(self._id)
        same = vms.sequence(now) == vms.sequence(self._vm)
        if now.text("STATE") != vms.POWEROFF or not same:
            raise NotAllowed(self._kind, f"VM {self._id} is not powered off any more")
        return {}

    def _require_off(self, disk_id: int) -> tuple[arguments.VmPath, vms.Disk]:
        if self._vm.text("STATE") != vms.POWEROFF:
            raise NotAllowed(self._kind, f"VM {self._id} is not powered off (onevm poweroff)")
        place = f"{self._directory.host}:{self._directory.path}/disk.{disk_id}"
        target = arguments.vm_path(place, self._id)
        disk = vms.describe(self._vm, target)
        self._require_own(target, disk)
        return target, disk

    def _require_own(self, target: arguments.VmPath, disk: vms.Disk) -> None:
        """What another driver has made it goes on to change: snapshots, or an image in its place.

        So it is on a datastore that was adopted (docs/operations.md).
        """
        drivers = {
            "the VM": self._vm.text(f"{_RECORD}/TM_MAD"),
            target.name: disk.template.text("TM_MAD") if disk.template else "",
        }
        for what, driver in drivers.items():
            if driver not in ("", DRIVER):
                raise NotAllowed(self._kind, f"{what} is of the driver {driver} still")
        if target.name not in vms.own_disks(self._vm):
            raise NotAllowed(self._kind, f"{target.name} is not a file in the VM's directory")

    def _image_of(self, disk: vms.Disk) -> xml.Element:
        if not disk.image_id:
            raise InvalidInput(self._kind, "the disk was not made from an image")
        if disk.image_format != "qcow2":
            raise InvalidInput(self._kind, "only a qcow2 disk can lie on an image")
        if disk.template is not None and disk.template.text("PERSISTENT").upper() == "YES":
            raise InvalidInput(self._kind, "a persistent disk is a file of its own")
        return self._client.image(int(disk.image_id))

    def _row(self, target: arguments.VmPath, done: dict[str, Any]) -> Row:
        bytes_now = int(done["bytes"])
        return {"vm": self._id, "disk": target.name, "done": bool(done["done"]), "bytes": bytes_now}
