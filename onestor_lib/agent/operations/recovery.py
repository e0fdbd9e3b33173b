"""Recovery copies: made on the VM's host, kept on a replica, given back when that host has died."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from onestor_lib.agent import (
    bases,
    chain,
    client,
    crashpoints,
    delta,
    layout,
    live_copy,
    locks,
    priority,
    publish,
    recovery,
    space,
    transfer,
    virsh,
    vm_directory,
)
from onestor_lib.agent.bandwidth import Limit, datastores_of
from onestor_lib.agent.errors import (
    HostUnreachable,
    InvalidInput,
    NotAllowed,
    OnestorError,
    TransferFailed,
    from_os_error,
)
from onestor_lib.agent.server import Call

_STEP = "make the recovery copy"
_LOOKS = 5  # for a copy that is being replaced


def look(call: Call, *, uri: str) -> dict[str, dict[str, list[int]]]:
    """What tells whether a disk has been written to: by domain, and by file.

    The hypervisor's counters, which start anew with the domain; when the file was written to last;
    and which file it is: a revert replaces that.
    """
    found = virsh.written(uri)
    for disks in found.values():
        for path, counters in disks.items():
            with contextlib.suppress(OSError):
                facts = os.stat(path)
                counters += [facts.st_mtime_ns, facts.st_ino]
    return found


def copy(
    call: Call,
    *,
    path: str,
    image_format: str,
    live: dict[str, Any],
    qcow2_options: list[str],
    check_space: bool,
    timeout: float,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> dict[str, Any]:
    """Have the disk of a running VM, as it is when this ends, in a temporary beside it.

    It is there until the end of the connection; the disk's lock is not held as long. Returns the
    ``path``, ``size`` and ``allocated`` bytes, the ``version`` of the image that the disk was made
    from if that is known, and the ``base`` if it is an overlay on one.
    """
    disk = Path(path)
    priority.lower(**bulk)
    try:
        publish.sweep(disk.parent)
        with vm_directory.lock(disk, purpose=_STEP, timeout=lock_timeout):
            layers = chain.layers(disk, image_format, within=disk.parent.parent.parent, step=_STEP)
            record = vm_directory.read_record(disk)
            base = record.get("base")
            is_overlay = len(layers) > 1
            shallow = layout.is_own(disk, layers, image_format, step=_STEP)
            shallow = shallow and (not is_overlay or isinstance(base, dict))
            if check_space:
                space.require(disk.parent, chain.allocated(layers[:1] if shallow else layers))
            temporary: publish.Temporary = call.keep(vm_directory.outgoing(disk))
            live_copy.copy(
                call, layers, temporary.path, image_format, live_copy.Live(**live),
                shallow=shallow, timeout=timeout, options=qcow2_options,
            )  # fmt: skip
        facts = temporary.path.stat()
    except OSError as error:
        raise from_os_error(_STEP, error, where=path) from error
    found: dict[str, Any] = {
        "path": str(temporary.path),
        "size": facts.st_size,
        "allocated": facts.st_blocks * 512,
        "version": record.get("version"),
        "base": None,
    }
    if shallow and is_overlay and isinstance(base, dict):
        file = vm_directory.base_path(disk)
        found["base"] = {**base, "path": str(file), "size": file.stat().st_size}
    return found


def note(call: Call, *, points: dict[str, int]) -> None:
    """Write down beside disks when they were copied last, for the host's probe (seconds)."""
    for path, point in points.items():
        with contextlib.suppress(OSError):  # the VM may have left meanwhile
            file = vm_directory.recovery_note(Path(path))
            if Path(path).exists():
                publish.write_file(file, b"%d\n" % point)


def read(
    call: Call,
    *,
    path: str,
    size: int,
    receiver: str,
    stall: float,
    bytes_per_second: int,
    bulk: dict[str, Any],
) -> None:
    """Send a temporary of :func:`copy`, or a base, behind this request."""
    file = Path(path)
    if not (publish.is_temporary(file.name) or file.name.endswith(".base")):
        raise NotAllowed("send the copy", "it is neither a copy nor a base", path=path)
    priority.lower(**bulk)
    limit = Limit(receiver, bytes_per_second, datastores_of(file)) if bytes_per_second else None
    fd = transfer.open_source(file)
    try:
        with call.streaming() as pipe:
            delta.send(pipe, fd, size, stall=stall, on_progress=call.progress, limit=limit)
    except (BrokenPipeError, EOFError, ValueError, TimeoutError):
        pass  # the receiver has ended, and says why
    finally:
        os.close(fd)


def fetch(
    call: Call,
    *,
    root: str,
    vm: int,
    disk: str,
    made: dict[str, Any],
    point: int,
    record: dict[str, Any],
    argv: list[str],
    host: str,
    stall: float,
    bytes_per_second: int,
    check_space: bool,
    lock_timeout: float,
    bulk: dict[str, Any],
) -> dict[str, int]:
    """Fetch a copy of :func:`copy`, which ``made`` describes, from its host; the older ones go.

    ``point`` is the moment that it shows, in milliseconds since 1970 by the front-end's clock:
    all copies go by that one. ``argv`` starts an agent on ``host``. ``record`` is kept with it.
    Returns how many bytes were ``received``. Asks whether it is ``wanted`` still before it has its
    name. Fails when the disk's copies are to be forgotten meanwhile (:func:`forget`).
    """
    priority.lower(**bulk)
    directory = _directory(root, vm, disk)
    source = _Source(call, argv, host, stall, bytes_per_second, bulk)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = directory / f".{disk}.lock"
        with locks.exclusive(lock, purpose=_STEP, timeout=lock_timeout):
            publish.sweep(directory)
            if check_space:
                space.require(directory, made["allocated"])
            older = recovery.newest(directory, disk)
            new = recovery.new(directory, disk, point)
            with publish.temporary_directory(new.directory) as prepared:
                unnamed = new._replace(directory=prepared)
                received = _take_base(source, unnamed, older, made["base"])
                known = older.digests() if older else b""
                digests, more = source.receive(
                    made["path"], unnamed.file, made["size"], older.file if older else None, known
                )
                crashpoints.reach("recovery.received")
                more_facts = {"version": made["version"], "base": made["base"]}
                _complete(unnamed, digests, {**record, **more_facts})
                call.ask("wanted")
                _put_behind(directory, disk, older, new.point)
                os.rename(prepared, new.directory)
                publish.sync_dir(directory)
            crashpoints.reach("recovery.renamed")
            _drop(directory, disk, but=new.point)
    except OSError as error:
        raise from_os_error("fetch the copy", error, where=root) from error
    return {"received": received + more}


def copies(call: Call, *, root: str) -> list[dict[str, Any]]:
    """All copies that are kept here, the youngest of each disk.

    And the directories of VMs that have nothing but what we put beside copies (no ``disk``):
    others keep files of their own here, too, by the same names of VMs.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for directory in sorted(Path(root).iterdir()):
            if not directory.name.isdigit():
                continue
            disks = {copy.disk for copy in recovery.of_vm(directory)}
            for disk in sorted(disks):
                if described := _newest(int(directory.name), directory, disk):
                    found.append(described)
            if not disks and recovery.is_bare(directory):
                found.append({"vm": int(directory.name), "disk": ""})
    return found


def describe(call: Call, *, root: str, vm: int, disk: str) -> dict[str, Any] | None:
    """The youngest copy of one disk."""
    return _newest(vm, _directory(root, vm, disk), disk)


def tidy(call: Call, *, root: str, vm: int) -> None:
    """Remove a VM's directory that has no copies; one with anything else in it stays."""
    directory = _directory(root, vm, "disk.0")
    if recovery.is_bare(directory):
        with contextlib.suppress(OSError):
            for each in list(directory.iterdir()):
                each.unlink()
            directory.rmdir()


def renew(call: Call, *, root: str, disks: list[list[Any]]) -> list[list[Any]]:
    """Let copies of disks that were not written to show a later moment.

    ``disks`` are [vm, disk, the point it has, the new one]; those that could not be.
    """
    failed = []
    for vm, disk, point, later in disks:
        directory = _directory(root, vm, disk)
        copy = recovery.new(directory, disk, point)
        try:
            copy.directory.rename(recovery.new(directory, disk, later).directory)
        except OSError:
            failed.append([vm, disk, point, later])
    return failed


def forget(call: Call, *, root: str, vm: int, disk: str = "") -> dict[str, bool]:
    """Remove the copies of a disk, or of all disks of a VM.

    One that is being fetched goes, too: the disk it was made from may be gone, and another one
    have its name (known failure G3).
    """
    directory = _directory(root, vm, disk or "disk.0")
    try:
        if not disk:
            removed = publish.take_away(directory)
        else:
            recovery.remove_unfinished(directory, disk)
            removed = _drop(directory, disk)
            publish.remove(directory / f".{disk}.lock")
            with contextlib.suppress(OSError):
                directory.rmdir()
    except OSError as error:
        raise from_os_error("remove recovery copies", error, path=str(directory)) from error
    return {"removed": removed}


def hold(call: Call, *, root: str, vm: int, disk: str) -> dict[str, Any]:
    """Keep the youngest copy, which is about to be sent, by another name until the connection ends.

    Returns its ``path``, that of its base, and what :func:`describe` says of it.
    """
    directory = _directory(root, vm, disk)
    described = _newest(vm, directory, disk)
    if described is None:
        raise TransferFailed("keep the copy", "it was removed meanwhile", path=str(directory))
    copy = recovery.new(directory, disk, described["point"])
    try:
        publish.sweep(directory)
        temporary: publish.Temporary = call.keep(publish.Temporary(directory / disk))
        if not temporary.become_link(copy.file):
            raise OnestorError("keep the copy", "no hard links here", path=str(directory))
        held = {"path": str(temporary.path), "size": temporary.path.stat().st_size}
        if copy.base.exists():
            base: publish.Temporary = call.keep(publish.Temporary(directory / copy.base.name))
            base.become_link(copy.base)
            held["base_path"] = str(base.path)
        return {**held, "copy": described}
    except OSError as error:
        raise from_os_error("keep the copy", error, path=str(copy.file)) from error


class _Source:
    """The host that has a copy."""

    def __init__(
        self,
        call: Call,
        argv: list[str],
        host: str,
        stall: float,
        bytes_per_second: int,
        bulk: dict[str, Any],
    ) -> None:
        self._call, self._argv, self._host, self._stall = call, argv, host, stall
        self._more = {
            "receiver": os.uname().nodename, "stall": stall,
            "bytes_per_second": bytes_per_second, "bulk": bulk,
        }  # fmt: skip

    def receive(
        self, path: str, target: Path, size: int, older: Path | None, digests: bytes
    ) -> tuple[bytes, int]:
        """Make the new file ``target`` what ``path`` is on the host."""
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        stream = client.ProcessStream(self._argv)
        try:
            with client.AgentClient(
                stream, self._host, on_log=self._call.log, on_progress=self._call.progress
            ) as agent:
                agent.start(client.payload)
                pipe = agent.stream("recovery.read", path=path, size=size, **self._more)
                try:
                    return delta.receive(
                        pipe, target, size, older=older, older_digests=digests,
                        stall=self._stall, on_progress=self._call.progress, host=self._host,
                    )  # fmt: skip
                except TransferFailed:
                    agent.result("recovery.read")  # what it has met there is the better reason
                    raise
        except HostUnreachable as error:
            raise transfer.between(error, self._host) from error


def _take_base(
    source: _Source, new: recovery.Copy, older: recovery.Copy | None, base: dict[str, Any] | None
) -> int:
    """Put the base beside the new copy: of the older one, of the cache, or from the host."""
    if not base:
        return 0
    if older and (older.record().get("base") or {}).get("digest") == base["digest"]:
        with contextlib.suppress(OSError):
            os.link(older.base, new.base, follow_symlinks=False)
            return 0
    with contextlib.suppress(OnestorError, OSError):
        if bases.take(Path(base["image"]), base["digest"], new.base):
            return 0
    _, received = source.receive(base["path"], new.base, base["size"], None, b"")
    with new.base.open("rb") as file:
        if transfer.digests_of(file.fileno(), base["size"]).digest() != base["digest"]:
            raise TransferFailed("fetch the base", transfer.DIFFERENT, path=base["path"])
    new.base.chmod(0o444)
    return received


def _complete(new: recovery.Copy, digests: bytes, record: dict[str, Any]) -> None:
    """Everything beside the copy, and all on the disk."""
    publish.write_file(new.directory / recovery.DIGESTS, digests)
    publish.write_file(new.directory / recovery.RECORD, json.dumps(record).encode("ascii") + b"\n")
    publish.sync_file(new.file, mode=0o440)
    if new.base.exists():
        publish.sync_file(new.base)
    new.directory.chmod(0o755)
    publish.sync_dir(new.directory)


def _put_behind(directory: Path, disk: str, older: recovery.Copy | None, point: int) -> None:
    """Make the copy so far the older one of two by its name, too.

    Its moment is after ``point`` if the clock was set back meanwhile.
    """
    if older and older.point >= point:
        _drop(directory, disk, but=older.point)
        older.directory.rename(recovery.new(directory, disk, recovery.AGE_UNKNOWN).directory)


def _drop(directory: Path, disk: str, *, but: int = -1) -> bool:
    """Remove the copies of a disk, but for the one of a moment; whether there was any."""
    removed = False
    for copy in recovery.of_vm(directory):
        if copy.disk == disk and copy.point != but:
            removed |= publish.take_away(copy.directory)
    return removed


def _newest(vm: int, directory: Path, disk: str) -> dict[str, Any] | None:
    """The youngest copy, described; one that is replaced meanwhile is looked for again."""
    for _ in range(_LOOKS):
        copy = recovery.newest(directory, disk)
        if copy is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            facts = copy.file.stat()
            return {
                "vm": vm, "disk": copy.disk, "point": copy.point, "record": copy.record(),
                "size": facts.st_size, "allocated": facts.st_blocks * 512,
            }  # fmt: skip
    return None


def _directory(root: str, vm: int, disk: str) -> Path:
    if not vm_directory.is_disk(disk):
        raise InvalidInput(_STEP, f"{disk!r} is no disk of VM {vm}")
    return Path(root) / str(int(vm))
