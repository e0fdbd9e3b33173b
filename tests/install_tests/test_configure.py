"""packaging/configure.py on the shapes that oned.conf has had since 5.12."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from onestor_lib.frontend import registration
from tests.install_tests.conftest import ROOT


def load() -> ModuleType:
    # By its path: as a package, `packaging` is somebody else's.
    path = ROOT / "packaging" / "configure.py"
    spec = importlib.util.spec_from_file_location("onestor_configure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


configure = load()

HEAD = """\
#*******************************************************************************
# OpenNebula's server; values in "quotes" and [brackets] in a comment don't count
#*******************************************************************************

LOG = [
  SYSTEM      = "file",
  DEBUG_LEVEL = 3
]

#MANAGER_TIMER = 15

PORT = 2633

LISTEN_ADDRESS = "0.0.0.0"

DB = [ BACKEND = "sqlite",
       TIMEOUT = 2500 ]

# Sample configuration for MySQL
# DB = [ BACKEND = "mysql",
#        SERVER  = "localhost" ]

VNC_PORTS = [
    START    = 5900,
    RESERVED = "32768:65536"
    # RESERVED = "6800, 6801, 9869"
]

VM_RESTRICTED_ATTR = "CONTEXT/FILES"
"""

TM_COMMENT = """
#*******************************************************************************
# Transfer Manager Driver Configuration
#   -t: number of threads
#   -d: list of transfer drivers separated by commas, if not defined all the
#       drivers available will be enabled
#*******************************************************************************
"""

CONF_COMMENT = """
#*******************************************************************************
# Transfer Manager Driver Behavior Configuration
#   NAME      : name of the transfer driver, listed in the -d option of the
#               TM_MAD section
#
# TM_MAD_CONF = [
#     NAME = "onestor", LN_TARGET = "NONE"
# ]
#*******************************************************************************
"""

TAIL = """
# The driver's name; authn = "x"
AUTH_MAD = [
    EXECUTABLE = "one_auth_mad",
    AUTHN = "ssh,x509,ldap,server_cipher,server_x509"
]

DEFAULT_UMASK = 177
"""

# The lists as upstream ships them, each too long for a line of ours.
TM_5_12 = "dummy,lvm,shared,fs_lvm,qcow2,ssh,ceph,dev,vcenter,iscsi_libvirt"
DS_5_12 = "-d dummy,fs,lvm,ceph,dev,iscsi_libvirt,vcenter -s shared,ssh,ceph,fs_lvm,qcow2,vcenter"
TM_6_10 = "dummy,lvm,shared,fs_lvm,fs_lvm_ssh,qcow2,ssh,ceph,dev,vcenter,iscsi_libvirt"
DS_6_10 = "dummy,fs,lvm,ceph,dev,iscsi_libvirt,vcenter,restic,rsync"
SYSTEM_6_10 = "shared,ssh,ceph,fs_lvm,fs_lvm_ssh,qcow2,vcenter"
TM_7_4 = "dummy,lvm,shared,fs_lvm,fs_lvm_ssh,qcow2,ssh,local,ceph,dev,iscsi_libvirt,netapp,purefa"
DS_7_4 = "dummy,fs,lvm,ceph,dev,iscsi_libvirt,restic,rsync,netapp,purefa,virtiofs,interactive"
SYSTEM_7_4 = "dummy,lvm,shared,ssh,local,ceph,fs_lvm,fs_lvm_ssh,qcow2,netapp,purefa"

V5_12 = (
    HEAD
    + TM_COMMENT
    + f"""
TM_MAD = [
    EXECUTABLE = "one_tm",
    ARGUMENTS = "-t 15 -d {TM_5_12}"
]

DATASTORE_MAD = [
    EXECUTABLE = "one_datastore",
    ARGUMENTS  = "-t 15 {DS_5_12}"
]
"""
    + CONF_COMMENT
    + """
TM_MAD_CONF = [
    NAME = "dummy", LN_TARGET = "NONE", CLONE_TARGET = "SYSTEM", SHARED = "YES",
    DS_MIGRATE = "YES"
]

TM_MAD_CONF = [
    NAME = "ssh", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM", SHARED = "NO",
    DS_MIGRATE = "YES"
]

DS_MAD_CONF = [
    NAME = "fs", REQUIRED_ATTRS = "", PERSISTENT_ONLY = "NO",
    MARKETPLACE_ACTIONS = "export"
]
"""
    + TAIL
)

V6_10 = (
    HEAD
    + TM_COMMENT
    + f"""
#TM_MAD = [
#    EXECUTABLE = "one_tm",
#    ARGUMENTS = "-t 15 -d dummy,ssh"
#]

TM_MAD = [
\tEXECUTABLE\t= "one_tm",
\t# more drivers than stock
\tARGUMENTS\t= "-t 15 -d {TM_6_10}"
]

DATASTORE_MAD = [
    EXECUTABLE = "one_datastore",
    ARGUMENTS  = "-t 15 -w 90 -d {DS_6_10} -s {SYSTEM_6_10}"
]
"""
    + CONF_COMMENT
    + """
TM_MAD_CONF = [
    NAME = "shared", LN_TARGET = "NONE", CLONE_TARGET = "SYSTEM", SHARED = "YES",
    DS_MIGRATE = "YES", TM_MAD_SYSTEM = "ssh", LN_TARGET_SSH = "SYSTEM",
    CLONE_TARGET_SSH = "SYSTEM", DISK_TYPE_SSH = "FILE", ALLOW_ORPHANS = "FORMAT"
]
TM_MAD_CONF = [
    NAME = "ssh", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM", SHARED = "NO",
    DS_MIGRATE = "YES", ALLOW_ORPHANS = "YES"
] # the ssh driver

DS_MAD_CONF = [
    NAME = "fs", REQUIRED_ATTRS = "", PERSISTENT_ONLY = "NO",
    MARKETPLACE_ACTIONS = "export"
]
"""
    + TAIL
)

V7_4 = (
    HEAD
    + TM_COMMENT
    + f"""
TM_MAD = [ EXECUTABLE = "one_tm",
    ARGUMENTS = "-t 15 -d {TM_7_4}" ]

DATASTORE_MAD = [ EXECUTABLE = "one_datastore",
    ARGUMENTS = "-t 15 -d {DS_7_4}
                       -s {SYSTEM_7_4}" ]
"""
    + CONF_COMMENT
    + """
TM_MAD_CONF = [
    NAME = "ssh", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM", SHARED = "NO",
    DS_MIGRATE = "YES", ALLOW_ORPHANS = "YES", DS_LIVE_MIGRATE = "YES", DS_MIGRATE_SNAP = "YES"
]

DS_MAD_CONF = [
    NAME = "fs", REQUIRED_ATTRS = "", PERSISTENT_ONLY = "NO", MARKETPLACE_ACTIONS = "export"
]
"""
    + TAIL
)

EXECRC = """\
# Space separated list of VMM-TM pairs that support live disk snapshots.
#LIVE_DISK_SNAPSHOTS="kvm-qcow2"
LIVE_DISK_SNAPSHOTS="{}"

VNMAD_LOCAL_ACTIONS="elastic-post elastic-clean"
"""

STOCK = {
    "5.12": (V5_12, EXECRC.format("kvm-qcow2 kvm-ceph")),
    "6.10": (V6_10, EXECRC.format("kvm-qcow2 kvm-shared kvm-ceph kvm-ssh qemu-qcow2 qemu-ssh")),
    "7.4": (V7_4, EXECRC.format("kvm-qcow2 kvm-local kvm-ssh lxc-lvm qemu-local")),
}


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    return tmp_path


def write(etc: Path, oned: str, execrc: str) -> None:
    (etc / "vmm_exec").mkdir(exist_ok=True)
    (etc / "oned.conf").write_bytes(oned.encode("utf-8", "surrogateescape"))
    (etc / "oned.conf").chmod(0o640)
    (etc / "vmm_exec" / "vmm_execrc").write_text(execrc)


def texts(etc: Path) -> tuple[str, str]:
    oned = (etc / "oned.conf").read_bytes().decode("utf-8", "surrogateescape")
    return oned, (etc / "vmm_exec" / "vmm_execrc").read_text()


def run(etc: Path, command: str, *args: str) -> int:
    status: int = configure.main([command, "--etc", str(etc), *args])
    return status


def backups(etc: Path) -> list[Path]:
    return sorted(path for path in etc.rglob("*") if ".onestor" in path.name)


def value(text: str, section: str, attribute: str, name: str = "") -> str:
    (found,) = (
        one.attributes[attribute].value
        for one in registration.Scanner(text).sections()
        if one.name == section and (not name or one.attributes["NAME"].value == name)
    )
    return str(found)


def marks(etc: Path) -> dict[Path, tuple[int, ...]]:
    """What tells of each path that somebody has written to it; reading it changes none of this."""
    marks: dict[Path, tuple[int, ...]] = {}
    for path in etc.rglob("*"):
        facts = path.lstat()
        marks[path] = (
            *(facts.st_ino, facts.st_mode, facts.st_uid, facts.st_gid, facts.st_size),
            *(facts.st_mtime_ns, facts.st_ctime_ns),
        )
    return marks


@pytest.mark.parametrize("version", STOCK)
def test_registered_once_and_taken_out_again(etc: Path, version: str) -> None:
    write(etc, *STOCK[version])
    assert run(etc, "apply", "--one-version", version) == 0
    oned, execrc = texts(etc)
    assert value(oned, "TM_MAD", "ARGUMENTS").endswith(",onestor")
    arguments = value(oned, "DATASTORE_MAD", "ARGUMENTS").split()
    for option in ("-d", "-s"):
        words = arguments[arguments.index(option) + 1].split(",")
        assert words.count("onestor") == 1
        assert words[-1] == "onestor"
    for attribute, expected in registration.TM_CONF.items():
        assert value(oned, "TM_MAD_CONF", attribute, "onestor") == expected
    for attribute, expected in registration.DS_CONF.items():
        assert value(oned, "DS_MAD_CONF", attribute, "onestor") == expected
    mine = oned[oned.rindex("\nTM_MAD_CONF") :].partition("]")[0]
    assert ("DS_LIVE_MIGRATE" in mine) is (version == "7.4")
    assert execrc.count(' kvm-onestor qemu-onestor"\n') == 1
    # Nothing but the additions has changed: taken out again, the files are as they were.
    assert run(etc, "check") == 0
    assert run(etc, "remove") == 0
    assert texts(etc) == STOCK[version]


@pytest.mark.parametrize("version", STOCK)
def test_again_changes_nothing(etc: Path, version: str) -> None:
    write(etc, *STOCK[version])
    run(etc, "apply", "--one-version", version)
    before = marks(etc)
    assert len(backups(etc)) == 2
    assert run(etc, "apply", "--one-version", version) == 0
    assert marks(etc) == before


def test_backup_is_the_old_file_with_its_mode(etc: Path) -> None:
    write(etc, *STOCK["6.10"])
    run(etc, "apply")
    oned = next(path for path in backups(etc) if path.name.startswith("oned.conf"))
    assert oned.read_text() == V6_10
    for path in (oned, etc / "oned.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert path.stat().st_uid == os.geteuid()


def test_sections_go_behind_the_last_of_their_kind(etc: Path) -> None:
    write(etc, *STOCK["6.10"])
    run(etc, "apply")
    oned = texts(etc)[0]
    order = [
        (one.name, one.attributes["NAME"].value)
        for one in registration.Scanner(oned).sections()
        if one.name.endswith("_CONF")
    ]
    assert order == [
        ("TM_MAD_CONF", "shared"),
        ("TM_MAD_CONF", "ssh"),
        ("TM_MAD_CONF", "onestor"),
        ("DS_MAD_CONF", "fs"),
        ("DS_MAD_CONF", "onestor"),
    ]
    assert '] # the ssh driver\n\nTM_MAD_CONF = [\n    NAME = "onestor"' in oned


def test_without_a_version_the_ssh_section_tells(etc: Path) -> None:
    write(etc, *STOCK["7.4"])
    run(etc, "apply")
    assert value(texts(etc)[0], "TM_MAD_CONF", "DS_LIVE_MIGRATE", "onestor") == "YES"


def test_section_from_before_7_2_gets_what_it_lacks(etc: Path) -> None:
    write(etc, *STOCK["6.10"])
    run(etc, "apply", "--one-version", "6.10.0")
    assert run(etc, "check", "--one-version", "7.4.1") == 1
    run(etc, "apply", "--one-version", "7.4.1")
    assert value(texts(etc)[0], "TM_MAD_CONF", "DS_MIGRATE_SNAP", "onestor") == "YES"
    assert run(etc, "check", "--one-version", "7.4.1") == 0


def test_value_that_differs_is_reported_and_left(
    etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(etc, *STOCK["6.10"])
    run(etc, "apply")
    changed = texts(etc)[0].replace('ORPHANS = "YES"\n]\n\nDS', 'ORPHANS = "NO"\n]\n\nDS')
    write(etc, changed, texts(etc)[1])
    assert run(etc, "apply") == 0
    assert 'ALLOW_ORPHANS is "NO"' in capsys.readouterr().err
    assert texts(etc)[0] == changed
    assert run(etc, "check") == 1


def test_line_ends_and_foreign_bytes_survive(etc: Path) -> None:
    oned = V6_10.replace("\n", "\r\n").replace("# Sample", "# S\udcffmple")
    write(etc, oned, STOCK["6.10"][1])
    assert run(etc, "apply") == 0
    changed = texts(etc)[0]
    assert changed.count("\n") == changed.count("\r\n")
    assert "S\udcffmple" in changed
    assert run(etc, "remove") == 0
    assert texts(etc)[0] == oned


def test_linked_file_stays_a_link(etc: Path, tmp_path: Path) -> None:
    write(etc, *STOCK["6.10"])
    repository = tmp_path / "repository"
    repository.mkdir()
    (etc / "oned.conf").rename(repository / "oned.conf")
    (etc / "oned.conf").symlink_to(repository / "oned.conf")
    assert run(etc, "apply") == 0
    assert (etc / "oned.conf").is_symlink()
    assert "onestor" in (repository / "oned.conf").read_text()


UNRECOGNISED = {
    "no TM_MAD": lambda text: text.replace("\nTM_MAD =", "\nTM_OLD ="),
    "two TM_MAD": lambda text: text + '\nTM_MAD = [ EXECUTABLE = "one_tm" ]\n',
    "other program": lambda text: text.replace('"one_tm"', '"my_tm"'),
    "no list": lambda text: text.replace("-d dummy,lvm", "--drivers dummy,lvm"),
    "list with blanks": lambda text: text.replace("-d dummy,lvm", "-d dummy, lvm"),
    "no system list": lambda text: text.replace(" -s shared", " --system shared"),
    "no TM_MAD_CONF": lambda text: text.replace("\nTM_MAD_CONF", "\nOTHER_CONF"),
    "open bracket": lambda text: text.replace("DEBUG_LEVEL = 3\n]", "DEBUG_LEVEL = 3\n"),
    "open quote": lambda text: text + '\nLAST = "never closed\n',
    "no value": lambda text: text + "\nLAST\n",
}


@pytest.mark.parametrize("shape", UNRECOGNISED)
def test_unrecognised_changes_nothing_and_says_what_to_enter(
    etc: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    oned = UNRECOGNISED[shape](V5_12)
    assert oned != V5_12
    write(etc, oned, STOCK["5.12"][1])
    assert run(etc, "apply") == 1
    assert texts(etc) == (oned, STOCK["5.12"][1])
    assert backups(etc) == []
    error = capsys.readouterr().err
    assert f"{etc}/oned.conf" in error
    assert "nothing was changed" in error
    assert 'NAME = "onestor"' in error
    assert run(etc, "check") == 1


@pytest.mark.parametrize("execrc", ["", '# LIVE_DISK_SNAPSHOTS="a"\n', "LIVE_DISK_SNAPSHOTS=$X\n"])
def test_unrecognised_vmm_execrc_leaves_oned_conf_alone(etc: Path, execrc: str) -> None:
    write(etc, V6_10, execrc)
    assert run(etc, "apply") == 1
    assert texts(etc) == (V6_10, execrc)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIVE_DISK_SNAPSHOTS='kvm-ssh'\n", "LIVE_DISK_SNAPSHOTS='kvm-ssh {}'\n"),
        ("LIVE_DISK_SNAPSHOTS=kvm-ssh # x\n", 'LIVE_DISK_SNAPSHOTS="kvm-ssh {}" # x\n'),
        ('LIVE_DISK_SNAPSHOTS=""\n', 'LIVE_DISK_SNAPSHOTS="{}"\n'),
        ('  export LIVE_DISK_SNAPSHOTS="a\n  b"\n', '  export LIVE_DISK_SNAPSHOTS="a\n  b {}"\n'),
    ],
)
def test_shapes_of_live_disk_snapshots(etc: Path, before: str, after: str) -> None:
    write(etc, V6_10, before)
    assert run(etc, "apply") == 0
    assert texts(etc)[1] == after.format("kvm-onestor qemu-onestor")


def test_one_of_two_words_is_there(etc: Path) -> None:
    write(etc, V6_10, 'LIVE_DISK_SNAPSHOTS="kvm-onestor kvm-ssh"\n')
    assert run(etc, "apply") == 0
    assert texts(etc)[1] == 'LIVE_DISK_SNAPSHOTS="kvm-onestor kvm-ssh qemu-onestor"\n'


def test_missing_files(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(etc, "apply") == 1
    assert "No such file" in capsys.readouterr().err
    assert run(etc, "show") == 0
    assert 'NAME = "onestor"' in capsys.readouterr().out
    assert run(etc, "check") == 1
    assert capsys.readouterr().out.count("problem: ") == 2


def test_show_tells_what_is_already_there(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(etc, *STOCK["6.10"])
    run(etc, "apply")
    capsys.readouterr()
    run(etc, "show")
    assert capsys.readouterr().out.count(": already there") == 6


def test_remove_where_onestor_never_was(etc: Path) -> None:
    write(etc, "PORT = 1\n", "")
    assert run(etc, "remove") == 0
    assert backups(etc) == []


def test_dry_run_shows_a_diff(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(etc, *STOCK["7.4"])
    assert run(etc, "apply", "--dry-run") == 0
    assert texts(etc) == STOCK["7.4"]
    assert '+    NAME = "onestor"' in capsys.readouterr().out
