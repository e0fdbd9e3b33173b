"""The domain of a VM: how its hypervisor calls it, and how that is reached."""

from __future__ import annotations

from typing import Any

from onestor_lib.frontend import xml
from onestor_lib.frontend.config import Settings

LIBVIRT = ("kvm", "qemu")  # the drivers of hypervisors that are reached through libvirt


def of(vm: xml.Element, settings: Settings) -> dict[str, Any]:
    """What an agent is told of the VM's domain: see ``onestor_lib.agent.virsh.Domain``."""
    uri = settings.text("LIBVIRT_URI", r"[A-Za-z0-9+]+:[^\s]*", "a libvirt URI")
    return {"domain": vm.text("DEPLOY_ID") or f"one-{vm.text('ID')}", "uri": uri}
