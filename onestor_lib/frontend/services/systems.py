"""onestor's system datastores, among all that oned knows, and what their templates set."""

from __future__ import annotations

from collections.abc import Iterable

from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import xml
from onestor_lib.frontend.config import Settings

_SYSTEM = "1"  # a type of datastores


def is_system(datastore: xml.Element) -> bool:
    """Whether it is for the disks of VMs."""
    return datastore.text("TYPE") == _SYSTEM


def is_ours(datastore: xml.Element) -> bool:
    """Whether onestor is its driver for disks of VMs."""
    return datastore.text("TM_MAD") == DRIVER


def of_onestor(datastores: Iterable[xml.Element]) -> list[xml.Element]:
    """The system datastores among them that are onestor's."""
    return [each for each in datastores if is_system(each) and is_ours(each)]


def settings_over(configured: Settings, datastore: xml.Element) -> Settings:
    """``configured`` with what the template of a system datastore says."""
    return configured.over(
        "system",
        lambda name: datastore.text(f"TEMPLATE/{name}"),
        f"datastore {datastore.text('ID')}",
    )
