"""What the docs tell people to do, done in its order; each command by itself: tests/docs_tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster import Cluster, Node
from tests.docs_tests import pages
from tests.drivers.conftest import digest
from tests.install_tests.test_configure import STOCK
from tests.testbed import DATASTORES, REMOTES, Testbed, prepare_frontend

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]


def test_install_on_a_stock_front_end_as_the_docs_say() -> None:
    told = [each.text for each in pages.commands(ROOT / "docs" / "installing.md")]
    assert [each for each in told if each.startswith("./install.sh")] == [
        "./install.sh",
        "./install.sh --configure",
        "./install.sh --check",
        "./install.sh --uninstall --configure",
    ]
    with Cluster(hosts=0) as cluster:
        frontend = cluster.frontend
        prepare_frontend(frontend, "6.10.0")
        frontend.write("/etc/one/oned.conf", STOCK["6.10"][0], owner="root")
        frontend.write("/etc/one/vmm_exec/vmm_execrc", STOCK["6.10"][1], owner="root")
        first = install(frontend)
        assert "TM_MAD" in first and "LIVE_DISK_SNAPSHOTS" in first
        check = install(frontend, "--check", status=1)
        assert "problem: " in check and "mend: " in check
        install(frontend, "--configure")
        conf = frontend.read("/etc/one/oned.conf").decode()
        assert 'NAME = "onestor"' in conf
        assert "problem" not in install(frontend, "--check")
        assert "nothing to change" in install(frontend)
        install(frontend, "--uninstall", "--configure")
        assert frontend.read("/etc/one/oned.conf").decode() == STOCK["6.10"][0]
        assert not frontend.exists(f"{REMOTES}/tm/onestor")


def install(frontend: Node, *options: str, status: int = 0) -> str:
    done = frontend.run(["/src/install.sh", *options], user="root", check=False, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    return str(done.stdout)


def test_the_driver_in_docs_works(bed: Testbed) -> None:
    """docs/writing-a-driver.md: the example, word for word, as a driver called "mine"."""
    text = (ROOT / "docs" / "writing-a-driver.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    bed.frontend.write(f"{REMOTES}/tm/mine/delete", script, mode=0o755)
    try:
        bed.use_version("7.4.1")
        file = f"{DATASTORES}/102/5/disk.0"
        bed.hosts[0].write(file, "a disk")
        assert digest(bed.hosts[0], file)
        reply = bed.oned.transfer_mad.run_line(f"DELETE mine host01:{file} 5 102")
        assert reply.success, reply.error
        assert not bed.hosts[0].exists(file)
        assert [line.text for line in reply.log] == [f"delete: {file} is gone"]
        reply = bed.oned.transfer_mad.run_line(f"DELETE mine nowhere:{file} 5 102")
        assert "nowhere" in reply.error
    finally:
        bed.frontend.run(["rm", "-r", f"{REMOTES}/tm/mine"])
