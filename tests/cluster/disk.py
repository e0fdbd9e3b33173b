"""The content of the nodes' disks, made once per cluster before the first boot."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests import measuring
from tests.cluster.plan import (
    DATASTORES,
    FRONTEND,
    ONEADMIN_ID,
    ONEADMIN_KEY,
    Address,
    NodePlan,
)

FILES = Path(__file__).parent / "files"
FIRST_HUMAN_ID, NOBODY_ID = 1000, 65534
HOST_KEY = "ssh/ssh_host_ed25519_key"  # below /etc

# As OpenNebula ships it, for every release since 5.12.
ONEADMIN_SSH_CONFIG = """\
Host *
  StrictHostKeyChecking accept-new
  ServerAliveInterval 10
  ControlMaster no
  ControlPersist 70s
  ControlPath /run/one/ssh-socks/ctl-M-%C.sock
"""

# As Debian ships it.
SSH_CONFIG = """\
Host *
  SendEnv LANG LC_*
  HashKnownHosts yes
"""

SSHD_OPTIONS = {
    "HostKey": f"/etc/{HOST_KEY}",
    "UsePAM": "no",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "AllowAgentForwarding": "yes",
    "AcceptEnv": "LANG LC_*",
    "PrintMotd": "no",
    "Subsystem": "sftp /usr/lib/openssh/sftp-server",
}


def _copy_etc(target: Path) -> None:
    """Copy the real /etc for all nodes to build on, without its secrets and its people.

    A secret is what not everybody may read. Users with an id of a human do not come along.
    """
    shutil.copytree("/etc", target, symlinks=True, ignore=_ignored, dirs_exist_ok=True)
    _write_users(target)
    (target / "nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n"
    )
    (target / "resolv.conf").write_text("")


def _ignored(directory: str, names: Sequence[str]) -> set[str]:
    ignored = {name for name in names if not _public(Path(directory, name))}
    return ignored | {"ssh"} if directory == "/etc" else ignored


def _public(path: Path) -> bool:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return True
    return bool((stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and mode & stat.S_IROTH)


def _write_users(etc: Path) -> None:
    users = _system_entries(Path("/etc/passwd"))
    users["root"] = "root:x:0:0:root:/root:/bin/bash"
    users["oneadmin"] = f"oneadmin:x:{ONEADMIN_ID}:{ONEADMIN_ID}::/var/lib/one:/bin/bash"
    groups = _system_entries(Path("/etc/group"))
    groups["oneadmin"] = f"oneadmin:x:{ONEADMIN_ID}:"
    passwords = [f"{name}:*:19000:0:99999:7:::" for name in users]
    _write_lines(etc / "passwd", users.values())
    _write_lines(etc / "group", groups.values())
    _write_lines(etc / "shadow", passwords, mode=0o600)


def _system_entries(path: Path) -> dict[str, str]:
    """The lines of a passwd or group file that are no person's, by name."""
    entries = {}
    for line in path.read_text().splitlines():
        name, _, number = line.split(":")[:3]
        if int(number) < FIRST_HUMAN_ID or int(number) == NOBODY_ID:
            entries[name] = line
    return entries


def create_all(lab: Path, plans: Sequence[NodePlan]) -> None:
    """Make the disks of all nodes, whatever umask the tests run with."""
    os.umask(0o022)
    _copy_etc(shared_etc(lab))
    for plan in plans:
        _create(plan)
    _give_oneadmin_key(plans)


def shared_etc(lab: Path) -> Path:
    """The lower side of all nodes' /etc, an existing directory."""
    return lab / "etc"


def _create(plan: NodePlan) -> None:
    """Make the node's disk: an empty Debian that has just got OpenNebula's packages.

    What differs from the copied /etc goes to the upper side of the node's overlay on it.
    """
    root, upper = plan.root, plan.overlay("etc", "upper")
    root.mkdir(parents=True)
    for name in ("etc", "usr"):
        for part in ("upper", "work"):
            plan.overlay(name, part).mkdir(parents=True)
        (root / name).mkdir()
    _create_tree(root)
    _create_oneadmin_home(root)
    _write_lines(upper / "hostname", [plan.name])
    _write_lines(upper / "machine-id", [uuid.uuid4().hex])
    _write_lines(
        upper / "hosts",
        ["127.0.0.1 localhost", *(f"{peer.ip} {peer.name}" for peer in plan.peers)],
    )
    (upper / "ssh").mkdir()
    (upper / "ssh/ssh_config").write_text(SSH_CONFIG)
    options = {**SSHD_OPTIONS, **plan.sshd_options}
    _write_lines(upper / "ssh/sshd_config", [f"{key} {options[key]}" for key in options])
    _create_key(upper / HOST_KEY, f"root@{plan.name}")
    if plan.is_frontend:
        override = plan.overlay("usr", "upper") / "lib/one/sh/override"
        override.mkdir(parents=True)
        shutil.copy(FILES / "ssh", override / "ssh")
    if plan.measured:
        measuring.put_on_node(plan.overlay("usr", "upper"), upper)


def _create_tree(root: Path) -> None:
    """The directories of the root; links are relative, so they hold from outside, too."""
    for path in ("boot", "dev", "disks", "home", "media", "mnt", "opt", "proc", "src", "srv"):
        (root / path).mkdir()
    for path in ("root", "run", "sys", "tmp"):
        (root / path).mkdir()
    for path in ("cache", "lib/libvirt", "lib/misc", "lib/qemu", "log/libvirt", "mail", "spool"):
        (root / "var" / path).mkdir(parents=True)
    for directory in ("root", "disks"):
        (root / directory).chmod(0o700)
    (root / "var/tmp").mkdir()
    for directory in ("tmp", "var/tmp"):
        (root / directory).chmod(0o1777)
    (root / "var/run").symlink_to("../run")
    (root / "var/lock").symlink_to("../run/lock")
    for entry in Path("/").iterdir():  # bin, lib and the like
        if entry.is_symlink() and os.readlink(entry).lstrip("/").startswith("usr/"):
            (root / entry.name).symlink_to(os.readlink(entry).lstrip("/"))


def _create_oneadmin_home(root: Path) -> None:
    for path in ("var/lib/one", DATASTORES.lstrip("/"), "var/log/one"):
        (root / path).mkdir(mode=0o750)
        _own(root / path)
    ssh = root / "var/lib/one/.ssh"
    ssh.mkdir(mode=0o700)
    _own(ssh)
    (ssh / "config").write_text(ONEADMIN_SSH_CONFIG)
    _own(ssh / "config")


def _give_oneadmin_key(plans: Sequence[NodePlan]) -> None:
    """A new key pair for oneadmin: the private half on the front-end alone."""
    (frontend,) = (plan for plan in plans if plan.name == FRONTEND)
    key = frontend.root / ONEADMIN_KEY.lstrip("/")
    _create_key(key, "oneadmin@fe")
    public = key.with_suffix(".pub")
    _own(key)
    _own(public)
    for plan in plans:
        authorized = plan.root / "var/lib/one/.ssh/authorized_keys"
        authorized.write_bytes(public.read_bytes())
        authorized.chmod(0o600)
        _own(authorized)


def _create_key(path: Path, comment: str) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def known_hosts(plans: Sequence[NodePlan]) -> str:
    """A known_hosts file with every node's host key, under its name and its address."""
    return "".join(f"{_names(plan.address)} {_host_key(plan)}\n" for plan in plans)


def _names(address: Address) -> str:
    return f"{address.name},{address.ip}"


def _host_key(plan: NodePlan) -> str:
    public = plan.overlay("etc", "upper") / f"{HOST_KEY}.pub"
    algorithm, key = public.read_text().split()[:2]
    return f"{algorithm} {key}"


def _own(path: Path) -> None:
    """Give a file to oneadmin."""
    os.chown(path, ONEADMIN_ID, ONEADMIN_ID)


def _write_lines(path: Path, lines: Iterable[str], mode: int = 0o644) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
