"""What must be true of the whole cloud when nothing is at work."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from tests.cluster import wait_until
from tests.drivers.conftest import transfers_in
from tests.soaking.model import MB, Violation
from tests.soaking.world import (
    COPIES,
    HOST_CACHE_MB,
    HYPERVISORS,
    REPLICA,
    REPLICA_CACHE_MB,
    World,
)
from tests.testbed import DATASTORES

_RECORDS = 256 << 10  # bytes: locks, and the records of parts, are no images
# What a VM's directory may hold beside its disks.
_OTHERS = {"vm.xml", "ds.xml", "deployment.0"}


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
    for host in HYPERVISORS:
        _check_directories(world, host)
    _check_copies(world)


def check_caches(world: World) -> None:
    """No cache takes more than it may."""
    for host in HYPERVISORS:
        _check_cache(world, host, HOST_CACHE_MB)
    _check_cache(world, REPLICA, REPLICA_CACHE_MB)


def check_log(said: str) -> None:
    """What the log says of a wave in which nothing went wrong: no cache was of no use.

    And no image crossed a link twice, unless one left a cache and came again.
    """
    trouble = [
        line
        for line in said.splitlines()
        if re.search(r"is not used:|goes past the cache", line) and "MB needed" not in line
    ]
    if trouble:
        raise Violation("\n".join(trouble))
    if re.search(r" evicted |left the cache|goes past", said):
        return
    counted = Counter((each.path, each.source, each.target) for each in transfers_in(said))
    for (path, source, target), count in counted.items():
        if count > 1:
            raise Violation(f"{path} went {count} times from {source} to {target}")


def _check_directories(world: World, host: str) -> None:
    """A host has the disks of its own VMs, and what lies beside them, and nothing else."""
    system = world.node(host).path(f"{DATASTORES}/{world.bed.system.id}")
    expected = {str(vm.vm.id): vm for vm in world.model.on(host)}
    for name in _names(system):
        if name.startswith("."):
            continue
        if name not in expected:
            raise Violation(f"{host} has a directory of VM {name}, which is not there")
        vm = expected[name]
        numbers = {str(disk.number) for disk in vm.disks}
        if vm.vm.context:
            numbers.add(str(vm.vm.context["DISK_ID"]))
        bases = set()
        for file in _names(system / name):
            disk = re.match(r"\.?disk\.(\d+)", file)
            if (disk and disk[1] in numbers) or file in _OTHERS or file.startswith("."):
                continue
            if file.endswith(".base"):
                bases.add(file)
                continue
            raise Violation(f"{host} has {name}/{file}, which belongs to no disk")
        if len(bases) > len(vm.disks):
            raise Violation(f"{host} has bases that no disk of {vm} needs: {sorted(bases)}")


def _check_cache(world: World, host: str, limit: int) -> None:
    """The images in a cache take no more than they may; a file without a record is none of ours."""
    directory = world.node(host).path(f"{DATASTORES}/{world.bed.images.id}")
    names = _names(directory)
    sizes = {
        name: (directory / name).lstat().st_blocks * 512
        for name in names
        if name.startswith(".") or f".{name}.sidecar" in names
    }
    if sum(sizes.values()) > limit * MB + _RECORDS:
        listed = ", ".join(f"{name} {size / MB:.1f}" for name, size in sizes.items() if size)
        raise Violation(f"the cache of {host} has more than {limit} MB: {listed}")


def _check_copies(world: World) -> None:
    """The replica keeps copies of VMs that are there and ask."""
    asking = {str(vm.vm.id) for vm in world.model.vms if any(disk.asks for disk in vm.disks)}
    if useless := set(_names(world.node(REPLICA).path(COPIES))) - asking:
        raise Violation(f"recovery copies of VMs {sorted(useless)} are of no use")


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(directory))
    return []
