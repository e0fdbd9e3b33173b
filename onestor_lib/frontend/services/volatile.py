"""Disks that come from no image: made empty on the VM's host."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, boundary, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import disks, filesystems, recovered, recovery, vms
from onestor_lib.frontend.services.hosts import Hosts

# What there is to copy of a disk that is not made from an image, see ``disk.place``.
_EMPTY = {"size": 0, "allocated": 0, "virtual_size": 0, "snapshots": {}, "snapshots_allocated": 0}


def make(request: Request, *, size: str, image_format: str, place: str, vm: str) -> None:
    """Make the disk ``place`` ("host:DIR/disk.i") of ``size`` MB; format "swap" is swap space.

    A file system is what the disk's template asks for with FS.
    """
    begin = time.monotonic()
    megabytes = arguments.number(size, "the size")
    target = vms.disk_path(place, vm)
    client = oned.Client()
    known = client.vm(target.vm_id)
    disk = vms.template_of(known, target)
    settings, _ = vms.settings_of(request.settings, client, target, disk=disk)
    hosts = Hosts(settings, request.log)
    wanted = _filesystem(request, image_format, disk.template.text("FS") if disk.template else "")
    kind = "raw" if image_format == filesystems.SWAP else image_format
    if kind not in FORMATS:
        raise InvalidInput("read the arguments", f"the format is {kind!r}, not raw, qcow2 or swap")
    disk = replace(disk, image_format=kind, grow_to=megabytes * MB)
    recovery.warn_of_no_copies(known, disk, target, settings, request.log)
    sequence = vms.sequence(known)
    with recovered.held(hosts, client, known, target, disk, None) as copy:

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if copy and question.get("item") in recovered.ITEMS:
                return copy.bring(hosts, target, question)
            vms.require_wanted(client, target.vm_id, sequence, request.log)
            return {}

        shape = disks.shape_of(disk, settings, standalone=True, bulk=hosts.bulk_priority())
        how: dict[str, Any] = {
            "on_ask": answer,
            "path": target.path,
            "check_space": settings.yes("CHECK_FREE_SPACE"),
            "record": vms.record_of(request.action, known, target),
            "retry": known.text("LCM_STATE") == vms.PROLOG,
            "lock_timeout": settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
        }
        with hosts.agent(target.host) as host:
            if copy:
                facts = copy.facts()
                host.call(
                    "disk.place", shape=shape, source=_EMPTY, image=None, recovered=facts, **how
                )
            else:
                host.call(
                    "disk.make",
                    size=disk.grow_to,
                    image_format=kind,
                    filesystem=wanted.name,
                    options=wanted.options,
                    qcow2_options=shape["qcow2_options"],
                    sparse=shape["sparse"],
                    timeout=shape["convert_timeout"],
                    **how,
                )
    seconds = time.monotonic() - begin
    what = f"{kind}, {wanted.name or 'no file system'}, {megabytes} MB"
    request.log.info(f"VM {target.vm_id} {target.name} on {target.host}: {what}, {seconds:.2f} s")


def _filesystem(request: Request, image_format: str, asked: str) -> filesystems.Filesystem:
    name = filesystems.SWAP if image_format == filesystems.SWAP else asked
    return filesystems.choose(name, boundary.remotes_directory(), request.log)
