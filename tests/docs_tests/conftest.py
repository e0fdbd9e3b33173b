"""A cluster that has what the docs speak of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.conftest import QCOW2, make_sources
from tests.install_tests.test_configure import STOCK
from tests.oned import objects
from tests.testbed import STATE, Testbed, register, running_testbed

IMAGE, VM = 5, 7  # their ids in all pages


@pytest.fixture(scope="session")
def running_bed() -> Iterator[Testbed]:
    with running_testbed(hosts=3) as bed:
        make_sources(bed.frontend)
        register(bed.frontend, *STOCK["6.10"])
        # oned writes there, too.
        bed.frontend.run(["chown", "oneadmin:", f"{STATE}/datastore"], user="root")
        yield bed


@pytest.fixture
def bed(running_bed: Testbed) -> Testbed:
    """Image 5, VM 7 with a thin disk 0 on host01, the replica host03; all of it anew."""
    set_up(running_bed)
    return running_bed


def set_up(bed: Testbed) -> None:
    bed.clean()
    bed.system.template["REPLICA_HOST"] = "host03"
    bed.cloud.save(bed.system)
    vm = bed.vm(bed.image(QCOW2, id=IMAGE), id=VM)
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert reply.success, reply.error
    bed.cloud.set_state(vm, objects.POWEROFF)
    assert bed.disk_path(vm) == "/var/lib/one/datastores/102/7/disk.0"
    assert bed.hosts[0].exists(f"{bed.disk_path(vm)}.base")
