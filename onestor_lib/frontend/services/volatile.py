"""Disks that come from no image: made empty on the VM's host."""

from __future__ import annotations

import time
from typing import Any

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, boundary, oned, qcow2_options
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import filesystems, vms
from onestor_lib.frontend.services.hosts import Hosts


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
    sequence = vms.sequence(known)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        vms.require_wanted(client, target.vm_id, sequence, request.log)
        return {}

    with hosts.agent(target.host) as host:
        host.call(
            "disk.make",
            on_ask=answer,
            path=target.path,
            size=megabytes * MB,
            image_format=kind,
            filesystem=wanted.name,
            options=wanted.options,
            qcow2_options=qcow2_options.effective(settings) if kind == "qcow2" else [],
            sparse=settings.yes("SPARSE"),
            check_space=settings.yes("CHECK_FREE_SPACE"),
            timeout=settings.seconds("CONVERT_TIMEOUT"),
            record=vms.record_of(request.action, known, target),
            retry=known.text("LCM_STATE") == vms.PROLOG,
            lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
        )
    seconds = time.monotonic() - begin
    what = f"{kind}, {wanted.name or 'no file system'}, {megabytes} MB"
    request.log.info(f"VM {target.vm_id} {target.name} on {target.host}: {what}, {seconds:.2f} s")


def _filesystem(request: Request, image_format: str, asked: str) -> filesystems.Filesystem:
    name = filesystems.SWAP if image_format == filesystems.SWAP else asked
    return filesystems.choose(name, boundary.remotes_directory(), request.log)
