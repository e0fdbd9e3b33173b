"""install.sh: what ends up in the remotes directory, and what a second run does to it."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install_tests.conftest import (
    ONED_CONF,
    PYTHON,
    ROOT,
    SCRIPT,
    USER,
    FrontEnd,
    Installation,
    in_both_trees,
    installed_in_both_trees,
    registered_in_both_trees,
    script,
)

INSTALL = (ROOT / "install.sh").read_text()
CLONE = "tm/onestor/clone"
MONITOR = "tm/onestor/monitor_ds"
BUNDLE = "onestor_lib/agent.bundle"
RC = "etc/tm/onestor/onestorrc"
OURS = ("tm/onestor", "datastore/onestor", "onestor_lib", "etc/tm/onestor", "etc/datastore/onestor")


@installed_in_both_trees
def test_fresh_install_holds_exactly_the_tree(installation: Installation) -> None:
    front_end = installation.site
    assert "OpenNebula 6.10.0" in installation.runs[0].stdout
    expected = {"onestor_lib/INSTALLED", BUNDLE}
    for top, prefix in (("remotes", ""), ("onestor_lib", "onestor_lib/")):
        for path in (front_end.source / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.name[0] != ".":
                expected.add(prefix + path.relative_to(front_end.source / top).as_posix())
    found = front_end.installed() - installation.names
    assert {name for name in found if "__pycache__" not in name} == expected
    modules = {name for name in found if name.startswith("onestor_lib/") and name.endswith(".py")}
    assert len({name for name in found if name.endswith(".pyc")}) == len(modules)
    assert (front_end.remotes / CLONE).read_bytes() == (
        front_end.source / "remotes" / CLONE
    ).read_bytes()


@installed_in_both_trees
def test_modes_owners_and_no_links(installed: FrontEnd) -> None:
    entry = pwd.getpwnam(USER)
    for top in OURS:
        for path in [installed.remotes / top, *(installed.remotes / top).rglob("*")]:
            status = path.lstat()
            is_script = top in ("tm/onestor", "datastore/onestor") and path.is_file()
            expected = 0o755 if path.is_dir() or is_script else 0o644
            assert not path.is_symlink()
            assert status.st_mode & 0o7777 == expected, path
            assert (status.st_uid, status.st_gid) == (entry.pw_uid, entry.pw_gid), path


@installed_in_both_trees
def test_a_second_run_touches_nothing(installed: FrontEnd) -> None:
    before = installed.state()
    assert "nothing to change" in installed.run().stdout
    assert installed.state() == before
    assert not [name for name in before if name.endswith(".new")]


def test_the_callers_umask_and_python_settings_do_not_show(front_end: FrontEnd) -> None:
    command = f"umask 077; exec '{front_end.source}/install.sh' \"$@\""
    environment = {
        **os.environ,
        "ONESTOR_PATH": f"{front_end.base}/bin",
        "PYTHONPYCACHEPREFIX": str(front_end.base / "elsewhere"),
        "SOURCE_DATE_EPOCH": "1",
    }
    subprocess.run(["bash", "-c", command, "-", *front_end.places], check=True, env=environment)
    before = front_end.state()
    front_end.run()
    assert front_end.state() == before


@installed_in_both_trees
def test_the_bytecode_is_used(installed: FrontEnd) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import onestor_lib"
    done = subprocess.run(
        [PYTHON, "-B", "-v", "-c", code, str(installed.remotes)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"matches {installed.remotes}/onestor_lib/__init__.py" in done.stderr


def prebuilt(front_end: FrontEnd) -> str:
    """Whether an action would use the agent's code as install.sh has made it."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from onestor_lib.frontend import bundle\n"
        "print(bundle.prebuilt(pathlib.Path(sys.argv[1], 'onestor_lib')) is not None)"
    )
    done = subprocess.run(
        [PYTHON, "-B", "-c", code, str(front_end.remotes)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@installed_in_both_trees
def test_the_agent_s_code_is_made_once_and_used(installed: FrontEnd) -> None:
    assert prebuilt(installed) == "True"
    manifest = json.loads((installed.remotes / "onestor_lib/INSTALLED").read_text())
    assert manifest["files"][BUNDLE].startswith("sha256:")


@pytest.mark.parametrize("module", ["agent/crashpoints.py", "__init__.py", "frontend/bundle.py"])
def test_the_agent_s_code_is_made_anew_with_its_modules(installed: FrontEnd, module: str) -> None:
    before = (installed.remotes / BUNDLE).read_bytes()
    with (installed.source / "onestor_lib" / module).open("a") as file:
        file.write("\n# newer\n")
    installed.run()
    assert (installed.remotes / BUNDLE).read_bytes() != before
    assert prebuilt(installed) == "True"


@installed_in_both_trees
def test_two_front_ends_have_the_same_code(installed: FrontEnd) -> None:
    """Behind the line with the times of the modules."""

    def code() -> bytes:
        return (installed.remotes / BUNDLE).read_bytes().partition(b"\n")[2]

    before = code()
    installed.run("--uninstall")
    installed.run()
    assert code() == before


@pytest.mark.parametrize("content", [b"", b"damaged", b"[]\n00000000\n{}\n"])
def test_damaged_code_of_the_agent_is_put_right(installed: FrontEnd, content: bytes) -> None:
    (installed.remotes / BUNDLE).write_bytes(content)
    (installed.remotes / BUNDLE).chmod(0o600)
    assert prebuilt(installed) == "False"
    installed.run()
    assert prebuilt(installed) == "True"
    assert (installed.remotes / BUNDLE).stat().st_mode & 0o7777 == 0o644


def test_the_agent_s_code_is_never_a_link(installed: FrontEnd) -> None:
    """A copy of it elsewhere would do for an action, but goes to the hosts as something else."""
    target, elsewhere = installed.remotes / BUNDLE, installed.base / "elsewhere"
    shutil.copy(target, elsewhere)
    target.unlink()
    target.symlink_to(elsewhere)
    mode = elsewhere.stat().st_mode
    installed.run()
    assert not target.is_symlink()
    assert elsewhere.stat().st_mode == mode


def test_links_hidden_files_tests_and_bytecode_of_the_source(front_end: FrontEnd) -> None:
    library = front_end.source / "onestor_lib"
    (library / "linked.py").symlink_to(library / "__init__.py")
    (library / ".swp").write_text("")
    (library / "tests").mkdir()
    (library / "tests" / "test_x.py").write_text("")
    (library / "__pycache__").mkdir(exist_ok=True)
    (library / "__pycache__" / "old.cpython-39.pyc").write_text("")
    front_end.run()
    installed = front_end.installed()
    assert not (front_end.remotes / "onestor_lib/linked.py").is_symlink()
    assert "onestor_lib/linked.py" in installed
    assert not [name for name in installed if ".swp" in name or "tests" in name or "old." in name]


def test_dangling_link_in_the_source_is_refused(front_end: FrontEnd) -> None:
    (front_end.source / "onestor_lib" / "gone.py").symlink_to("nowhere")
    error = front_end.run(status=1).stderr.splitlines()
    assert len(error) == 1
    assert "source: " in error[0]
    assert "gone.py" in error[0]


def test_module_that_does_not_compile_changes_nothing(installed: FrontEnd) -> None:
    before = installed.state()
    (installed.source / "onestor_lib" / "broken.py").write_text("def (:\n")
    assert "compile: " in installed.run(status=1).stderr
    assert installed.state() == before


def test_the_hints_name_the_datastores_and_that_a_replica_host_is_optional(
    installation: Installation,
) -> None:
    hints = installation.runs[0].stdout.partition("\nThen:\n")[2].splitlines()
    (system,) = (number for number, line in enumerate(hints) if "TYPE = SYSTEM_DS" in line)
    assert any("TYPE = IMAGE_DS" in line for line in hints)
    assert "optional: REPLICA_HOST = " in hints[system + 1]


# -- upgrades ---------------------------------------------------------------------------------


def test_upgrade_changes_only_what_changed(installed: FrontEnd) -> None:
    before = installed.state()
    script(installed.source / "remotes" / CLONE, SCRIPT + b"# newer\n")
    installed.run()
    after = installed.state()
    changed = {name for name in after if after[name] != before.get(name)}
    clone = installed.remotes / CLONE
    manifest = installed.remotes / "onestor_lib/INSTALLED"
    directories = {str(clone.parent), str(manifest.parent)}
    assert changed - directories == {str(clone), str(manifest)}
    assert clone.read_bytes().endswith(b"# newer\n")


def test_upgrade_removes_what_vanished_but_nothing_of_others(front_end: FrontEnd) -> None:
    library = front_end.source / "onestor_lib"
    (library / "gone").mkdir()
    (library / "gone" / "__init__.py").write_text("")
    script(front_end.source / "remotes/tm/onestor/oldaction")
    front_end.run()
    (front_end.remotes / "tm/onestor/admins_own").write_text("")
    assert (front_end.remotes / "onestor_lib/gone/__pycache__").is_dir()
    shutil.rmtree(library / "gone")
    (front_end.source / "remotes/tm/onestor/oldaction").unlink()
    front_end.run()
    assert not (front_end.remotes / "onestor_lib/gone").exists()
    assert not (front_end.remotes / "tm/onestor/oldaction").exists()
    assert (front_end.remotes / "tm/onestor/admins_own").exists()
    assert (front_end.remotes / "tm/ssh").is_dir()


def test_changed_module_of_same_size_and_second_is_compiled_again(front_end: FrontEnd) -> None:
    module = front_end.source / "onestor_lib/agent/speed.py"
    module.write_text("VALUE = 1\n")
    front_end.run()
    module.write_text("VALUE = 2\n")
    front_end.run()
    code = "import sys; sys.path.insert(0, sys.argv[1]); from onestor_lib.agent import speed; "
    done = subprocess.run(
        [PYTHON, "-B", "-c", code + "print(speed.VALUE)", str(front_end.remotes)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2\n"


def test_wrong_mode_and_damaged_file_are_put_right(installed: FrontEnd) -> None:
    (installed.remotes / CLONE).chmod(0o600)
    (installed.remotes / MONITOR).write_text("damaged")
    installed.run()
    assert (installed.remotes / CLONE).stat().st_mode & 0o7777 == 0o755
    assert (installed.remotes / MONITOR).read_text() != "damaged"


def test_leftover_of_an_interrupted_run_goes(installed: FrontEnd) -> None:
    leftover = installed.remotes / "tm/onestor/.clone.onestor-tmp"
    leftover.write_text("half")
    installed.run()
    assert not leftover.exists()


def test_directory_that_is_a_link_is_refused(front_end: FrontEnd) -> None:
    elsewhere = front_end.base / "elsewhere"
    elsewhere.mkdir()
    (front_end.remotes / "tm/onestor").symlink_to(elsewhere)
    assert "is a symbolic link" in front_end.run(status=1).stderr
    assert [*elsewhere.iterdir()] == []


# -- configuration files ----------------------------------------------------------------------


def test_unedited_configuration_is_updated(installed: FrontEnd) -> None:
    (installed.source / "remotes" / RC).write_text("SETTING=2\n")
    installed.run()
    assert (installed.remotes / RC).read_text() == "SETTING=2\n"
    assert not (installed.remotes / f"{RC}.new").exists()


def test_edited_configuration_is_kept_with_the_new_one_beside(installed: FrontEnd) -> None:
    (installed.remotes / RC).write_text("MINE=1\n")
    (installed.source / "remotes" / RC).write_text("SETTING=2\n")
    out = installed.run().stdout
    assert f"edited, left alone: {installed.remotes / RC}" in out
    assert (installed.remotes / RC).read_text() == "MINE=1\n"
    assert (installed.remotes / f"{RC}.new").read_text() == "SETTING=2\n"
    before = installed.state()
    installed.run()
    assert installed.state() == before


def test_new_one_goes_when_the_edit_was_merged(installed: FrontEnd) -> None:
    (installed.remotes / RC).write_text("MINE=1\n")
    installed.run()
    shutil.copyfile(installed.source / "remotes" / RC, installed.remotes / RC)
    installed.run()
    assert not (installed.remotes / f"{RC}.new").exists()


def test_configuration_from_before_the_first_install_is_kept(front_end: FrontEnd) -> None:
    path = front_end.remotes / RC
    path.parent.mkdir(parents=True)
    path.write_text("MINE=1\n")
    front_end.run()
    assert path.read_text() == "MINE=1\n"
    before = front_end.state()
    front_end.run()
    assert front_end.state() == before


# -- interpreter and packages -----------------------------------------------------------------


def lacking(front_end: FrontEnd) -> FrontEnd:
    (front_end.base / "lacks-packages").touch()
    return front_end


def test_private_environment_when_packages_are_lacking(front_end: FrontEnd) -> None:
    out = lacking(front_end).run(PIP_FIND_LINKS="/wheels").stdout
    assert "lxml: 4.6 is old" in out
    python = f"{front_end.venv}/bin/python3"
    pip = "-m pip install --quiet --disable-pip-version-check lxml>=4.9 paramiko>=2.12 click>=8.1"
    assert f"-m venv {front_end.venv}" in front_end.calls()
    assert pip in front_end.calls()
    assert (front_end.remotes / CLONE).read_text().startswith(f"#!{python}\n")
    host_script = (front_end.remotes / MONITOR).read_bytes()
    assert host_script == (front_end.source / "remotes" / MONITOR).read_bytes()
    before = front_end.state()
    front_end.log.write_text("")
    front_end.run()
    assert front_end.state() == before
    assert pip not in front_end.calls()


def test_packages_of_the_distribution_on_demand(front_end: FrontEnd) -> None:
    lacking(front_end)
    tools = front_end.base / "tools"
    text = f'#!/bin/sh\necho "$@" >> "{tools}/log"; rm -f "{front_end.base}/lacks-packages"\n'
    script(tools / "apt-get", text.encode())
    path = f"{tools}:{os.environ['PATH']}"
    if os.geteuid() != 0:
        assert "needs root" in front_end.run("--packages", status=1, PATH=path).stderr
        return
    front_end.run("--packages", PATH=path)
    wanted = "install -y --no-install-recommends python3-lxml python3-paramiko python3-click"
    assert wanted in (tools / "log").read_text()
    assert not front_end.venv.exists()
    assert (front_end.remotes / CLONE).read_bytes().startswith(SCRIPT)


def test_private_environment_on_demand(front_end: FrontEnd) -> None:
    front_end.run("--private-venv")
    assert (front_end.remotes / CLONE).read_text().startswith(f"#!{front_end.venv}/bin/python3\n")


def test_failing_pip_leaves_no_environment(front_end: FrontEnd) -> None:
    (front_end.base / "no-index").touch()
    error = lacking(front_end).run(status=1).stderr.splitlines()
    assert len(error) == 1
    assert "pip install" in error[0]
    assert "No matching distribution" in error[0]
    assert not front_end.venv.exists()
    assert not (front_end.remotes / "onestor_lib").exists()


def test_directory_of_somebody_else_is_not_taken_as_environment(front_end: FrontEnd) -> None:
    front_end.venv.mkdir()
    (front_end.venv / "precious").touch()
    assert "was not made by install.sh" in front_end.run("--private-venv", status=1).stderr
    assert (front_end.venv / "precious").exists()


def test_environment_whose_path_no_script_could_name(front_end: FrontEnd) -> None:
    error = front_end.run("--private-venv", "--venv", "/tmp/a blank", status=1).stderr
    assert "#! line" in error


def test_newer_interpreter_beside_an_old_python3(front_end: FrontEnd) -> None:
    (front_end.base / "bin/python3").rename(front_end.base / "bin/python3.11")
    script(front_end.base / "bin/python3", b"#!/bin/sh\nexit 2\n")
    front_end.run()
    python = front_end.base / "bin/python3.11"
    assert (front_end.remotes / CLONE).read_text().startswith(f"#!{python}\n")


def test_no_usable_python(front_end: FrontEnd) -> None:
    (front_end.base / "bin/python3").unlink()
    error = front_end.run(status=1).stderr
    assert "no python3 >= 3.9" in error


def test_no_qemu_img(front_end: FrontEnd) -> None:
    (front_end.base / "bin/qemu-img").unlink()
    error = front_end.run(status=1).stderr
    assert "qemu-img" in error
    assert not (front_end.remotes / "onestor_lib").exists()


if os.environ.get("ONESTOR_WHEELS"):

    def test_real_private_environment(front_end: FrontEnd) -> None:
        wheels = os.environ["ONESTOR_WHEELS"]
        path = "/usr/local/bin:/usr/bin:/bin"
        front_end.run("--private-venv", PIP_NO_INDEX="1", PIP_FIND_LINKS=wheels, ONESTOR_PATH=path)
        code = "import lxml.etree, paramiko, click"
        subprocess.run([str(front_end.venv / "bin/python3"), "-B", "-c", code], check=True)
        before = front_end.state()
        front_end.run(ONESTOR_PATH=path)
        assert front_end.state() == before
        front_end.run("--uninstall", ONESTOR_PATH=path)
        assert not front_end.venv.exists()


# -- places and arguments ---------------------------------------------------------------------


def test_self_contained_opennebula(front_end: FrontEnd) -> None:
    location = front_end.base / "one"
    shutil.copytree(front_end.remotes, location / "var/remotes")
    shutil.copytree(front_end.etc, location / "etc")
    path = f"{front_end.base}/bin:{os.environ['PATH']}"
    environment = {"ONE_LOCATION": str(location), "ONESTOR_PATH": "", "PATH": path}
    front_end.run_bare("--user", USER, status=0, **environment)
    assert (location / "var/remotes" / CLONE).is_file()
    front_end.run_bare("--user", USER, "--configure", status=0, **environment)
    assert "onestor" in (location / "etc/oned.conf").read_text()
    front_end.run_bare("--user", USER, "--private-venv", status=0, **environment)
    assert (location / "lib/onestor/venv/bin/python3").is_file()


def test_dry_run_changes_nothing(front_end: FrontEnd) -> None:
    before = front_end.state()
    out = lacking(front_end).run("--dry-run").stdout
    assert f"would be installed: {front_end.remotes / CLONE}" in out
    assert "would make a private environment" in out
    assert "would be" not in front_end.run("--uninstall", "--dry-run").stdout
    assert "+" in front_end.run("--configure", "--dry-run").stdout
    assert front_end.state() == before


@pytest.mark.parametrize("version", ["6.2.0", "7.6.0", "x"])
def test_version_outside_of_what_is_tested_is_a_warning(front_end: FrontEnd, version: str) -> None:
    (front_end.remotes / "VERSION").write_text(version + "\n")
    assert "6.4 to 7.4" in front_end.run("--dry-run").stderr


@pytest.mark.parametrize(
    "args", [["--bogus"], ["plain"], ["--remotes"], ["--check", "--uninstall"]]
)
def test_wrong_arguments(front_end: FrontEnd, args: list[str]) -> None:
    done = front_end.run_bare(*args, status=2)
    assert done.stdout == ""
    assert "Usage: install.sh" in done.stderr


def test_help_and_version(front_end: FrontEnd) -> None:
    assert "--private-venv" in front_end.run_bare("--help").stdout
    assert front_end.run_bare("--version").stdout.startswith("onestor 0.")


def test_directory_that_is_not_opennebulas(front_end: FrontEnd) -> None:
    (front_end.remotes / "tm/ssh").rmdir()
    (front_end.remotes / "tm").rmdir()
    error = front_end.run(status=1).stderr.splitlines()
    assert len(error) == 1
    assert f"{front_end.remotes}/tm" in error[0]


def test_unknown_user(front_end: FrontEnd) -> None:
    assert "no such user" in front_end.run("--user", "no_such_user_here", status=1).stderr
    assert "no such group" in front_end.run("--user", f"{USER}:no_such_group", status=1).stderr


def test_damaged_manifest_is_named(installed: FrontEnd) -> None:
    (installed.remotes / "onestor_lib/INSTALLED").write_text("{")
    assert "onestor_lib/INSTALLED: damaged" in installed.run(status=1).stderr


# -- uninstall --------------------------------------------------------------------------------


@in_both_trees
def test_uninstall_leaves_what_was_there_before(front_end: FrontEnd) -> None:
    def names() -> set[str]:
        return {str(path) for path in front_end.remotes.rglob("*") if path.name != "datastore"}

    before = names()
    lacking(front_end).run()
    done = front_end.run("--uninstall")
    assert "stop working" in done.stderr
    assert "TM_MAD_CONF" in done.stdout
    # etc/datastore may have been made by the installation; an empty directory harms nobody.
    assert names() == before
    assert not front_end.venv.exists()
    again = front_end.run("--uninstall").stdout
    assert "onestor is not installed" in again


def test_uninstall_keeps_edited_configuration_and_names_it(installed: FrontEnd) -> None:
    (installed.remotes / RC).write_text("MINE=1\n")
    out = installed.run("--uninstall").stdout
    assert f"kept, edited: {installed.remotes / RC}" in out
    assert installed.installed() == {RC, "VERSION"}


def test_uninstall_with_configure_gives_oned_conf_back(registered: FrontEnd) -> None:
    assert (registered.etc / "oned.conf").read_text() != ONED_CONF
    registered.run("--uninstall", "--configure")
    assert (registered.etc / "oned.conf").read_text() == ONED_CONF


def test_uninstall_after_an_interrupted_install(front_end: FrontEnd) -> None:
    (front_end.remotes / "tm/onestor/clone").mkdir(parents=True)
    assert "is a directory" in front_end.run(status=1).stderr
    assert (front_end.remotes / "onestor_lib/__init__.py").exists()
    (front_end.remotes / "tm/onestor/clone").rmdir()
    front_end.run("--uninstall")
    left = {name for name in front_end.installed() if not name.startswith("etc/")}
    assert left == {"VERSION"}


# -- check ------------------------------------------------------------------------------------


def problems(front_end: FrontEnd, status: int = 1) -> list[str]:
    before = front_end.state()
    lines = front_end.run("--check", status=status).stdout.splitlines()
    assert front_end.state() == before
    assert all(line.startswith(("ok: ", "problem: ")) for line in lines), lines
    bad = [line for line in lines if line.startswith("problem: ")]
    assert all("; mend: " in line for line in bad)
    return bad


@registered_in_both_trees
def test_check_of_a_good_installation(registered: FrontEnd) -> None:
    assert problems(registered, status=0) == []


def test_check_before_the_installation(front_end: FrontEnd) -> None:
    assert any("onestor is not installed" in line for line in problems(front_end))


def fault_missing(site: FrontEnd) -> str:
    (site.remotes / CLONE).unlink()
    return f"{CLONE}: missing"


def fault_content(site: FrontEnd) -> str:
    (site.remotes / CLONE).write_text("other")
    return f"{CLONE}: differs"


def fault_mode(site: FrontEnd) -> str:
    (site.remotes / CLONE).chmod(0o700)
    return f"{CLONE}: mode 0700"


def fault_dangling(site: FrontEnd) -> str:
    (site.remotes / "tm/ssh/link").symlink_to("nowhere")
    return "tm/ssh/link: dangling"


def fault_unreadable(site: FrontEnd) -> str:
    path = site.remotes / "tm/ssh/secret"
    path.touch()
    path.chmod(0o000)
    return "tm/ssh/secret: "


def fault_link(site: FrontEnd) -> str:
    (site.remotes / MONITOR).unlink()
    (site.remotes / MONITOR).symlink_to(site.remotes / CLONE)
    return f"{MONITOR}: not a regular file"


def fault_bytecode(site: FrontEnd) -> str:
    shutil.rmtree(site.remotes / "onestor_lib/__pycache__")
    return "onestor_lib/__init__.py: no valid bytecode"


def fault_bundle(site: FrontEnd) -> str:
    (site.remotes / BUNDLE).write_text("damaged")
    return f"{BUNDLE}: damaged, or made of other modules"


def fault_no_bundle(site: FrontEnd) -> str:
    (site.remotes / BUNDLE).unlink()
    return f"{BUNDLE}: missing"


def fault_linked_bundle(site: FrontEnd) -> str:
    (site.remotes / BUNDLE).rename(site.base / "elsewhere")
    (site.remotes / BUNDLE).symlink_to(site.base / "elsewhere")
    return f"{BUNDLE}: not a regular file"


def fault_mode_of_bundle(site: FrontEnd) -> str:
    (site.remotes / BUNDLE).chmod(0o666)
    return f"{BUNDLE}: mode 0666 instead of 0644"


def fault_stranger(site: FrontEnd) -> str:
    (site.remotes / "onestor_lib/old.py").touch()
    return "old.py: not a file of this version"


def fault_packages(site: FrontEnd) -> str:
    lacking(site)
    return "lxml: 4.6 is old"


def fault_tm_mad(site: FrontEnd) -> str:
    path = site.etc / "oned.conf"
    path.write_text(path.read_text().replace("ceph,onestor", "ceph", 1))
    return "TM_MAD, ARGUMENTS, -d: onestor is not registered"


def fault_orphans(site: FrontEnd) -> str:
    path = site.etc / "oned.conf"
    path.write_text(path.read_text().replace('ALLOW_ORPHANS = "YES"', 'ALLOW_ORPHANS = "NO"'))
    return "ALLOW_ORPHANS"


def fault_snapshots(site: FrontEnd) -> str:
    path = site.etc / "vmm_exec/vmm_execrc"
    path.write_text(path.read_text().replace("kvm-onestor", ""))
    return "LIVE_DISK_SNAPSHOTS"


# Several at a time; of those about one file, one.
ROUNDS = [
    [fault_missing, fault_bundle, fault_dangling, fault_tm_mad],
    [fault_content, fault_no_bundle, fault_unreadable, fault_orphans, fault_bytecode],
    [fault_mode, fault_linked_bundle, fault_link, fault_snapshots, fault_stranger],
    [fault_mode_of_bundle, fault_packages],
]


def test_every_fault_is_planted() -> None:
    faults = {value for name, value in globals().items() if name.startswith("fault_")}
    assert {each for plants in ROUNDS for each in plants} == faults


@pytest.mark.parametrize("plants", ROUNDS)
def test_check_finds_planted_faults(
    registered: FrontEnd, plants: list[Callable[[FrontEnd], str]]
) -> None:
    expected = [plant(registered) for plant in plants]
    found = problems_without_reading(registered)
    for each in expected:
        assert [line for line in found if each in line], found
    assert [line for line in found if not any(each in line for each in expected)] == []


def problems_without_reading(site: FrontEnd) -> list[str]:
    """As `problems`, where the state cannot be compared because a file cannot be read."""
    lines = site.run("--check", status=1).stdout.splitlines()
    return [line for line in lines if line.startswith("problem: ") and "; mend: " in line]


def test_check_finds_foreign_bytecode(registered: FrontEnd) -> None:
    # As root the drivers belong to somebody else, so what we write here is foreign to them.
    cache = registered.remotes / "datastore/fs/__pycache__"
    cache.mkdir()
    foreign = os.geteuid() == 0
    found = problems(registered, status=1 if foreign else 0)
    assert bool(found) is foreign
    assert all("bytecode" in line for line in found)


def test_check_without_qemu_img(registered: FrontEnd) -> None:
    (registered.base / "bin/qemu-img").unlink()
    done = registered.run("--check", status=1)
    assert "problem: qemu-img" in done.stdout


# -- the rest ---------------------------------------------------------------------------------


def test_mend_is_a_command_that_mends(registered: FrontEnd) -> None:
    fault_content(registered)
    (line,) = problems(registered)
    command = line.partition("; mend: ")[2]
    environment = {**os.environ, "ONESTOR_PATH": f"{registered.base}/bin"}
    subprocess.run(["bash", "-c", command], check=True, env=environment, stdout=subprocess.PIPE)
    assert problems(registered, status=0) == []


def test_demo_runs_in_the_checkout_with_its_arguments(front_end: FrontEnd) -> None:
    demo = front_end.source / "tests" / "demo"
    demo.mkdir(parents=True)
    (demo / "__main__.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:])\n")
    if os.geteuid() == 0:
        out = front_end.run_bare("--demo", "--fast", "two words").stdout
        assert out == f"{front_end.source} ['--fast', 'two words']\n"
    else:
        assert "root" in front_end.run_bare("--demo", status=1).stderr


def test_manifest_tells_the_version(installed: FrontEnd) -> None:
    manifest = json.loads((installed.remotes / "onestor_lib/INSTALLED").read_text())
    assert f"onestor {manifest['version']}\n" == installed.run_bare("--version").stdout
    assert all(digest.startswith("sha256:") for digest in manifest["files"].values())


def test_probe_judges_versions() -> None:
    path: Path = ROOT / "packaging" / "probe.py"
    spec = importlib.util.spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    assert probe.shortcoming("click>=1.0") == ""
    assert "older than 999" in probe.shortcoming("click>=999")
    assert "no_such_thing" in probe.shortcoming("no_such_thing>=1")
    assert probe.numbers("4.9.2.post1") == [4, 9, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led astray")
class TestTrust:
    """What belongs to the drivers' user, root neither runs nor follows."""

    def test_a_path_is_root_s_if_all_that_leads_there_is(self) -> None:
        user = pwd.getpwnam(USER).pw_uid
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            base.chmod(0o755)
            for place, mode, owner, group in (
                ("closed/below", 0o755, 0, 0), ("a blank/below", 0o755, 0, 0),
                ("theirs/below", 0o755, user, 0), ("open/below", 0o777, 0, 0),
                ("group/below", 0o775, 0, user), ("staff/below", 0o775, 0, 50),
                ("sticky/below", 0o1777, 0, 0),
            ):  # fmt: skip
                (base / place).mkdir(parents=True)
                os.chown((base / place).parent, owner, group)
                (base / place).parent.chmod(mode)
            (base / "sticky/theirs").mkdir()
            os.chown(base / "sticky/theirs", user, 0)
            for link, target in (
                ("to open", "../open/below"), ("gone", "../theirs/none"), ("loop", "loop"),
            ):  # fmt: skip
                (base / "closed" / link).symlink_to(target)
            (base / "open/to closed").symlink_to("../closed")
            right = [
                "closed", "closed/below", "closed/new/newer", "a blank/below", "staff/below",
                "staff/new", "sticky/below", "sticky/below/new", "open/to closed/below",
            ]  # fmt: skip
            wrong = [
                "theirs", "theirs/below", "theirs/below/new", "open", "open/below", "open/new",
                "group/below", "group/new", "sticky", "sticky/new", "sticky/theirs",
                "sticky/theirs/new", "closed/to open", "closed/gone", "closed/loop",
            ]  # fmt: skip
            code = re.search(r"^only_roots\(\) \{\n.*?^\}$", INSTALL, re.MULTILINE | re.DOTALL)
            assert code
            loop = 'for path; do if only_roots "$path"; then echo "$path"; fi; done'
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"{code[0]}\n{loop}", "-", *right, *wrong],
                cwd=base, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert (done.stdout.splitlines(), done.stderr) == (right, "")

    def test_a_link_that_appears_leads_root_nowhere(self, installed: FrontEnd) -> None:
        """As if it were put there between root's look and root's step."""
        outside = installed.base / "outside"
        outside.mkdir(mode=0o755)
        (installed.remotes / "tm/onestor").rename(installed.remotes / "tm/other")
        (installed.remotes / "tm/onestor").symlink_to(outside)
        code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import deploy
remotes = Path(sys.argv[2])
place = deploy.Place.of_directory(remotes)
there = deploy.Deployment(remotes, deploy.Owner.parse("nobody"), place)
wrong = there.remotes / "tm/onestor"
with deploy.acting_on(place, there.owner):
    for step in (
        lambda: there.permissions(wrong / "sub", (wrong / "sub").lstat(), 0o700),
        lambda: there.publish(wrong / "sub/new", wrong / "sub/final", 0o644),
        lambda: (wrong / "made").mkdir(),
    ):
        try:
            step()
        except (deploy.Failure, OSError) as error:
            print("refused:", error)
"""
        (outside / "sub").mkdir(mode=0o755)
        (outside / "sub/new").write_text("x")
        done = subprocess.run(
            [PYTHON, "-B", "-c", code, installed.source / "packaging", installed.remotes],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.count("refused:") == 3, done.stdout + done.stderr
        for path in (outside, outside / "sub", outside / "sub/new"):
            assert path.stat().st_uid == 0 and path.stat().st_mode & 0o022 == 0
        assert not (outside / "made").exists() and not (outside / "sub/final").exists()

    def test_an_interpreter_of_that_user_runs_as_that_user_only(self, installed: FrontEnd) -> None:
        """It says that it is the one that runs the drivers."""
        own = installed.base / "own"
        who = installed.base / "who"
        own.mkdir()
        (own / "python3").write_text(f'#!/bin/sh\n/usr/bin/id -u >>"{who}"\nexec {PYTHON} "$@"\n')
        who.touch()
        for path in (own, own / "python3", who):
            path.chmod(0o777)
            os.chown(path, *pwd.getpwnam(USER)[2:4])
        manifest = installed.remotes / "onestor_lib/INSTALLED"
        facts = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**facts, "interpreter": str(own / "python3")}))
        for words in (["--check"], [], ["--uninstall"]):
            installed.run(*words, status=None, ONESTOR_PATH=f"{own}:{installed.base}/bin")
        assert set(who.read_text().split()) == {str(pwd.getpwnam(USER).pw_uid)}

    def test_a_private_environment_of_that_user_is_made_as_that_user(
        self, front_end: FrontEnd
    ) -> None:
        place = front_end.base / "home"
        place.mkdir()
        os.chown(place, *pwd.getpwnam(USER)[2:4])
        front_end.run("--private-venv", "--venv", str(place / "venv"))
        assert (place / "venv/bin/python3").exists()
        for path in [place, *place.rglob("*")]:
            assert path.lstat().st_uid == pwd.getpwnam(USER).pw_uid, path

    def test_the_command_starts_with_an_interpreter_of_root_s(self, front_end: FrontEnd) -> None:
        """And goes over to the drivers' one when root's rights are given up."""
        own, who = front_end.base / "own", front_end.base / "who"
        front_end.run("--private-venv", "--venv", str(front_end.base / "home/venv"))
        interpreter = front_end.base / "home/venv/bin/python3"
        own.mkdir()
        who.touch(mode=0o666)
        who.chmod(0o666)
        script = f'#!/bin/sh\n/usr/bin/id -u >>"{who}"\nexec {PYTHON} "$@"\n'
        interpreter.unlink()
        interpreter.write_text(script)
        interpreter.chmod(0o755)
        for path in [front_end.base / "home", *(front_end.base / "home").rglob("*")]:
            os.chown(path, *pwd.getpwnam(USER)[2:4])
        front_end.run("--private-venv", "--venv", str(front_end.base / "home/venv"))
        command = front_end.base / "command/onestor"
        starter = command.read_text().splitlines()[0].removeprefix("#!")
        assert Path(starter).stat().st_uid == 0 and not starter.startswith(str(interpreter.parent))
        subprocess.run([command, "--help"], check=False, capture_output=True)
        assert set(who.read_text().split()) == {str(pwd.getpwnam(USER).pw_uid)}

    def test_bytecode_of_root_s_is_no_obstacle(self, installed: FrontEnd) -> None:
        for top in ("tm/onestor", "onestor_lib/agent"):
            cache = installed.remotes / top / "__pycache__"
            cache.mkdir(exist_ok=True)
            (cache / "old.cpython-39.pyc").write_text("")
            os.chown(cache, 0, 0)
        (installed.source / "onestor_lib/agent/locks.py").write_text("HELD = 2\n")
        installed.run()
        installed.run()
        assert not [*installed.remotes.rglob("old.*.pyc")]
        installed.run("--uninstall")

    def test_links_of_root_s_into_a_directory_of_that_user(self, front_end: FrontEnd) -> None:
        own = front_end.base / "own"
        own.mkdir()
        os.chown(own, *pwd.getpwnam(USER)[2:4])
        (front_end.base / "link").symlink_to(own)
        front_end.run("--private-venv", "--venv", str(front_end.base / "link/venv"))
        assert (own / "venv").stat().st_uid == pwd.getpwnam(USER).pw_uid
