"""install.sh over an earlier version: exactly the new tree, in one step, and what it says."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.install_tests.conftest import ROOT, FrontEnd, Installations, in_both_trees, script, trees

RC = "etc/tm/onestor/onestorrc"


def use_version(front_end: FrontEnd, version: str) -> None:
    path = front_end.source / "onestor_lib/__init__.py"
    text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', path.read_text())
    path.write_text(text)


def age(front_end: FrontEnd) -> None:
    """Make the checkout an earlier version: less, more and other files than the present one."""
    library, remotes = front_end.source / "onestor_lib", front_end.source / "remotes"
    use_version(front_end, "0.0.0")
    (library / "agent/gone").mkdir()
    (library / "agent/gone/__init__.py").write_text("OLD = 1\n")
    (library / "frontend/renamed.py").write_text("OLD = 1\n")
    script(remotes / "tm/onestor/oldaction")
    for path, more in (
        (library / "agent/crashpoints.py", "\n# older\n"),
        (remotes / "datastore/onestor/cp", "# older\n"),
        (remotes / "etc/datastore/onestor/onestor.conf", "#OLD_SETTING=1\n"),
    ):
        with path.open("a") as file:
            file.write(more)


def rejuvenate(front_end: FrontEnd, present: Path) -> None:
    """Make the checkout the present version again."""
    for name in ("onestor_lib", "remotes"):
        shutil.rmtree(front_end.source / name)
        shutil.copytree(present / name, front_end.source / name, symlinks=True)


def install_older(front_end: FrontEnd) -> subprocess.CompletedProcess[str]:
    """Leave an earlier version on the front-end, and the present one in the checkout."""
    present = front_end.base / "present"
    for name in ("onestor_lib", "remotes"):
        shutil.copytree(front_end.source / name, present / name, symlinks=True)
    age(front_end)
    done = front_end.run()
    front_end.run("--configure")
    rejuvenate(front_end, present)
    return done


@pytest.fixture
def older(request: pytest.FixtureRequest, installations: Installations) -> FrontEnd:
    return installations(getattr(request, "param", "small"), install_older).restored()


def names_of(front_end: FrontEnd) -> set[str]:
    """All files with their content, but for what tells of times."""
    return {
        f"{name}: {path.read_bytes()!r}"
        for name in front_end.installed()
        if not name.endswith((".pyc", ".bundle", "/INSTALLED"))
        for path in [front_end.remotes / name]
    }


@pytest.mark.parametrize("older", trees(), indirect=True)
def test_an_upgrade_leaves_exactly_what_a_new_installation_does(older: FrontEnd) -> None:
    older.run()
    upgraded, names = names_of(older), older.installed()
    assert older.run("--check", status=0).stdout.count("problem") == 0
    older.run("--uninstall")
    older.run()
    assert names == older.installed()
    assert upgraded == names_of(older)
    assert [*older.remotes.parent.glob(".*")] == []


def test_an_upgrade_tells_the_versions_and_of_the_hosts(older: FrontEnd) -> None:
    new = older.run_bare("--version").stdout.split()[1]
    said = older.run("--dry-run").stdout
    assert f"would be upgraded: onestor from 0.0.0 to {new}" in said
    said = older.run().stdout
    assert f"upgraded: onestor from 0.0.0 to {new}; the drivers need no restart" in said
    assert "onehost sync -f" in said
    assert "systemctl restart" not in said and "onedatastore create" not in said
    assert f"removed: {older.remotes / 'tm/onestor/oldaction'}" in said
    assert f"removed: {older.remotes / 'onestor_lib/agent/gone/__init__.py'}" in said
    again = older.run().stdout
    assert "nothing to change" in again
    assert "upgraded" not in again and "onehost sync" not in again


def test_files_that_differ_within_a_version(installed: FrontEnd) -> None:
    with (installed.source / "onestor_lib/agent/crashpoints.py").open("a") as file:
        file.write("\n# newer\n")
    version = installed.run_bare("--version").stdout.strip()
    assert f"upgraded: {version}, of which files were different" in installed.run().stdout


def test_a_version_that_wants_more_of_oned_conf_says_so(older: FrontEnd) -> None:
    path = older.etc / "vmm_exec/vmm_execrc"
    path.write_text(path.read_text().replace(" qemu-onestor", ""))
    said = older.run().stdout
    assert "install.sh --configure does it" in said and "qemu-onestor" in said


def test_new_settings_appear_beside_what_the_admin_has_edited(older: FrontEnd) -> None:
    target, source = older.remotes / RC, older.source / "remotes" / RC
    target.write_text("MINE=1\n" + target.read_text())
    with source.open("a") as file:
        file.write('#BRAND_NEW="1"\n')
    said = older.run().stdout
    assert f"edited, left alone: {target}" in said and "new in it: BRAND_NEW\n" in said
    assert target.read_text().startswith("MINE=1\n")
    assert "BRAND_NEW" in Path(f"{target}.new").read_text()
    assert "OLD_SETTING" not in (older.remotes / "etc/datastore/onestor/onestor.conf").read_text()


def test_what_has_not_changed_stays_the_same_file(older: FrontEnd) -> None:
    module = older.remotes / "onestor_lib/agent/bootstrap.py"
    bytecode = next(module.parent.glob("__pycache__/bootstrap.*.pyc"))
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (module, bytecode)]
    older.run()
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (module, bytecode)] == before


def test_an_upgrade_that_fails_changes_nothing_of_the_library(older: FrontEnd) -> None:
    blocked = older.remotes / "onestor_lib/agent/crashpoints.py"
    blocked.unlink()
    blocked.mkdir()
    before = older.state()
    error = older.run(status=1).stderr
    assert "crashpoints.py: is a directory" in error
    assert older.state() == before
    assert [*older.remotes.parent.glob(".*")] == []


def test_what_a_run_that_was_killed_has_left_goes(older: FrontEnd) -> None:
    leftover = older.remotes.parent / ".onestor_lib.123.onestor-tmp"
    shutil.copytree(older.remotes / "onestor_lib", leftover / "onestor_lib")
    older.run()
    assert not leftover.exists()


@in_both_trees
def test_nobody_meets_some_of_each_version(front_end: FrontEnd) -> None:
    """Whoever begins to load the library at any moment of an upgrade finds all of it as one."""
    modules = [f"agent/part{number}.py" for number in range(20)]

    def use(version: int) -> None:
        for name in modules:
            (front_end.source / "onestor_lib" / name).write_text(f"VERSION = {version}\n")

    use(0)
    front_end.run()
    stop, mixtures, rounds = threading.Event(), [], []

    def look() -> None:
        while not stop.wait(0.001):  # a module takes longer to be written
            # It is gone when it was the old one: then that was no look at one moment.
            with contextlib.suppress(FileNotFoundError):
                mixtures.extend(versions())
                rounds.append(1)

    def versions() -> list[set[str]]:
        """The versions in one directory, as the kernel holds it for us."""
        handle = os.open(front_end.remotes / "onestor_lib", os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = set()
            for name in modules:
                opened = os.open(name, os.O_RDONLY, dir_fd=handle)
                with os.fdopen(opened) as file:
                    found.add(file.read())
        finally:
            os.close(handle)
        return [found] if len(found) > 1 else []

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for version in range(1, 4):
            use(version)
            front_end.run()
    finally:
        stop.set()
        looking.join()
    assert mixtures == [] and len(rounds) > 10


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    yield importlib.import_module("deploy")
    for name in ("deploy", "manifest", "takeover"):
        sys.modules.pop(name, None)


class WithoutExchange:
    """A C library that is too old."""


def test_where_directories_cannot_be_exchanged_they_are_renamed(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("live", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    live, new, old = (tmp_path / name for name in ("live", "new", "old"))
    deploy.exchange(new, live, old)
    assert (live / "new").exists() and (new / "live").exists()
    monkeypatch.setattr(deploy.ctypes, "CDLL", lambda *args, **kwargs: WithoutExchange())
    deploy.exchange(new, live, old)
    assert (live / "live").exists() and (old / "new").exists()


def test_a_library_that_cannot_be_linked_is_changed_in_place(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "remotes/onestor_lib"
    library.mkdir(parents=True)
    (library / "module.py").write_text("")
    remotes = tmp_path / "remotes"
    owner, place = deploy.Owner(os.getuid(), os.getgid(), ""), deploy.Place.of_directory(remotes)
    deployment = deploy.Deployment(remotes, owner, place)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(deploy.errno.EPERM, "no links here")

    monkeypatch.setattr(deploy.os, "link", refuse)
    with deploy.renewed(deployment) as found:
        assert found is deployment
    assert [path.name for path in tmp_path.iterdir()] == ["remotes"]
