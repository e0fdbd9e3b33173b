"""Operations on a VM's directory as a whole: move it, and what a live migration leaves of it.

Nothing is removed on one machine before it is proven that the other one's directory is another:
a file with a new name is made in the one and looked for in the other (known failures D1 to D5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    chain,
    client,
    crashpoints,
    extents,
    moving,
    priority,
    publish,
    transfer,
    tree,
    vm_directory,
)
from onestor_lib.agent.bandwidth import Limit
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    HostUnreachable,
    Missing,
    NotAllowed,
    OnestorError,
    TransferFailed,
    from_os_error,
)
from onestor_lib.agent.server import Call
from onestor_lib.agent.virsh import Domain

_STEP = "move the VM's directory"
_DISK = re.compile(r"(disk\.[0-9]+)(\.snap(/.+)?)?")
_BESIDE = re.compile(
    r"disk\.[0-9]+\.base|\.disk\.[0-9]+\.record|kernel|initrd|\.disk\..+\.unknown(/.+)?"
)
_OFF = ("", "shut off", "crashed")  # states of a domain that uses no disk


def examine(
    call: Call, *, path: str, marker: str, disks: list[str], domain: dict[str, str] | None
) -> dict[str, Any]:
    """What another machine has to know of the directory here before it sends or removes anything.

    Whether the file ``marker`` that it has just made is ``same`` here, whether the directory is
    ``there``, by which ``placement`` of the VM, and by which its ``disks`` ``first``, which of
    those are ``missing``, when one of them was last ``written`` (seconds since 1970), the state of
    the ``domain``, and whether that has disks of it ``open``. What cannot be found out is an error.
    """
    directory = Path(path)
    missing = _missing(directory, disks)
    there = [directory / name for name in disks if name not in missing]
    return {
        "same": _exists(directory / marker),
        "there": _exists(directory),
        "placement": vm_directory.placement(directory),
        "first": vm_directory.first_placement(directory, disks),
        "missing": missing,
        "written": max((file.stat().st_mtime for file in there), default=0.0),
        "state": _state(domain),
        "open": bool(domain and _open_disk(directory, domain)),
    }


def move(
    call: Call,
    *,
    path: str,
    target: str,
    peer: dict[str, Any],
    disks: list[str],
    notes: dict[str, Any] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Move the directory to ``target`` on the ``peer``; what is there already is success.

    ``disks`` are the files that must be in it: a directory without them is no VM's, and the one
    at the target, if it has them, is the only copy (known failures D1 and L13). ``peer`` has the
    ``host`` and the ``argv`` that starts an agent there, none for this machine. ``notes`` are there
    if one of the two was to be deleted: up to which placement at the ``source`` and the ``target``,
    and the VM's ``domain`` if it is at the target. What is that old is never used; at the target it
    goes first, as it must not be what is there when the move fails. Then the front-end is asked to
    drop the notes. Returns how many bytes were ``sent``, and how it was ``done``.
    """
    directory, notes = Path(path), notes or {}
    priority.lower(**how["bulk"])
    publish.sweep(directory.parent)
    with _marked(directory) as marker, _agent(call, **peer) as there:
        found = there.call(
            "directory.examine",
            path=target,
            marker=marker,
            disks=disks,
            domain=notes.get("domain"),
        )
        if marker and found["same"]:
            if notes:
                call.ask("cleared")
            return {"done": "same", "sent": 0}
        is_old = _is_left_behind(directory, disks, notes.get("source"))
        is_noted_there = "target" in notes and found["there"]
        is_old_there = is_noted_there and found["placement"] <= notes["target"]
        missing = _missing(directory, disks)
        if not marker or missing or is_old:
            what = f"{', '.join(missing)} missing" if marker else "no such directory"
            if is_old:
                what = "it is older than the VM, and was to be deleted"
            if found["there"] and not found["missing"] and not is_old_there:
                age = time.time() - found["written"]
                call.log("WARN", f"{path}: {what}; {target}, last written {age:.0f} s ago, is used")
                return {"done": "already", "sent": 0}
            raise Missing(_STEP, what, path=path)
        if is_old_there:
            _require_off(found["state"], peer["host"], target, _STEP)
            there.call("directory.delete", path=target)
        if notes:
            call.ask("cleared")
        tree.make_links_relative(directory)
        if not peer["argv"] and _is_one_file_system(directory, Path(target)):
            publish.remove(directory / marker)
            if _rename(directory, Path(target)):
                return {"done": "renamed", "sent": 0}
        items = tree.listing(directory)
        sent = _send(call, there, directory, target, items, **how)
        crashpoints.reach("move.taken")
    vm_directory.remove(directory)
    return {"done": "moved", **sent}


def prepare(
    call: Call,
    *,
    path: str,
    target: str,
    peer: dict[str, Any],
    disks: list[str],
    domain: dict[str, str],
    descriptions: dict[str, str],
    **how: Any,
) -> dict[str, Any]:
    """Make ready the ``target`` of a live migration: a directory with all but the disks.

    Those are the bases they lie on, and what is kept of others that the VM does not use any more.
    The hypervisor brings the rest. It expects a description of the VM here, beside the disks
    (known failure D15). What an earlier migration has left there goes (known failure D13).
    """
    directory = Path(path)
    priority.lower(**how["bulk"])
    with _marked(directory) as marker, _agent(call, **peer) as there:
        found = there.call("directory.examine", path=target, marker=marker, disks=[], domain=domain)
        if marker and found["same"]:
            return {"done": "same", "sent": 0}
        _require_source(directory, marker, disks)
        _require_copied(directory, disks)
        _require_off(found["state"], peer["host"], target, "prepare the target")
        if not any(directory.glob("*.xml")):
            for name, text in descriptions.items():
                publish.write_file(directory / name, text.encode("utf-8", "surrogateescape"))
        items = tree.listing(directory, lambda name: _is_beside(name, disks))
        return {"done": "prepared", **_send(call, there, directory, target, items, **how)}


def retire(
    call: Call,
    *,
    path: str,
    target: str,
    peer: dict[str, Any],
    disks: list[str],
    domain: dict[str, str],
    moved_host: bool,
) -> dict[str, Any]:
    """Remove the directory, now that the VM runs at the ``target``; else nothing (failure D16).

    Nothing that is kept of a disk, its snapshots among it, may be here only. When the VM has
    changed its datastore and not its host, nobody has prepared the target: that is done now.
    """
    directory = Path(path)
    step = "clean up the source"
    with _marked(directory) as marker, _agent(call, **peer) as there:

        def examine_there(names: list[str]) -> dict[str, Any]:
            found: dict[str, Any] = there.call(
                "directory.examine", path=target, marker=marker, disks=names, domain=domain
            )
            return found

        found = examine_there([])
        if found["state"] in _OFF:
            cause = "the VM does not run there"
            raise NotAllowed(step, cause, host=peer["host"], path=target)
        if moved_host and (state := _state(domain)) not in _OFF:
            raise NotAllowed(step, f"the VM is {state} here", path=path)
        if not marker:
            return {"removed": False, "same": False}
        if found["same"]:
            return {"removed": False, "same": True}
        if used := _open_disk(directory, domain):
            raise NotAllowed(step, "the VM uses it", path=used)
        if not moved_host:
            rest = tree.listing(directory, lambda name: _is_of_disks(name) and name not in disks)
            _bring_rest(directory, Path(target), rest)
        kept = tree.listing(directory, _is_content)
        names = [item.path for item in kept if item.kind in (tree.FILE, tree.SAME)]
        missing = examine_there([*disks, *(name for name in names if name not in disks)])["missing"]
        if missing:
            cause = f"{', '.join(missing)} missing there"
            raise NotAllowed(step, cause, host=peer["host"], path=target)
        there.call("directory.tidy", path=target, disks=disks)
    return {"removed": vm_directory.remove(directory), "same": False}


def abandon(
    call: Call,
    *,
    path: str,
    target: str,
    peer: dict[str, Any],
    disks: list[str],
    domain: dict[str, str],
) -> dict[str, Any]:
    """Remove what a failed live migration has left at the ``target``, if it is no VM's only copy.

    That is proven by this machine having all of the VM, in another directory (known failure D12).
    """
    directory = Path(path)
    with _marked(directory) as marker, _agent(call, **peer) as there:
        found = there.call("directory.examine", path=target, marker=marker, disks=[], domain=domain)
        if not found["there"]:
            return {"removed": False, "same": False}
        if found["same"]:
            return {"removed": False, "same": True}
        _require_source(directory, marker, disks)
        _require_off(found["state"], peer["host"], target, "clean up the target")
        if _state(domain) in _OFF:
            cause = "the VM runs nowhere: the newest disks may be there"
            raise NotAllowed("clean up the target", cause, host=peer["host"], path=target)
        removed = there.call("directory.delete", path=target)["removed"]
    return {"removed": removed, "same": False}


def tidy(call: Call, *, path: str, disks: list[str]) -> None:
    """Drop the bases that no disk and no snapshot lies on: a live migration flattens disks."""
    directory = Path(path)
    for name in disks:
        disk = directory / name
        base, snapshots = vm_directory.base_path(disk), vm_directory.snapshots_path(disk)
        if not os.path.lexists(base):
            continue
        files = [disk, *(snapshots.iterdir() if snapshots.is_dir() else [])]
        try:
            used = any(
                chain.backing_name(file, "qcow2", step=_STEP)
                for file in files
                if file.is_file() and not (file.is_symlink() and file.name == base.name)
            )
        except (OnestorError, OSError) as error:
            call.log("WARN", f"{base} is kept: {error}")
            continue
        if not used:
            publish.remove(snapshots / base.name)
            publish.remove(base)
            known = vm_directory.read_record(disk)
            known.pop("base", None)
            vm_directory.write_record(disk, known)


def receive(
    call: Call,
    *,
    path: str,
    items: list[Any],
    stall: float,
    check_space: bool,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Receive what :func:`move` or :func:`prepare` streams behind this request."""
    priority.lower(**bulk)
    try:
        return moving.receive(
            call.streaming,
            Path(path),
            tree.from_json(items),
            stall=stall,
            check_space=check_space,
            on_progress=call.progress,
        )
    except OSError as error:
        raise from_os_error(_STEP, error, where=path) from error


def _send(
    call: Call,
    there: AgentClient,
    directory: Path,
    target: str,
    items: list[tree.Item],
    *,
    stall: float,
    bytes_per_second: int,
    check_space: bool,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    pipe = there.stream(
        "directory.receive", path=target, items=items, stall=stall,
        check_space=check_space, bulk=bulk,
    )  # fmt: skip
    limit = None
    if bytes_per_second:
        limit = Limit(there.host, bytes_per_second, directory.parent.parent)
    sent = None
    try:
        sent = moving.send(
            pipe, directory, items, stall=stall, on_progress=call.progress, limit=limit
        )
    except TimeoutError:
        cause = f"nothing moved for {stall:.0f} s"
        raise TransferFailed(_STEP, cause, host=there.host, path=target) from None
    except (BrokenPipeError, EOFError, ValueError):
        pass  # the receiver has ended: what it says is the reason
    received = there.result("receive")
    if sent is None:
        cause = "the connection broke"
        raise TransferFailed(_STEP, cause, host=there.host, path=target)
    return {"sent": sent, "linked": received["linked"]}


@contextlib.contextmanager
def _marked(directory: Path) -> Iterator[str]:
    """A new file in the directory for the block; its name, "" when there is no directory."""
    publish.sweep(directory)
    marker = tree.marker_name()
    try:
        fd = os.open(directory / marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        yield ""
        return
    except OSError as error:
        raise from_os_error("mark the directory", error, path=str(directory)) from error
    os.close(fd)
    try:
        yield marker
    finally:
        with contextlib.suppress(OSError):
            (directory / marker).unlink()


@contextlib.contextmanager
def _agent(call: Call, *, host: str, argv: list[str]) -> Iterator[AgentClient]:
    """An agent on the other machine, or another one here."""
    command = argv or [sys.executable, client.PYTHON_OPTIONS, "-c", client.BOOT_CODE]
    try:
        stream = client.ProcessStream(command)
        with AgentClient(stream, host, on_log=call.log, on_progress=call.progress) as agent:
            agent.start(client.payload)
            yield agent
    except HostUnreachable as error:
        raise transfer.between(error, host) from error


def _require_source(directory: Path, marker: str, disks: list[str]) -> None:
    if not marker:
        raise Missing(_STEP, "no such directory", path=str(directory))
    if missing := _missing(directory, disks):
        raise Missing(_STEP, f"{', '.join(missing)} missing", path=str(directory))


def _is_left_behind(directory: Path, disks: list[str], noted: int | None) -> bool:
    """Whether the VM's disks here are those that were to be deleted; no record says no.

    Raises :class:`NotAllowed` if the VM has been started with them since: then there are two.
    """
    if noted is None or not 0 <= vm_directory.first_placement(directory, disks) <= noted:
        return False
    if vm_directory.placement(directory) > noted:
        cause = "it was to be deleted, but has been used since: where are the VM's newest disks?"
        raise NotAllowed(_STEP, cause, path=str(directory))
    return True


def _require_off(state: str, host: str, target: str, step: str) -> None:
    if state not in _OFF:
        raise NotAllowed(step, f"the VM is {state} there", host=host, path=target)


def _require_copied(directory: Path, disks: list[str]) -> None:
    """Raise :class:`NotAllowed` for a disk that a live migration would not copy (failure D20).

    The hypervisor's script takes a link for a network disk, unless it leads into the directory of
    the disk's snapshots (contract section 2.6).
    """
    for name in disks:
        disk = directory / name
        snapshots = f"{os.path.realpath(vm_directory.snapshots_path(disk))}/"
        if disk.is_symlink() and not os.path.realpath(disk).startswith(snapshots):
            cause = f"it is a link to {os.readlink(disk)}, which a live migration does not copy"
            raise NotAllowed("prepare the target", cause, path=str(disk))


def _open_disk(directory: Path, domain: dict[str, str]) -> str:
    """A file of the directory that the VM, if it runs here, has for a disk; "" for none."""
    found = Domain(domain["domain"], domain["uri"])
    if found.state() in _OFF:
        return ""
    place = f"{os.path.realpath(directory)}/"
    files = [disk.path for disk in found.disks()]
    return next((file for file in files if f"{os.path.realpath(file)}/".startswith(place)), "")


def _is_beside(name: str, disks: list[str]) -> bool:
    """Whether the hypervisor leaves a path in the VM's directory to us: it copies ``disks``."""
    match = _DISK.fullmatch(name)
    return match[1] not in disks if match else bool(_BESIDE.fullmatch(name))


def _is_content(name: str) -> bool:
    """Whether a path has content of a disk, used or not, but for bases."""
    return _is_of_disks(name) and not name.endswith(".base")


def _is_of_disks(name: str) -> bool:
    return bool(_DISK.fullmatch(name) or _BESIDE.fullmatch(name))


def _bring_rest(directory: Path, target: Path, items: list[tree.Item]) -> None:
    """Let ``target`` on this machine have those of ``items`` that are not there."""
    for item in items:
        path = target / item.path
        if os.path.lexists(path):
            continue
        if item.kind == tree.DIRECTORY:
            path.mkdir(mode=item.mode)
        elif item.kind == tree.LINK:
            path.symlink_to(item.target)
        else:
            file = directory / item.path
            with publish.Temporary(path) as temporary:
                if not temporary.become_link(file):
                    extents.copy_path(file, temporary.path, sparse=True, step=_STEP)
                temporary.publish(mode=file.stat().st_mode & 0o777)


def _rename(directory: Path, target: Path) -> bool:
    """Move the directory within its file system; False when it is none (known failure D6)."""
    try:
        moving.take_place(directory, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # of one file system, but mounted twice
            raise
        return False
    publish.sync_dir(directory.parent)
    vm_directory.mark(target.parent, vm_directory.DRIVER)
    return True


def _exists(path: Path) -> bool:
    """Whether there is such a name; unlike os.path.exists an error is one (design, section 4)."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _missing(directory: Path, disks: list[str]) -> list[str]:
    """Those that are not there, or are links to what is not there."""
    return [name for name in disks if not _exists(Path(os.path.realpath(directory / name)))]


def _is_one_file_system(directory: Path, target: Path) -> bool:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return directory.stat().st_dev == target.parent.stat().st_dev


def _state(domain: dict[str, str] | None) -> str:
    return Domain(domain["domain"], domain["uri"]).state() if domain else ""
