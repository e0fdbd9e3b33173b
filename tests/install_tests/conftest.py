"""A front-end in a temporary directory, and a tree to install from."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = "onestor_lib"
SCRIPT = b"#!/usr/bin/env python3\n"

# As root the drivers belong to another user, as on a real front-end: root reads everything, so an
# unreadable file would go unnoticed. That user needs a python3 it can run: the system's.
USER = "nobody" if os.geteuid() == 0 else getpass.getuser()
PYTHON = "/usr/bin/python3"

ONED_CONF = """\
# Drivers
#TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-d all" ]
PORT = 2633
TM_MAD = [
    EXECUTABLE = "one_tm",
    ARGUMENTS = "-t 15 -d dummy,lvm,shared,fs_lvm,qcow2,ssh,ceph"
]
DATASTORE_MAD = [
    EXECUTABLE = "one_datastore",
    ARGUMENTS  = "-t 15 -d dummy,fs,lvm,ceph -s shared,ssh,ceph,fs_lvm,qcow2"
]
TM_MAD_CONF = [
    NAME = "ssh", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM", SHARED = "NO"
]
DS_MAD_CONF = [
    NAME = "fs", REQUIRED_ATTRS = "", PERSISTENT_ONLY = "NO", MARKETPLACE_ACTIONS = "export"
]
"""

# A python3 that notes how it was called, and answers for its packages and environments.
STUB = """\
#!/bin/sh
PATH=/usr/bin:/bin
printf '%s\\n' "$*" >> "{log}"
case "$*" in
"-B - "*">="*)
    case "$0" in "{base}"/bin/*)
        test ! -e "{base}/lacks-packages" || {{ echo "lxml: 4.6 is old"; exit 1; }} ;;
    esac
    exit 0 ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python3"; exit 0 ;;
"-m pip "*)
    test ! -e "{base}/no-index" || {{ echo "ERROR: No matching distribution"; exit 1; }}
    exit 0 ;;
esac
exec {python} "$@"
"""


@dataclass
class FrontEnd:
    """OpenNebula's directories, a checkout of onestor, and a PATH with a python3 of our own."""

    base: Path
    source: Path

    @property
    def remotes(self) -> Path:
        return self.base / "var lib" / "remotes"

    @property
    def etc(self) -> Path:
        return self.base / "etc"

    @property
    def venv(self) -> Path:
        return self.base / "venv"

    @property
    def log(self) -> Path:
        return self.base / "python.log"

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def run(
        self, *args: str, status: int | None = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        where = ["--venv", str(self.venv), "--etc", str(self.etc)]
        return self.run_bare(*self.places, *where, *args, status=status, **environment)

    @property
    def places(self) -> list[str]:
        """Options without which install.sh would write outside of the directory."""
        outside = ["--bin", str(self.base / "command"), "--units", str(self.base / "units")]
        return ["--remotes", str(self.remotes), *outside, "--user", USER]

    def run_bare(
        self, *args: str, status: int | None = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.source / "install.sh"), *args],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.base,
            env={**os.environ, "ONESTOR_PATH": f"{self.base}/bin", **environment},
        )
        assert status in (None, done.returncode), done.stdout + done.stderr
        return done

    def state(self) -> dict[str, tuple[object, ...]]:
        """Everything about every file, so that a rewritten one shows."""
        found: dict[str, tuple[object, ...]] = {}
        for top in (self.remotes, self.etc, self.venv):
            for path in sorted(top.rglob("*")):
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path)] = (
                    status.st_ino,
                    status.st_mtime_ns,
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    content,
                )
        return found

    def installed(self) -> set[str]:
        return {
            path.relative_to(self.remotes).as_posix()
            for path in self.remotes.rglob("*")
            if not path.is_dir()
        }


def script(path: Path, text: bytes = SCRIPT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    path.chmod(0o755)


def small_tree(source: Path) -> None:
    library = source / LIBRARY
    (library / "agent").mkdir(parents=True)
    (library / "frontend").mkdir()
    (library / "__init__.py").write_text('"""Small."""\n\n__version__ = "0.0.1"\n')
    (library / "agent" / "__init__.py").write_text("")
    (library / "frontend" / "__init__.py").write_text("")
    # What packaging/ itself needs of the library.
    needed = ("agent/bootstrap.py", "agent/crashpoints.py", "frontend/bundle.py")
    for name in (*needed, "frontend/registration.py"):
        shutil.copy(ROOT / LIBRARY / name, library / name)
    (library / "agent" / "locks.py").write_text("HELD = 1\n")
    for name in ("tm/onestor/clone", "tm/onestor/monitor_ds", "datastore/onestor/cp"):
        script(source / "remotes" / name)
    for name in ("etc/tm/onestor/onestorrc", "etc/datastore/onestor/onestor.conf"):
        path = source / "remotes" / name
        path.parent.mkdir(parents=True)
        path.write_text("SETTING=1\n")


def real_tree(source: Path) -> None:
    for name in (LIBRARY, "remotes"):
        shutil.copytree(ROOT / name, source / name)


def configurable_tree(source: Path) -> None:
    """The small tree with the real settings, and what knows them."""
    small_tree(source)
    for name in ("agent/errors.py", "agent/space.py", "frontend/config.py"):
        shutil.copy(ROOT / LIBRARY / name, source / LIBRARY / name)
    shutil.copytree(ROOT / "remotes/etc", source / "remotes/etc", dirs_exist_ok=True)


TREES = {"small": small_tree, "real": real_tree, "configurable": configurable_tree}


def trees() -> list[str]:
    """The real tree is the second one, in a checkout that has all its parts."""
    parts = ("tm/onestor/clone", "tm/onestor/monitor_ds", "datastore/onestor/cp")
    configuration = ("etc/tm/onestor/onestorrc", "etc/datastore/onestor/onestor.conf")
    complete = all((ROOT / "remotes" / name).is_file() for name in (*parts, *configuration))
    return ["small", "real"] if complete else ["small"]


@contextlib.contextmanager
def new_front_end(fill: Callable[[Path], None]) -> Iterator[FrontEnd]:
    # Not tmp_path: pytest closes that to other users, and the drivers' user has to get there.
    base = Path(tempfile.mkdtemp(prefix="onestor-install-"))
    base.chmod(0o755)
    source = base / "check out"
    source.mkdir()
    shutil.copy(ROOT / "install.sh", source)
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copytree(
        ROOT / "packaging", source / "packaging", ignore=shutil.ignore_patterns("__pycache__")
    )
    fill(source)
    site = FrontEnd(base, source)
    for name in ("tm/ssh", "datastore/fs", "etc/tm"):
        (site.remotes / name).mkdir(parents=True)
    (site.remotes / "VERSION").write_text("6.10.0\n")
    (site.etc / "vmm_exec").mkdir(parents=True)
    (site.etc / "oned.conf").write_text(ONED_CONF)
    (site.etc / "vmm_exec" / "vmm_execrc").write_text('LIVE_DISK_SNAPSHOTS="kvm-qcow2 kvm-ssh"\n')
    site.log.write_text("")
    site.log.chmod(0o666)
    stub = STUB.format(base=base, log=site.log, python=PYTHON)
    script(base / "bin" / "python3", stub.encode())
    script(base / "bin" / "qemu-img", b"#!/bin/sh\n")
    entry = pwd.getpwnam(USER)
    for path in [site.remotes, *site.remotes.rglob("*")]:
        os.chown(path, entry.pw_uid, entry.pw_gid)
    yield site
    shutil.rmtree(base)


# For tests of what is in the tree. What install.sh does with it shows with a small one in a tenth
# of the time, and each test on a cluster installs the real one.
in_both_trees = pytest.mark.parametrize("front_end", trees(), indirect=True)
installed_in_both_trees = pytest.mark.parametrize("installation", trees(), indirect=True)
registered_in_both_trees = pytest.mark.parametrize("registered", trees(), indirect=True)


@pytest.fixture
def front_end(request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    with new_front_end(TREES[getattr(request, "param", "small")]) as site:
        yield site


Done = subprocess.CompletedProcess[str]
Step = Callable[[FrontEnd], Done]


def install(site: FrontEnd) -> Done:
    return site.run()


def register(site: FrontEnd) -> Done:
    return site.run("--configure")


class Installation:
    """A front-end after some runs of install.sh, which each test meets as they have left it."""

    def __init__(self, site: FrontEnd, steps: Sequence[Step]) -> None:
        self.site = site
        self.names = site.installed()  # before the first run
        self.runs = [step(site) for step in steps]
        self.kept = site.base.with_name(f"{site.base.name}.kept")
        copy(site.base, self.kept)

    def restored(self) -> FrontEnd:
        """At the same place: what is installed knows where it is."""
        shutil.rmtree(self.site.base)
        copy(self.kept, self.site.base)
        return self.site


def copy(source: Path, target: Path) -> None:
    """With owners, links and times: bytecode tells by the times whether it fits."""
    subprocess.run(["cp", "-a", "--", source, target], check=True)


class Installations(Protocol):
    def __call__(self, tree: str, *steps: Step) -> Installation: ...


@pytest.fixture(scope="session")
def installations() -> Iterator[Installations]:
    """By tree and steps: each is made when the first test asks for it."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def made(tree: str, *steps: Step) -> Installation:
            site = stack.enter_context(new_front_end(TREES[tree]))
            found = Installation(site, steps)
            stack.callback(shutil.rmtree, found.kept)
            return found

        yield made


@pytest.fixture
def installation(request: pytest.FixtureRequest, installations: Installations) -> Installation:
    """By one run."""
    found = installations(getattr(request, "param", "small"), install)
    found.restored()
    return found


@pytest.fixture
def installed(installation: Installation) -> FrontEnd:
    return installation.site


@pytest.fixture
def registered(request: pytest.FixtureRequest, installations: Installations) -> FrontEnd:
    """Installed, and in oned.conf."""
    return installations(getattr(request, "param", "small"), install, register).restored()
