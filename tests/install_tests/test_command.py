"""install.sh: the command onestor and its timer."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from tests.install_tests.conftest import USER, FrontEnd, installed_in_both_trees

COMMAND, UNITS = "command/onestor", ("onestor-recovery.service", "onestor-recovery.timer")


@installed_in_both_trees
def test_it_is_there_and_goes_again(installed: FrontEnd) -> None:
    command = installed.base / COMMAND
    assert command.stat().st_mode & 0o777 == 0o755
    assert repr(str(installed.remotes)) in command.read_text()
    before = command.stat().st_mtime_ns
    (installed.base / "units").mkdir()
    installed.run()
    assert command.stat().st_mtime_ns == before
    service, timer = (installed.base / "units" / name for name in UNITS)
    assert f"User={USER}\n" in service.read_text()
    assert f"ExecStart={command} recovery run\n" in service.read_text()
    assert "OnUnitInactiveSec=1min" in timer.read_text()
    assert f"ok: {command}" in installed.run("--check", status=1).stdout
    installed.run("--uninstall")
    assert not command.exists() and not service.exists() and not timer.exists()


@installed_in_both_trees
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_root_runs_nothing_that_the_drivers_user_can_change(installed: FrontEnd) -> None:
    module = installed.remotes / "onestor_lib/frontend/commands/onestor.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text("""
import os
who = os.getuid(), os.geteuid(), os.getgid()
def main():
    print(who)
""")
    command = [str(installed.base / COMMAND)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    user = pwd.getpwnam(USER)
    assert said == f"{(user.pw_uid, user.pw_uid, user.pw_gid)}\n"


def test_what_is_somebody_elses_stays(front_end: FrontEnd) -> None:
    command = front_end.base / COMMAND
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho mine\n")
    assert f"{command}: not onestor's, left alone" in front_end.run().stderr
    assert "mine" in command.read_text()
    assert f"problem: {command}" in front_end.run("--check", status=1).stdout
    front_end.run("--uninstall")
    assert "mine" in command.read_text()


def test_without_systemd_there_is_no_timer(installed: FrontEnd) -> None:
    assert (installed.base / COMMAND).exists()
    assert not (installed.base / "units").exists()


def test_a_dry_run_writes_nothing(front_end: FrontEnd) -> None:
    said = front_end.run("--dry-run").stdout
    assert f"would be installed: {front_end.base / COMMAND}" in said
    assert not (front_end.base / COMMAND).exists()
