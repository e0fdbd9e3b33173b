"""Operations that write, each in a directory of its own and by an agent: what faults are tried on.

All of an operation's files lie below one directory, so that a file system that has too little room
or fails can be put there.
"""

from __future__ import annotations

import abc
import os
import tempfile
from pathlib import Path
from typing import Any

from onestor_lib.agent import publish, recovery, vm_directory
from onestor_lib.agent.client import AgentClient
from tests.tool.conftest import Agents, draw, listing, qemu_img
from tests.tool.importing import Importing
from tests.tool.placing import BULK, RECEIVER, place_image, send
from tests.tool.test_disk_snapshots import SIZE, Disk
from tests.tool.test_image_snapshots import Image

HOW: dict[str, Any] = {"stall": 10.0, "bytes_per_second": 0, "check_space": False, "bulk": BULK}


class Writing(abc.ABC):
    """One operation, with those it brings about: what is there before the constructor makes."""

    operations: tuple[str, ...]

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        """``agents`` starts further ones, ``receiver`` is the command line of one."""
        self.root, self.agents, self.receiver = root, agents, receiver

    @abc.abstractmethod
    def run(self, agent: AgentClient) -> None:
        """Do it; it can be repeated."""

    @abc.abstractmethod
    def finals(self) -> dict[Path, bytes]:
        """What must be under its final name once it is done, as a guest sees it."""

    def before(self) -> dict[Path, bytes]:
        """What of this is there already, and stays until it is replaced as a whole."""
        return {}

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def is_best(self) -> bool:
        """Whether it was done without giving up anything for want of room."""
        return True

    def assert_done(self) -> None:
        for path, content in self.finals().items():
            assert self.read(path) == content, f"{path} is not what it should be"
        assert self.unfinished() == []

    def assert_whole(self) -> None:
        """After a failure: each name has its old content, its new one, or nothing as before."""
        old = self.before()
        for path, content in self.finals().items():
            if path in old or path.exists():
                found = self.read(path)
                assert found in (content, old.get(path, content)), f"{path} is incomplete"
        assert self.unfinished() == []

    def unfinished(self) -> list[str]:
        """Temporaries, and files of interrupted fills."""
        return [
            name
            for name in listing(self.root)
            if publish.is_temporary(os.path.basename(name)) or name.endswith((".part", ".fill"))
        ]


def guest_content(path: Path, image_format: str) -> bytes:
    """What a guest sees of a file, read by qemu-img."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        qemu_img("convert", "-U", "-f", image_format, "-O", "raw", path, copy)
        return copy.read_bytes()


def no_question(question: dict[str, Any]) -> dict[str, Any]:
    return {}


class Copied(Writing):
    """A clone of a raw image by way of the host's cache."""

    operations: tuple[str, ...] = ("disk.place", "transfer.receive")

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.placing = place_image(root).cached()
        self.placing.options["check_space"] = False
        self.placing.other_host, self.placing.receiver = True, receiver
        self.content = self.placing.image.read_bytes()

    def run(self, agent: AgentClient) -> None:
        self.placing.run(agent)

    def finals(self) -> dict[Path, bytes]:
        return {self.placing.disk: self.content}

    def is_best(self) -> bool:
        return self.placing.entry.exists()

    def assert_whole(self) -> None:
        super().assert_whole()
        entry = self.placing.entry
        assert not entry.exists() or entry.read_bytes() == self.placing.image.read_bytes()


class Overlaid(Copied):
    """A clone of a qcow2 image: an overlay on the base in the cache."""

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.placing.thin()
        self.content = self.read(self.placing.image)

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")


class Persistent(Writing):
    """A persistent image with snapshots becomes a disk."""

    operations = ("disk.place",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.placing = place_image(root).with_snapshots()
        self.placing.options["check_space"] = False
        self.placing.other_host, self.placing.receiver = True, receiver

    def run(self, agent: AgentClient) -> None:
        self.placing.run(agent)

    def finals(self) -> dict[Path, bytes]:
        image, disk = self.placing.image, self.placing.disk
        copies = {
            disk.with_name("disk.0.snap") / file.name: file.read_bytes()
            for file in Path(f"{image}.snap").iterdir()
        }
        return {disk: image.read_bytes(), **copies}


class Imported(Writing):
    """A file becomes an image, converted on the way."""

    operations = ("image.create", "intake.pour")

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.importing = Importing(root)
        draw(self.importing.file, "A0-B")
        self.importing.options |= {"check_space": False, "wanted_format": "qcow2"}
        self.importing.needs_space = "no"

    def run(self, agent: AgentClient) -> None:
        with self.agents.start() as sender:
            self.importing.run_in(agent, sender)

    def finals(self) -> dict[Path, bytes]:
        return {self.importing.image: self.importing.file.read_bytes()}

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")


class Snapshot(Writing):
    """A snapshot of a thin disk."""

    operations = ("disk.snapshot",)
    layout = "thin"

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = Disk(root, self.layout)
        self.how = {
            "path": str(self.disk.path), "image_format": self.disk.format, "snapshot": 9,
            "check_space": False, "timeout": 60, "lock_timeout": 10, "bulk": BULK,
        }  # fmt: skip
        self.content = self.read(self.disk.path)

    def run(self, agent: AgentClient) -> None:
        agent.call("disk.snapshot", on_ask=no_question, **self.how)

    def read(self, path: Path) -> bytes:
        return guest_content(path, self.disk.format)

    def before(self) -> dict[Path, bytes]:
        return {self.disk.path: self.content}

    def finals(self) -> dict[Path, bytes]:
        return {self.disk.path: self.content, self.disk.snapshot(9): self.content}


class SnapshotOfRaw(Snapshot):
    layout = "raw"


class Reverted(Snapshot):
    """A thin disk as it was."""

    operations = ("disk.revert",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk.create(9)
        self.old = self.content
        self.disk.write(7, 3)
        self.changed = self.read(self.disk.path)
        self.how |= {"grow_to": 0, "sparse": True}

    def run(self, agent: AgentClient) -> None:
        agent.call("disk.revert", on_ask=no_question, **self.how)

    def before(self) -> dict[Path, bytes]:
        return {self.disk.path: self.changed, self.disk.snapshot(9): self.old}

    def finals(self) -> dict[Path, bytes]:
        return {self.disk.path: self.old, self.disk.snapshot(9): self.old}


class RevertedRaw(Reverted):
    layout = "raw"


class Saved(Writing):
    """A disk with a snapshot replaces its image: the datastore's part of mvds."""

    operations = ("image.replace",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.image = draw(root / "datastore/0a1b", "OLD")
        self.old = self.image.read_bytes()
        disk, snapshot = draw(root / "vm/disk.0", "A-B0"), draw(root / "vm/snapshot", "-S")
        self.items = {"image": disk, "9": snapshot}

    def run(self, agent: AgentClient) -> None:
        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if question["ask"] != "content":
                return {}
            source = self.items[question["item"]]
            temporary = Path(question["temporary"])
            return send(source, temporary, self.receiver, manifest=question["manifest"])

        sizes = {name: file.stat().st_size for name, file in self.items.items()}
        agent.call(
            "image.replace", on_ask=answer, path=str(self.image), base=str(self.image.parent),
            size=sizes.pop("image"), allocated=0, snapshots=sizes, sparse=True, check_space=False,
            returned_from={"vm": 7}, bulk=BULK,
        )  # fmt: skip

    def before(self) -> dict[Path, bytes]:
        return {self.image: self.old}

    def finals(self) -> dict[Path, bytes]:
        image, snapshot = (file.read_bytes() for file in self.items.values())
        return {self.image: image, Path(f"{self.image}.snap/9"): snapshot}


class Flattened(Writing):
    """A thin disk as one file in a temporary: the host's part of cpds."""

    operations = ("disk.save",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = Disk(root, "thin")
        self.content = self.disk.content()

    def run(self, agent: AgentClient) -> None:
        ready = agent.call(
            "disk.save", path=str(self.disk.path), image_format="qcow2", snapshot=None,
            with_snapshots=False, live=None, check_space=False, timeout=60, lock_timeout=10,
            bulk=BULK,
        )  # fmt: skip
        assert self.read(Path(ready["image"]["path"])) == self.content

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")

    def before(self) -> dict[Path, bytes]:
        return self.finals()

    def finals(self) -> dict[Path, bytes]:
        return {self.disk.path: self.content}


class Moved(Writing):
    """A VM's directory comes from another machine."""

    operations = ("directory.move", "directory.receive")
    NAMES = ("disk.0", "disk.0.snap/9", "checkpoint")

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.source, self.target = root / "102/7", root / "103/7"
        self.content = {
            name: draw(self.source / name, pattern).read_bytes()
            for name, pattern in zip(self.NAMES, ("A-B", "C-", "D"))
        }

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "directory.move", path=str(self.source), target=str(self.target), disks=["disk.0"],
            peer={"host": "host1", "argv": RECEIVER}, **HOW,
        )  # fmt: skip

    def finals(self) -> dict[Path, bytes]:
        return {self.target / name: content for name, content in self.content.items()}

    def assert_whole(self) -> None:
        super().assert_whole()
        places = [place for place in (self.source, self.target) if place.exists()]
        found = [{name: (place / name).read_bytes() for name in self.NAMES} for place in places]
        assert found and all(content == self.content for content in found)


class Fetched(Writing):
    """A recovery copy, which replaces an older one."""

    operations = ("recovery.fetch",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.kept, self.point = root / "replica_snaps", 1
        # What the host has for us bears the name of a temporary.
        self.outgoing = root / "host" / publish.temporary_name("disk.0")
        self.contents = [draw(self.outgoing, pattern).read_bytes() for pattern in ("AB-", "AC-D")]
        draw(self.outgoing, "AB-")
        with agents.start() as agent:
            self._fetch(agent, 1)
        draw(self.outgoing, "AC-D")

    def run(self, agent: AgentClient) -> None:
        self.point += 1  # each copy shows a moment of its own
        self._fetch(agent, self.point)

    def _fetch(self, agent: AgentClient, point: int) -> None:
        made = {
            "path": str(self.outgoing), "size": self.outgoing.stat().st_size, "allocated": 0,
            "version": None, "base": None,
        }  # fmt: skip
        agent.call(
            "recovery.fetch", on_ask=no_question, root=str(self.kept), vm=7, disk="disk.0",
            made=made, point=point, record={"image": "4"}, argv=RECEIVER, host="host1",
            lock_timeout=10, **HOW,
        )  # fmt: skip

    def finals(self) -> dict[Path, bytes]:
        return {self.copy(self.point): self.contents[1]}

    def unfinished(self) -> list[str]:
        return [name for name in super().unfinished() if not name.startswith("host/")]

    def copy(self, point: int) -> Path:
        return recovery.new(self.kept / "7", "disk.0", point).file

    def assert_whole(self) -> None:
        super().assert_whole()
        newest = recovery.newest(self.kept / "7", "disk.0")
        assert newest and newest.file.read_bytes() == self.contents[newest.point > 1]


class ImageReverted(Writing):
    """An image as one of its snapshots."""

    operations = ("snapshot.revert",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.image = draw(root / "datastore/0a1b", "OLD")
        self.snapshot = draw(root / "datastore/0a1b.snap/9", "-S-A")
        self.old, self.new = self.image.read_bytes(), self.snapshot.read_bytes()

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "snapshot.revert", path=str(self.image), base=str(self.image.parent), snapshot=9,
            image_format="raw", timeout=60.0,
        )  # fmt: skip

    def before(self) -> dict[Path, bytes]:
        return {self.image: self.old, self.snapshot: self.new}

    def finals(self) -> dict[Path, bytes]:
        return {self.image: self.new, self.snapshot: self.new}


class ImageFlattened(Writing):
    """An image with a chain of snapshots as one of them."""

    operations = ("snapshot.flatten",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.image = Image(root, "qcow2").with_chain()
        self.old = self.read(self.image.file)
        self.new = self.read(self.image.directory / "10")

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "snapshot.flatten", path=str(self.image.file), base=str(self.image.datastore),
            snapshot=10, image_format="qcow2", timeout=60.0,
        )  # fmt: skip

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")

    def before(self) -> dict[Path, bytes]:
        return {self.image.file: self.old}

    def finals(self) -> dict[Path, bytes]:
        return {self.image.file: self.new}


class MadeImage(Writing):
    """An empty image."""

    operations = ("image.make",)

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "image.make", on_ask=no_question, base=str(self.root / "datastore"), name="0a1b",
            size=2, image_format="qcow2", filesystem="", options=[], sparse=True,
            check_space=False, timeout=60.0, require_mount=False,
        )  # fmt: skip

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")

    def finals(self) -> dict[Path, bytes]:
        return {self.root / "datastore/0a1b": bytes(2 << 20)}


RECORD = {"action": "mkimage", "vm": 7, "sequence": "0"}


class MadeDisk(Writing):
    """An empty disk."""

    operations = ("disk.make",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = root / "datastores/102/7/disk.1"
        self.disk.parents[1].mkdir(parents=True)

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "disk.make", on_ask=no_question, path=str(self.disk), size=2 << 20,
            image_format="qcow2", filesystem="", options=[], qcow2_options=[], sparse=True,
            check_space=False, timeout=60.0, record=RECORD, retry=False, lock_timeout=10,
        )  # fmt: skip

    def read(self, path: Path) -> bytes:
        return guest_content(path, "qcow2")

    def finals(self) -> dict[Path, bytes]:
        return {self.disk: bytes(2 << 20)}


class Received(Writing):
    """What the front-end has made becomes a disk: a context."""

    operations = ("disk.receive", "transfer.receive")

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = root / "datastores/102/7/disk.1"
        self.disk.parents[1].mkdir(parents=True)
        self.source = draw(root / "context", "CD")

    def run(self, agent: AgentClient) -> None:
        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if question["ask"] != "content":
                return {}
            return send(self.source, Path(question["temporary"]), self.receiver)

        agent.call(
            "disk.receive", on_ask=answer, path=str(self.disk), record=RECORD, lock_timeout=10,
            size=self.source.stat().st_size,
        )  # fmt: skip

    def finals(self) -> dict[Path, bytes]:
        return {self.disk: self.source.read_bytes()}


class MadeComplete(Flattened):
    """A thin disk becomes one file."""

    operations = ("disk.flatten",)

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "disk.flatten", on_ask=no_question, path=str(self.disk.path), image_format="qcow2",
            check_space=False, timeout=60, lock_timeout=10, bulk=BULK,
        )  # fmt: skip


class MadeThin(Overlaid):
    """A complete disk lies on its image in the cache again, which has it."""

    operations = ("disk.thin",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = str(self.placing.disk)
        self.how = {"check_space": False, "timeout": 60, "lock_timeout": 10, "bulk": BULK}
        with agents.start() as agent:
            self.placing.run(agent)
            agent.call(
                "disk.flatten", on_ask=no_question, path=self.disk, image_format="qcow2", **self.how
            )

    def run(self, agent: AgentClient) -> None:
        image = self.placing.arguments()["image"]
        agent.call(
            "disk.thin", on_ask=self.placing.answer, path=self.disk, image=image,
            qcow2_options=[], **self.how,
        )  # fmt: skip

    def before(self) -> dict[Path, bytes]:
        return self.finals()


class Resized(Writing):
    """A disk of which also the new part has its blocks."""

    operations = ("disk.resize",)

    def __init__(self, root: Path, agents: Agents, receiver: list[str]) -> None:
        super().__init__(root, agents, receiver)
        self.disk = Disk(root, "raw").path
        self.old = self.disk.read_bytes()
        self.size = SIZE + (1 << 20)

    def run(self, agent: AgentClient) -> None:
        agent.call(
            "disk.resize", path=str(self.disk), image_format="raw", size=self.size, sparse=False,
            check_space=False, lock_timeout=10,
        )  # fmt: skip

    def before(self) -> dict[Path, bytes]:
        return {self.disk: self.old}

    def finals(self) -> dict[Path, bytes]:
        return {self.disk: self.old.ljust(self.size, b"\0")}


class Marked(Writing):
    """A system datastore that says whose it is."""

    operations = ("datastore.mark",)

    def run(self, agent: AgentClient) -> None:
        agent.call("datastore.mark", markers={str(self.root / "102"): vm_directory.DRIVER})

    def finals(self) -> dict[Path, bytes]:
        return {self.root / "102" / vm_directory.MARKER: b"onestor\n"}


WRITINGS: list[type[Writing]] = [
    Copied, Overlaid, Persistent, Imported, Snapshot, SnapshotOfRaw, Reverted, RevertedRaw, Saved,
    Flattened, Moved, Fetched, ImageReverted, ImageFlattened, MadeImage, MadeDisk, Received,
    MadeComplete, MadeThin, Resized, Marked,
]  # fmt: skip

_READS = "writes nothing"
_REMOVES = "removes and makes nothing; test_C1_making_room_needs_none has two of them"
_FILLS = "fills the cache, as a clone does"
_LIVE = "works on a domain, or on what another operation has made of one"
# Operations that are not tried, each with the reason.
NOT_HERE = {
    **dict.fromkeys(
        [
            "host.clock", "host.reach", "disk.describe", "directory.layouts", "directory.examine",
            "image.describe", "image.measure", "image.missing", "image.identify",
            "image.returned", "cache.entries", "cache.read", "cache.follow", "recovery.look",
            "recovery.read", "recovery.copies", "recovery.describe", "usage.capacity",
            "usage.promised", "usage.disks", "source.describe", "source.peek", "source.read",
        ],
        _READS,
    ),
    **dict.fromkeys(
        [
            "disk.delete", "disk.forget", "disk.returned", "directory.delete", "directory.retire",
            "directory.abandon", "image.remove", "cache.drop", "cache.trim", "cache.verify",
            "snapshot.delete", "recovery.forget", "recovery.tidy",
        ],
        _REMOVES,
    ),
    **dict.fromkeys(["cache.have", "cache.hold"], _FILLS),
    **dict.fromkeys(
        ["disk.snapshot_live", "recovery.copy", "recovery.renew", "directory.prepare"], _LIVE
    ),
    "directory.tidy": "removes bases, and writes a record of which there is an older one",
    "host.examine": "tries whether a file can be made, and tells when it cannot",
    "intake.receive": "the far end of intake.pour: writes in the same way on another host",
    "program.run": "runs what it is told",
    "recovery.hold": "makes hard links, which go with the connection",
    "recovery.note": "passes over failures: the next pass writes it anew",
    "transfer.copy": "into a temporary of disk.place, whose failures are those of transfer.receive",
    "transfer.pull": "into a temporary of disk.place, whose failures are those of transfer.receive",
    "transfer.send": "writes on the other machine alone, where it is transfer.receive",
}  # fmt: skip
