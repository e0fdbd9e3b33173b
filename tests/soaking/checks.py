"""What must be true of the whole cloud when nothing is at work."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry
from tests.cluster import Node
from tests.drivers.conftest import entry_of, transfers_in
from tests.soaking.model import MB, SET_ASIDE, Violation, VmModel
from tests.soaking.world import (
    COPIES,
    HOST_CACHE_MB,
    HYPERVISORS,
    REPLICA,
    REPLICA_CACHE_MB,
    World,
)
from tests.waiting import wait_until

# Of a VM's directory, beside its disks.
_OTHERS = {"vm.xml", "ds.xml", "deployment.0"}
_RECORDS = 256 << 10  # bytes: locks, and the records of parts, are no images


def check_all(world: World) -> None:
    """Raise :class:`Violation` for the first thing that is not as it should be."""
    for image in world.model.images:
        world.check_image(image)
    for vm in world.model.vms:
        world.check_vm(vm)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not world.bed.leftovers(), "nothing is left over")
    if left := world.bed.leftovers():
        raise Violation(f"left over: {', '.join(left)}")
    world.outdated.clear()  # a pass has deleted it, or it will be noticed now
    for host in HYPERVISORS:
        _check_domains(world, host)
        _check_directories(world, world.node(host), world.model.on(host))
    away = [vm for vm in world.model.vms if vm.is_away]
    _check_directories(world, world.bed.frontend, away)
    _check_origins(world)
    _check_copies(world)
    _check_replica(world)
    _check_entries(world)


def check_caches(world: World) -> None:
    """No cache takes more than it may."""
    for host in HYPERVISORS:
        _check_cache(world, host, HOST_CACHE_MB)
    _check_cache(world, REPLICA, REPLICA_CACHE_MB)


def check_log(said: str, tampered: Iterable[str]) -> None:
    """What the log says of a wave in which nothing went wrong: no cache was of no use.

    But for a full one, and for images that were `tampered` with. And no image crossed a link twice,
    unless it left a cache and came again.
    """
    lines = said.splitlines()
    excused = re.compile("|".join(["MB needed", *map(re.escape, tampered)]))
    useless = re.compile(r"is not used:|goes past the cache")
    if trouble := [line for line in lines if useless.search(line) and not excused.search(line)]:
        raise Violation("\n".join(trouble))
    moved_out = " ".join(
        line
        for line in lines
        if re.search(r" evicted |left the cache", line) or useless.search(line)
    )
    counted = Counter((each.path, each.source, each.target) for each in transfers_in(said))
    for (path, source, target), count in counted.items():
        name = os.path.basename(path)
        if count > 1 and "past the cache" not in moved_out and name not in moved_out:
            raise Violation(f"{path} went {count} times from {source} to {target}")


def _check_domains(world: World, host: str) -> None:
    """What runs on a host are the VMs that oned has there."""
    found = set(world.kvm.virsh(host, "list", "--name").split())
    expected = {f"one-{vm.vm.id}" for vm in world.model.on(host) if vm.runs}
    if found != expected:
        raise Violation(f"on {host} are the domains {sorted(found)}, not {sorted(expected)}")


def _check_directories(world: World, node: Node, vms: list[VmModel]) -> None:
    """A machine has the disks of its own VMs, and what lies beside them, and nothing else."""
    expected = {world.directory(vm): vm for vm in vms}
    directories = {
        f"{system.base_path}/{name}"
        for system in world.system_datastores
        for name in _names(node.path(system.base_path))
        if not name.startswith(".")
    }
    if directories != set(expected):
        raise Violation(f"{node.name} has {sorted(directories)}, not {sorted(expected)}")
    for name, vm in expected.items():
        found = set(_names(node.path(name)))
        allowed = _OTHERS | {f"disk.{disk.number}" for disk in vm.disks}
        allowed |= {f".disk.{number}.record" for number in vm.returned}
        if vm.has_checkpoint:
            allowed.add("checkpoint")
        if vm.vm.context:
            allowed.add(f"disk.{vm.vm.context['DISK_ID']}")
        for disk in vm.disks:
            path = f"{world.path(vm, disk)}"
            files = [path, *(f"{path}.snap/{number}" for number in {*disk.snapshots, *disk.lost})]
            if SET_ASIDE in disk.lost:
                there = _names(node.path(f"{path}.snap"))
                files += [f"{path}.snap/{each}" for each in there if each.endswith(".unknown")]
            if disk.snapshots or disk.lost:
                allowed.add(f"disk.{disk.number}.snap")
            if f"disk.{disk.number}.base" in found and any(_lies_on(node, file) for file in files):
                allowed.add(f"disk.{disk.number}.base")
        hidden = {each for each in found if re.match(r"\.disk\.\d+\.\w+$", each)}
        own = {
            each
            for each in hidden
            # Locks stay as long as their directory.
            if each.rpartition(".")[0][1:] in allowed or each.endswith(".lock")
        }
        if stray := found - allowed - own:
            raise Violation(f"{node.name} has in {name}: {sorted(stray)}")


def _lies_on(node: Node, file: str) -> bool:
    """Whether there is such a file, of qcow2, and names a backing file in its header."""
    if not node.exists(file):
        return False
    with node.path(file).open("rb") as opened:
        head = opened.read(16)
    return head.startswith(b"QFI\xfb") and any(head[8:16])


def _check_origins(world: World) -> None:
    """The image datastores have the images that there are.

    And at most one of each time when oned did not hear of the one it had asked for.
    """
    frontend = world.bed.frontend
    found = {
        f"{datastore.base_path}/{name}".replace("//", "/")
        for datastore in world.image_datastores
        for name in _names(frontend.path(datastore.base_path))
        if not name.startswith(".")
    }
    images = world.model.images
    expected = {entry_of(image.image) for image in images}
    # Looked at with the image.
    found -= {f"{entry_of(each.image)}.snap" for each in images if each.snapshots or each.lost}
    if missing := expected - found:
        raise Violation(f"the image datastores do not have {sorted(missing)}")
    times = sorted(world.lost_images, key=lambda each: each[1])
    strays = {name: frontend.path(name).lstat().st_ctime for name in found - expected}
    for name in sorted(strays, key=strays.__getitem__):
        window = next((each for each in times if each[0] <= strays[name] <= each[1]), None)
        if window is None:
            raise Violation(f"the image datastores have {name}, which is nobody's")
        times.remove(window)


def _check_entries(world: World) -> None:
    """Caches have of images what their datastores have; what was tampered with, once verified."""
    _compare_entries(world, world.tampered)
    world.verify_caches()
    world.tampered.clear()
    _compare_entries(world, but=())


def _compare_entries(world: World, but: Collection[str]) -> None:
    for host in (*HYPERVISORS, REPLICA):
        for image in world.model.images:
            path = entry_of(image.image)
            entry = Entry(world.node(host).path(path))
            known = record.read(entry.sidecar) if os.path.basename(path) not in but else None
            is_entry = known and known.describes(entry.image)  # else nothing to start from
            if is_entry and entry.image.read_bytes() != world.bed.frontend.read(path):
                raise Violation(f"the cache of {host} has another image {image.image.id}")


def _check_cache(world: World, host: str, limit: int) -> None:
    """The images in a cache take no more than they may."""
    sizes = _entries_in(world, host)
    if sum(sizes.values()) > limit * MB + _RECORDS:
        raise Violation(f"the cache of {host} has more than {limit} MB: {_listed(sizes)}")


def _check_replica(world: World) -> None:
    """What may be evicted there has left room for the recovery copies, which count as cached."""
    node = world.node(REPLICA)
    entries, root = _entries_in(world, REPLICA), node.path(COPIES)
    files = [each.lstat() for each in root.rglob("*")]
    copies = sum({each.st_ino: each.st_blocks * 512 for each in files}.values())
    if sum(entries.values()) + copies <= REPLICA_CACHE_MB * MB + _RECORDS:
        return
    bases = {each.st_ino for each in files}
    useless = {
        path: size
        for path, size in entries.items()
        if size > _RECORDS and node.path(path).lstat().st_ino not in bases
    }
    if useless:
        said = f"{copies / MB:.1f} MB of copies beside {_listed(useless)}"
        raise Violation(f"the cache of {REPLICA} has more than {REPLICA_CACHE_MB} MB: {said}")


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / MB:.1f}" for name, size in sizes.items() if size)


def _entries_in(world: World, host: str) -> dict[str, int]:
    """What a cache has, and of which size.

    A file that lacks a record or can be written to is none of ours (``agent.cache.entry``).
    """
    sizes = {}
    for datastore in world.image_datastores:
        directory = world.node(host).path(datastore.base_path)
        names = _names(directory)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # who was killed cleans up still
                facts = (directory / name).lstat()
                is_entry = f".{name}.sidecar" in names and not facts.st_mode & 0o222
                if name.startswith(".") or is_entry:
                    sizes[f"{datastore.base_path}/{name}"] = facts.st_blocks * 512
    return sizes


def _check_copies(world: World) -> None:
    """The replica keeps one copy of each disk that asks and was copied, and nothing else."""
    root = world.node(REPLICA).path(COPIES)
    found = Counter(
        (vm, name.rpartition(".")[0])
        for vm in _names(root)
        for name in _names(root / vm)
        if not name.startswith(".")
    )
    expected = {
        (str(vm.vm.id), f"disk.{disk.number}")
        for vm in world.model.vms
        for disk in vm.disks
        if disk.copied is not None
    }
    if set(found) != expected or any(count > 1 for count in found.values()):
        raise Violation(f"recovery copies are {sorted(found)}, not {sorted(expected)}")
    asking = {str(vm.vm.id) for vm in world.model.vms if any(disk.asks for disk in vm.disks)}
    if useless := set(_names(root)) - asking:
        raise Violation(f"directories of VMs {sorted(useless)} are of no use among the copies")


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(directory))
    return []
