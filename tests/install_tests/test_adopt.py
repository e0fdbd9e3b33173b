"""install.sh --adopt and --check --hosts, as far as they go without a cluster."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.install_tests.conftest import ROOT, FrontEnd, script
from tests.oned.cloud import Cloud
from tests.oned.objects import POWEROFF, Datastore

SESSION = "oneadmin:opennebula"


@dataclass
class Cloudy:
    """A front-end with oned, and an empty datastore of the ssh driver."""

    front_end: FrontEnd
    cloud: Cloud
    system: Datastore
    url: str

    def adopt(self, *words: str, status: int = 0) -> str:
        auth = self.front_end.base / "one_auth"
        auth.write_text(SESSION)
        auth.chmod(0o644)
        done = self.front_end.run(
            "--adopt", *words, status=status, ONE_XMLRPC=self.url, ONE_AUTH=str(auth)
        )
        self.cloud.reread(self.system)
        return done.stdout + done.stderr


@contextlib.contextmanager
def with_oned(front_end: FrontEnd, tmp_path: Path) -> Iterator[Cloudy]:
    cloud = Cloud(tmp_path, session=SESSION)
    system = cloud.add_system_datastore(name="old", TM_MAD="ssh")
    argv = [sys.executable, "-B", "-m", "tests.oned.server", "--root", str(tmp_path), "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        try:
            yield Cloudy(front_end, cloud, system, url)
        finally:
            process.kill()


@pytest.fixture
def cloudy(registered: FrontEnd, tmp_path: Path) -> Iterator[Cloudy]:
    with with_oned(registered, tmp_path) as found:
        yield found


@pytest.fixture
def bare(front_end: FrontEnd, tmp_path: Path) -> Iterator[Cloudy]:
    """Where onestor is still to be installed."""
    with with_oned(front_end, tmp_path) as found:
        yield found


# Adopting takes all of the library.
in_the_real_tree = pytest.mark.parametrize("registered", ["real"], indirect=True)


@in_the_real_tree
def test_adopt_of_a_datastore_without_vms(cloudy: Cloudy) -> None:
    before = cloudy.front_end.state()
    assert "would be changed: datastore" in cloudy.adopt("old", "--dry-run")
    assert cloudy.system.tm_mad == "ssh"
    said = cloudy.adopt("old")
    assert cloudy.system.tm_mad == "onestor", said
    assert "has TM_MAD=onestor already" in cloudy.adopt(str(cloudy.system.id))
    assert cloudy.front_end.state() == before


@in_the_real_tree
def test_adopt_looks_at_vms_whose_host_is_this_machine(cloudy: Cloudy) -> None:
    image = cloudy.cloud.add_image(cloudy.cloud.add_image_datastore(), format="raw", source="/x/y")
    vm = cloudy.cloud.add_vm(disks=[cloudy.cloud.image_disk(image)])
    cloudy.cloud.place(vm, os.uname().nodename, cloudy.system)
    cloudy.cloud.set_state(vm, POWEROFF)
    said = cloudy.adopt("old", status=1)
    assert f"problem: VM {vm.id} on " in said and "no such file" in said
    assert "1 problem, nothing was changed" in said
    assert cloudy.system.tm_mad == "ssh"


@pytest.mark.parametrize("front_end", ["real"], indirect=True)
def test_adopt_needs_an_installation_that_oned_knows(bare: Cloudy) -> None:
    assert "onestor is not installed" in bare.adopt("old", status=1)
    bare.front_end.run()
    said = bare.adopt("old", status=1)
    assert "TM_MAD, ARGUMENTS, -d: onestor is not registered" in said
    assert "onestor is not registered, so oned would not accept it" in said
    bare.front_end.run("--configure")
    module = bare.front_end.remotes / "onestor_lib/frontend/services/adopting.py"
    module.rename(module.with_suffix(".old"))
    assert "cannot adopt datastores; upgrade it" in bare.adopt("old", status=1)
    assert bare.system.tm_mad == "ssh"


@in_the_real_tree
def test_adopt_when_oned_does_not_answer(cloudy: Cloudy) -> None:
    (cloudy.cloud.root / "refuse").touch()
    said = cloudy.adopt("old", status=11)
    assert said.startswith("ask oned for the datastores: http://")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [["--adopt"], ["--adopt", "1", "--check"], ["--adopt", "1", "--configure"], ["--hosts"]],
)
def test_wrong_arguments(front_end: FrontEnd, args: list[str]) -> None:
    assert "Usage: install.sh" in front_end.run_bare(*args, status=2).stderr


# -- the hosts ----------------------------------------------------------------------------------


def stub(front_end: FrontEnd, text: str) -> Path:
    """A command onestor that does something else; it is its users' who may run it."""
    command = front_end.base / "command/onestor"
    script(command, f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n".encode())
    return command


DOCTOR = """
case "$*" in
"doctor --help") exit 0 ;;
doctor) id -un; echo "ok: host01"; exit {status} ;;
esac
exit 2"""


@pytest.mark.parametrize("status", [0, 1])
def test_the_hosts_are_the_doctor_s(registered: FrontEnd, status: int) -> None:
    command = stub(registered, DOCTOR.format(status=status))
    said = registered.run("--check", "--hosts", status=1).stdout.splitlines()
    user = said[-2]
    assert said[-1] == "ok: host01"
    assert user == ("nobody" if os.geteuid() == 0 else user)
    # The stub itself is what is wrong with the installation.
    assert [line for line in said if line.startswith("problem")] == [
        line for line in said if line.startswith(f"problem: {command}: not as installed")
    ]
    assert "ok: host01" not in registered.run("--check", status=1).stdout


def test_the_exit_status_is_the_doctor_s(
    registered: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as it is registered, with another library behind it."""
    module = registered.remotes / "onestor_lib/frontend/commands/onestor.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    for status in (0, 3):
        ends = f"sys.exit({status} if sys.argv[1:] == ['doctor'] else 0)"
        module.write_text(f"import sys\ndef main():\n    {ends}\n")
        command = registered.base / "command/onestor"
        done = subprocess.run(
            [str(command), "doctor"], check=False, env={"PATH": f"{registered.base}/bin"}
        )
        assert done.returncode == status
        said = registered.run("--check", "--hosts", status=1).stdout
        assert "it cannot look at hosts" not in said


def test_a_command_without_a_doctor(registered: FrontEnd) -> None:
    command = stub(registered, "exit 2")
    said = registered.run("--check", "--hosts", status=1).stdout
    line = next(line for line in said.splitlines() if "doctor" in line)
    assert line.startswith(f"problem: {command}: it cannot look at hosts")
    assert shlex.quote(f"{registered.source}/install.sh").replace("'", "") in line.replace("\\", "")


def test_no_command_at_all(registered: FrontEnd) -> None:
    (registered.base / "command/onestor").unlink()
    said = registered.run("--check", "--hosts", status=1).stdout
    assert "so the hosts were not looked at; mend: " in said
