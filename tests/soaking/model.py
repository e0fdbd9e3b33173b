"""What every disk and image must hold: the bytes, kept beside the cloud and changed as it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.oned import objects
from tests.oned.objects import Disk, Image, Vm

MB = 1 << 20


class Violation(AssertionError):
    """The cloud is not as the model says."""


SET_ASIDE = -1  # among lost snapshots: a file that has no number any more


@dataclass
class ImageModel:
    """An image; `born` is the number of the step that made it.

    What is persistent has the `snapshots` that came back with its disk, and files of those that
    were `lost` to oned.
    """

    born: int
    image: Image
    content: bytes
    snapshots: dict[int, bytes] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    @property
    def key(self) -> tuple[str, int]:
        return "image", self.born

    @property
    def in_use(self) -> bool:
        return bool(self.image.vms)


@dataclass
class DiskModel:
    """A disk of a VM: what it holds `now`, its `snapshots` by id, and what its copy may show."""

    disk: Disk
    image: ImageModel | None
    now: bytes
    snapshots: dict[int, bytes] = field(default_factory=dict)
    # Snapshots whose action died when they had their name: oned does not know of them, and begins
    # to count anew. What lies under a number that is used again is kept beside it: SET_ASIDE.
    lost: set[int] = field(default_factory=set)
    copied: bytes | None = None  # what its youngest recovery copy holds
    earlier: list[bytes] = field(default_factory=list)  # contents since the last look at copies

    @property
    def number(self) -> int:
        return self.disk.id

    @property
    def format(self) -> str:
        return self.disk.attributes["FORMAT"]

    @property
    def is_persistent(self) -> bool:
        return self.image is not None and self.image.image.persistent

    @property
    def asks(self) -> bool:
        """Whether it shall have recovery copies."""
        return "RECOVERY_SNAPSHOT_FREQ" in self.disk.attributes

    @classmethod
    def of(cls, disk: Disk, image: ImageModel, size: int) -> DiskModel:
        """A new disk of an image, `size` bytes large; snapshots come with what is persistent."""
        new = cls(disk, image, padded(image.content, size))
        if new.is_persistent:
            new.snapshots, new.lost = dict(image.snapshots), set(image.lost)
        return new

    def become(self, content: bytes) -> None:
        """Hold something else from now on."""
        self.earlier.append(self.now)
        self.now = content

    def write(self, offset: int, data: bytes) -> None:
        self.become(self.now[:offset] + data + self.now[offset + len(data) :])

    def grow(self, size: int) -> None:
        """Be `size` bytes large; what is new is zeros."""
        self.become(padded(self.now, size))

    def start_over(self) -> None:
        """Be as after a recreate: as the youngest copy, or as the image."""
        size = len(self.now)
        fresh = self.image.content if self.image else b""
        self.become(padded(self.copied if self.copied is not None else fresh, size))
        self.snapshots.clear()
        self.lost.clear()
        if self.image and self.is_persistent:  # its snapshots come with it, and are in no list
            self.lost = {*self.image.snapshots, *self.image.lost}

    def may_be_copied_as(self) -> list[bytes]:
        """What a copy may show that was made since copies were looked at."""
        return [self.now, *self.earlier]


@dataclass
class VmModel:
    """A VM; `born` is the number of the step that made it.

    Of its disks that were detached and are images again, by their numbers, notes stay that say so.
    """

    born: int
    vm: Vm
    disks: list[DiskModel]
    returned: set[int] = field(default_factory=set)

    @property
    def key(self) -> tuple[str, int]:
        return "vm", self.born

    @property
    def host(self) -> str:
        """Where it is, or was last; "" before its first placement."""
        return self.vm.history[-1].hostname if self.vm.history else ""

    @property
    def runs(self) -> bool:
        return self.vm.state == objects.ACTIVE

    @property
    def is_off(self) -> bool:
        return self.vm.state == objects.POWEROFF

    @property
    def is_suspended(self) -> bool:
        return self.vm.state == objects.SUSPENDED

    @property
    def is_away(self) -> bool:
        """Stopped or undeployed: what it has is on the front-end."""
        return self.vm.state in (objects.STOPPED, objects.UNDEPLOYED)

    @property
    def has_checkpoint(self) -> bool:
        """Whether its memory lies beside its disks."""
        return self.vm.state in (objects.SUSPENDED, objects.STOPPED)

    @property
    def has_snapshots(self) -> bool:
        return any(disk.snapshots for disk in self.disks)

    def __str__(self) -> str:
        return f"VM {self.vm.id}"


@dataclass
class Model:
    """Everything there is, in the order in which it was made."""

    images: list[ImageModel] = field(default_factory=list)
    vms: list[VmModel] = field(default_factory=list)

    def settle(self) -> None:
        """Order by birth what steps at work at the same time have added."""
        self.images.sort(key=lambda each: each.born)
        self.vms.sort(key=lambda each: each.born)

    def on(self, host: str) -> list[VmModel]:
        """The VMs that have their disks on a host."""
        return [vm for vm in self.vms if vm.host == host and not vm.is_away]


def unlisted(owner: ImageModel | DiskModel) -> set[int]:
    """The numbers of files of snapshots that may be there, though nobody knows of them."""
    return owner.lost - set(owner.snapshots)


def padded(content: bytes, size: int) -> bytes:
    """`content` with zeros up to `size` bytes."""
    return content + bytes(size - len(content))


def difference(found: bytes, expected: bytes) -> str:
    """Where two contents differ, in words."""
    if len(found) != len(expected):
        return f"{len(found)} bytes instead of {len(expected)}"
    block = 512
    wrong = [
        offset
        for offset in range(0, len(found), block)
        if found[offset : offset + block] != expected[offset : offset + block]
    ]
    zeros = sum(not any(found[offset : offset + block]) for offset in wrong)
    return f"{len(wrong)} sectors, the first at {wrong[0]}, the last at {wrong[-1]}, {zeros} zeros"
