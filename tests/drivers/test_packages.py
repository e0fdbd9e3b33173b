"""The same drivers with the newest packages from PyPI, in the private environment of install.sh.

All other tests of this directory run with the packages of the distribution.
"""

from __future__ import annotations

import os

import pytest

from tests.drivers.conftest import SOURCES, digest, make_sources, same_content
from tests.testbed import REMOTES, Testbed, running_testbed

pytestmark = pytest.mark.cluster

VENV = "/usr/lib/onestor/venv"


def test_newest_packages_in_a_private_environment() -> None:
    wheels = os.environ.get("ONESTOR_WHEELS", "")
    assert wheels, "tests/run downloads the packages and sets this variable"
    with running_testbed(
        hosts=1,
        version="7.4.1",
        binds={"/wheels": wheels},
        install_options=("--private-venv",),
        install_env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"},
    ) as bed:
        make_sources(bed.frontend)
        first_line = bed.frontend.read(f"{REMOTES}/tm/onestor/clone").splitlines()[0]
        assert first_line.decode() == f"#!{VENV}/bin/python3"
        listing = bed.frontend.run([f"{VENV}/bin/pip", "list", "--format=freeze"]).stdout
        versions = dict(line.split("==") for line in listing.lower().split())
        assert int(versions["paramiko"].split(".")[0]) >= 4
        assert int(versions["lxml"].split(".")[0]) >= 6
        imported = bed.import_image(f"{SOURCES}/disk.qcow2")
        vm = bed.vm(imported, bed.image(f"{SOURCES}/raw.img"))
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        assert reply.success, reply.error
        host = bed.hosts[0]
        disk = bed.disk_path(vm)
        assert same_content(bed, host, disk, "qcow2", f"{SOURCES}/disk.qcow2")
        assert digest(host, bed.disk_path(vm, 1)) == digest(bed.frontend, f"{SOURCES}/raw.img")
        assert bed.oned.terminate(vm).success
        assert bed.oned.delete_image(imported).success
        # The probe runs with the host's own python3 and needs nothing.
        probe = bed.hosts[0].read("/var/tmp/one/tm/onestor/monitor_ds").splitlines()[0]
        assert probe == b"#!/usr/bin/env python3"
        bed.assert_at_rest()


def test_distribution_packages_are_those_of_debian_12(bed: Testbed) -> None:
    """What the other tests run with: the oldest versions that are supported."""
    script = "import click, lxml, paramiko; print(paramiko.__version__, lxml.__version__)"
    found = bed.frontend.run(["/usr/bin/python3", "-W", "ignore", "-c", script]).stdout.split()
    assert found[0].startswith("2.12")
    assert found[1].startswith("4.9")
