"""The domain of a VM: how its hypervisor calls it, and how that is reached."""

from __future__ import annotations

from typing import Any

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import xml
from onestor_lib.frontend.config import Settings

LIBVIRT = ("kvm", "qemu")  # the drivers of hypervisors that are reached through libvirt


def of(vm: xml.Element, settings: Settings) -> dict[str, Any]:
    """What an agent is told of the VM's domain: see ``onestor_lib.agent.virsh.Domain``."""
    uri = settings.text("LIBVIRT_URI", r"[A-Za-z0-9+]+:[^\s]*", "a libvirt URI")
    return {"domain": vm.text("DEPLOY_ID") or f"one-{vm.text('ID')}", "uri": uri}


def live(vm: xml.Element, settings: Settings, *, step: str) -> dict[str, Any]:
    """How to copy a running disk, see ``onestor_lib.agent.live_copy.Live``.

    Raises :class:`InvalidInput`: only libvirt's hypervisors can (known failure E11).
    """
    hypervisor = vm.text("HISTORY_RECORDS/HISTORY[last()]/VM_MAD")
    if hypervisor not in LIBVIRT:
        raise InvalidInput(step, f"disks of VMs that run on {hypervisor!r} cannot be copied")
    return {
        **of(vm, settings),
        "stall": settings.seconds("STALL_TIMEOUT"),
        "patience": settings.seconds("BLOCK_JOB_TIMEOUT"),
        "freeze_limit": settings.seconds("FREEZE_TIMEOUT"),
        "suspend_limit": settings.seconds("SUSPEND_TIMEOUT"),
        "bytes_per_second": settings.megabytes("REPLICA_BWLIMIT_MB_S") or 0,
    }
