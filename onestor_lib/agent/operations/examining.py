"""Facts about this machine for ``onestor doctor``: nothing is judged here, and nothing left behind.

What cannot be found out is a text that says why, in the place of the fact.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onestor_lib.agent import extents, process, publish
from onestor_lib.agent.errors import OnestorError, from_os_error
from onestor_lib.agent.server import Call

_QUICK = 3.0  # seconds for a program
_AT_ONCE = 32
_PEERS_AT_ONCE = 4  # all hosts try to get to all others at the same time
# What libvirt runs qemu as, in its capabilities: "+64055:+109" (libvirt, "baselabel").
_OWNER = re.compile(rb"<baselabel type='(?:kvm|qemu)'>\+(\d+):\+(\d+)</baselabel>")
_MOST_RULES = 1 << 18  # characters
_RULES = (Path("/etc/apparmor.d/abstractions/libvirt-qemu"), Path("/etc/apparmor.d/local"))


def clock(call: Call) -> float:
    """What time it is here, in seconds since 1970."""
    return time.time()


def examine(
    call: Call,
    *,
    uri: str,
    datastores: list[str],
    pairs: list[list[str]],
    scripts: dict[str, str],
) -> dict[str, Any]:
    """What there is on a host.

    ``datastores`` are directories that VMs or caches use, ``pairs`` of them should share a file
    system, ``scripts`` are files with the digests they should have; ``uri`` is that of libvirt.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        qemu_img = pool.submit(_version, ["qemu-img", "--version"])
        libvirt = pool.submit(_version, ["virsh", "-q", "-c", uri, "version"])
        labels = pool.submit(_capabilities, uri)
        facts = {
            "python": list(sys.version_info[:2]),
            "uid": os.getuid(),
            "groups": [os.getgid(), *os.getgroups()],
            "datastores": {path: _directory(Path(path)) for path in datastores},
            "links": [_link(Path(one), Path(other)) for one, other in pairs],
            "scripts": [path for path, digest in scripts.items() if _digest(path) != digest],
        }
        return {**facts, "qemu_img": qemu_img.result(), "libvirt": libvirt.result(),
                **labels.result()}  # fmt: skip


def reach(call: Call, *, peers: dict[str, list[str]], timeout: float) -> dict[str, str]:
    """Run the command that connects to each of ``peers``; why it failed, or ""."""

    def attempt(argv: list[str]) -> str:
        call.progress(0, 0)
        try:
            result = process.run(argv, timeout=timeout, step="connect")
        except OnestorError as error:
            return error.cause
        return "" if result.ok else result.reason

    with ThreadPoolExecutor(_PEERS_AT_ONCE) as pool:
        return dict(zip(peers, pool.map(attempt, peers.values())))


def _version(argv: list[str]) -> dict[str, str]:
    """The first line with a number that a program says of itself, or what is wrong with it."""

    def work() -> str:
        said = process.run(argv, timeout=_QUICK, step=argv[0]).check(argv[0])
        lines = said.stdout.decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in lines if re.search(r"\d+\.\d+", line)), "")

    return _told(work)


def _told(work: Callable[[], str]) -> dict[str, str]:
    try:
        return {"is": work(), "wrong": ""}
    except OnestorError as error:
        return {"is": "", "wrong": error.cause}
    except OSError as error:
        return {"is": "", "wrong": from_os_error("look", error).cause}


def _capabilities(uri: str) -> dict[str, Any]:
    """Whom libvirt runs qemu as, and whether AppArmor confines it and knows of the datastores."""
    found: dict[str, Any] = {"qemu_owner": None, "apparmor": None}
    with contextlib.suppress(OnestorError):
        argv = ["virsh", "-q", "-c", uri, "capabilities"]
        said = process.run(argv, timeout=_QUICK, step="virsh").check("virsh").stdout
        if owner := _OWNER.search(said):
            found["qemu_owner"] = [int(owner[1]), int(owner[2])]
        if b"<model>apparmor</model>" in said:
            found["apparmor"] = _rules()
    return found


def _rules() -> str:
    """What AppArmor's abstractions for qemu say, with what is included locally."""
    texts = []
    for path in _RULES:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if "libvirt" in str(file):
                with contextlib.suppress(OSError):
                    texts.append(file.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(texts)[:_MOST_RULES]


def _directory(path: Path) -> dict[str, Any]:
    """A directory, or the one it will be made in: free bytes and blocks, and what is wrong."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        figures = os.statvfs(place)
        with publish.Temporary(place / "onestor-doctor"):
            pass
    except OSError as error:
        return {
            "wrong": from_os_error("write", error, path=str(place)).cause,
            "there": path.exists(),
        }
    unit = figures.f_frsize
    return {
        "wrong": "",
        "there": path.exists(),
        "free": figures.f_bavail * unit,
        "size": figures.f_blocks * unit,
        "inodes": figures.f_favail if figures.f_files else None,
        "shares": extents.can_share(place),
    }


def _link(one: Path, other: Path) -> str:
    """Why a file of one directory cannot have another name in the other; "" when it can."""
    try:
        places = [path if path.exists() else path.parent for path in (one, other)]
        with (
            publish.Temporary(places[0] / "onestor-doctor") as file,
            publish.Temporary(places[1] / "onestor-doctor") as link,
        ):
            return "" if link.become_link(file.path) else "they are on two file systems"
    except OSError as error:
        return from_os_error("link", error).cause


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""
