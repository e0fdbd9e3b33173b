"""install.sh: what packages are called, by distribution and release.

The distribution is played: its /etc/os-release and its package manager take the places of ours in
a mount namespace, for which root is needed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.install_tests.conftest import FrontEnd, new_front_end, script, small_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root")

DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\n'
DEBIAN_11 = 'ID=debian\nVERSION_ID="11"\n'
DEBIAN_10 = 'ID=debian\nVERSION_ID="10"\n'
UBUNTU_24 = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
UBUNTU_22 = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n'
UBUNTU_20 = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="20.04"\n'
ALMA_8 = 'ID="almalinux"\nID_LIKE="rhel centos fedora"\nVERSION_ID="8.10"\n'
ALMA_8 += 'PLATFORM_ID="platform:el8"\n'
RHEL_8_6 = 'ID="rhel"\nID_LIKE="fedora"\nVERSION_ID="8.6"\nPLATFORM_ID="platform:el8"\n'
STREAM_8 = 'ID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="8"\nPLATFORM_ID="platform:el8"\n'
ROCKY_9 = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
ROCKY_9 += 'PLATFORM_ID="platform:el9"\n'
ALMA_10 = 'ID="almalinux"\nID_LIKE="rhel centos fedora"\nVERSION_ID="10.0"\n'
ALMA_10 += 'PLATFORM_ID="platform:el10"\n'
CENTOS_7 = 'ID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="7"\n'
FEDORA = 'ID=fedora\nVERSION_ID=41\nPLATFORM_ID="platform:f41"\n'
SUSE = 'ID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n'

MANAGERS = ("apt-get", "dnf", "yum")
LIBRARIES = "python3-lxml python3-paramiko python3-click"


@dataclass
class Machine:
    """The front-end on a machine of another distribution; what its package manager ``does``."""

    front_end: FrontEnd
    release: str
    manager: str
    does: str = ""

    def run(self, *args: str, status: int = 0) -> str:
        base = self.front_end.base
        (base / "os-release").write_text(self.release)
        (base / "tools").mkdir(exist_ok=True)
        for name in MANAGERS:
            (base / "tools" / name).unlink(missing_ok=True)
        if self.manager:
            log = f'#!/bin/sh\necho "$(basename "$0") $*" >>"{base}/manager.log"\n'
            script(base / "tools" / self.manager, (log + self.does).encode())
        mount = 'mount --bind "$0" /etc/os-release && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", mount, str(base / "os-release")]
        places = ["--remotes", str(self.front_end.remotes), "--etc", str(self.front_end.etc)]
        places += ["--bin", str(base / "command"), "--venv", str(self.front_end.venv)]
        done = subprocess.run(
            [
                *argv,
                str(self.front_end.source / "install.sh"),
                *self.front_end.places,
                *places,
                *args,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "PATH": f"{base}/tools:{base}/others",
                "ONESTOR_PATH": f"{base}/bin",
            },
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def managed(self) -> list[str]:
        return (self.front_end.base / "manager.log").read_text().splitlines()


@pytest.fixture(scope="module")
def others() -> Iterator[Path]:
    """All programs of ours but for package managers."""
    with tempfile.TemporaryDirectory(prefix="onestor-programs-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for program in {*os.listdir("/usr/bin")} - {*MANAGERS}:
            (directory / program).symlink_to(f"/usr/bin/{program}")
        yield directory


@pytest.fixture
def front_end(others: Path) -> Iterator[FrontEnd]:
    """What is installed makes no difference here."""
    with new_front_end(small_tree) as site:
        (site.base / "others").symlink_to(others)
        yield site


def machine(front_end: FrontEnd, release: str, manager: str) -> Machine:
    return Machine(front_end, release, manager)


@pytest.mark.parametrize(
    ("release", "manager", "hint"),
    [
        (DEBIAN_12, "apt-get", "apt-get install python3 python3-venv"),
        (UBUNTU_20, "apt-get", "apt-get install python3.9 python3.9-venv"),
        (DEBIAN_10, "apt-get", "this release of the distribution has none, get one by other means"),
        (ALMA_8, "dnf", "dnf install python3.11"),
        (STREAM_8, "dnf", "dnf install python3.11"),
        (RHEL_8_6, "dnf", "dnf install python39"),
        (RHEL_8_6, "yum", "yum install python39"),
        (ROCKY_9, "dnf", "dnf install python3"),
        (FEDORA, "dnf", "dnf install python3"),
        (CENTOS_7, "yum", "this release of the distribution has none, get one by other means"),
        (SUSE, "", "install python3 python3-venv (Debian) or python3.11 (Red Hat)"),
    ],
)
def test_a_python_that_is_new_enough(
    front_end: FrontEnd, release: str, manager: str, hint: str
) -> None:
    (front_end.base / "bin/python3").unlink()
    said = machine(front_end, release, manager).run(status=1).rstrip()
    assert "no python3 >= 3.9" in said and said.endswith(hint)


@pytest.mark.parametrize(
    ("release", "manager", "hint"),
    [
        (DEBIAN_12, "apt-get", f"apt-get install {LIBRARIES}, or --packages"),
        (UBUNTU_24, "apt-get", f"apt-get install {LIBRARIES}, or --packages"),
        (FEDORA, "dnf", f"dnf install {LIBRARIES}, or --packages"),
        (ALMA_10, "dnf", f"dnf install {LIBRARIES} (python3-paramiko is in EPEL), or --packages"),
        # Too old there, or missing.
        (DEBIAN_11, "apt-get", ""),
        (UBUNTU_22, "apt-get", ""),
        (ROCKY_9, "dnf", ""),
        (ALMA_8, "dnf", ""),
    ],
)
def test_libraries_are_named_where_they_would_do(
    front_end: FrontEnd, release: str, manager: str, hint: str
) -> None:
    (front_end.base / "lacks-packages").touch()
    said = machine(front_end, release, manager).run("--dry-run")
    assert "lacks packages" in said
    assert (f"the distribution may have them: {hint}\n" in said) is bool(hint)
    assert ("the distribution may have" in said) is bool(hint)
    assert f"would make a private environment: {front_end.venv} " in said


@pytest.mark.parametrize(
    ("release", "manager", "commands"),
    [
        (
            DEBIAN_12,
            "apt-get",
            [
                "update -qq",
                f"install -y --no-install-recommends {LIBRARIES} qemu-utils openssh-client",
            ],
        ),
        (
            UBUNTU_22,
            "apt-get",
            [
                "update -qq",
                "install -y --no-install-recommends python3 python3-venv qemu-utils openssh-client",
            ],
        ),
        (ALMA_8, "dnf", ["install -y -q python3.11 qemu-img openssh-clients"]),
        (ROCKY_9, "yum", ["install -y -q python3 qemu-img openssh-clients"]),
        (
            ALMA_10,
            "dnf",
            [
                "install -y -q python3 qemu-img openssh-clients",
                "install -y -q epel-release",
                f"install -y -q {LIBRARIES}",
            ],
        ),
        (
            FEDORA,
            "dnf",
            ["install -y -q python3 qemu-img openssh-clients", f"install -y -q {LIBRARIES}"],
        ),
    ],
)
def test_packages_on_demand(
    front_end: FrontEnd, release: str, manager: str, commands: list[str]
) -> None:
    (front_end.base / "lacks-packages").touch()
    other = machine(front_end, release, manager)
    said = other.run("--packages", "--dry-run")
    wanted = [f"{manager} {command}" for command in commands if "update" not in command]
    assert [line for line in said.splitlines() if line.startswith("would run: ")] == [
        f"would run: {command}" for command in wanted
    ]
    other.run("--packages")
    assert other.managed() == [f"{manager} {command}" for command in commands]


def test_packages_bring_a_python_when_there_is_none(front_end: FrontEnd) -> None:
    base = front_end.base
    (base / "bin/python3").rename(base / "kept")
    other = machine(front_end, ALMA_8, "dnf")
    assert "dnf install python3.11" in other.run("--packages", status=1)  # dnf has done nothing
    assert other.managed() == ["dnf install -y -q python3.11 qemu-img openssh-clients"]
    (base / "kept").rename(base / "bin/python3.11")
    other.run("--packages")
    clone = front_end.remotes / "tm/onestor/clone"
    assert clone.read_text().startswith(f"#!{base}/bin/python3.11\n")
    other.manager = ""
    (base / "bin/python3.11").unlink()
    assert "neither apt-get nor dnf nor yum is here" in other.run("--packages", status=1)


def test_packages_that_take_the_only_python_away(front_end: FrontEnd) -> None:
    (front_end.base / "lacks-packages").touch()
    other = machine(front_end, DEBIAN_12, "apt-get")
    other.does = f"rm -f {front_end.base}/bin/python3\n"
    assert "no python3 >= 3.9 that" in other.run("--packages", status=1)
    assert not (front_end.remotes / "tm/onestor").exists()


@pytest.mark.parametrize(
    ("release", "manager", "hint"),
    [
        (DEBIAN_12, "apt-get", "apt-get install qemu-utils"),
        (ROCKY_9, "dnf", "dnf install qemu-img"),
        (CENTOS_7, "yum", "yum install qemu-img"),
        (SUSE, "", "install qemu-utils (Debian) or qemu-img (Red Hat)"),
    ],
)
def test_qemu_img(front_end: FrontEnd, release: str, manager: str, hint: str) -> None:
    (front_end.base / "bin/qemu-img").unlink()
    assert machine(front_end, release, manager).run(status=1).rstrip().endswith(hint)


def test_help_names_what_hosts_need(front_end: FrontEnd) -> None:
    said = front_end.run_bare("--help").stdout
    for name in ("qemu-utils", "libvirt-clients", "qemu-img", "libvirt-client;", "HOST_PYTHON"):
        assert name in said
