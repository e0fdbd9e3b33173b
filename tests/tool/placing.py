"""One disk of a VM put in place, and the transfers that brings about, without a front-end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import crashpoints, errors, new_disk, origin, transfer
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.agent.operations import disk as operations
from onestor_lib.agent.operations import transfer as transfers
from onestor_lib.agent.server import Call, Server
from onestor_lib.agent.version import Version
from onestor_lib.frontend import openssh
from tests.tool.conftest import Agents, draw, listing, qcow2

SNAPSHOTS = ("0", "9", "10", "123")
RECEIVER = openssh.local_agent_argv()
# The tests' own process must not slow itself down.
BULK: dict[str, Any] = {"nice": 0, "ionice": "none"}


class LocalCall(Call):
    """A call without a connection: questions go to `on_ask`."""

    def __init__(self, on_ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(Server())
        self.on_ask = on_ask
        self.logged: list[tuple[str, str]] = []

    def progress(self, done: int, total: int) -> None:
        """Nobody waits for us."""

    def ask(
        self, question: str, *, meanwhile: Callable[[], None] = lambda: None, **facts: Any
    ) -> dict[str, Any]:
        return self.on_ask({"ask": question, **facts})

    def log(self, severity: str, text: str) -> None:
        self.logged.append((severity, text))


def send(
    source: Path,
    target: Path,
    argv: Sequence[str] = RECEIVER,
    *,
    version: Version | None = None,
    known: Manifest | None = None,
    reuse: bool = False,
    manifest: str = "",
    stall: float = 10.0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Send a file to another agent of this machine, as `transfer.send` answers it."""
    result, _ = transfer.send(
        source, argv, host="host1", size=source.stat().st_size, version=version, known=known,
        stall=stall, on_progress=on_progress, bytes_per_second=0, temporary=str(target),
        manifest=manifest, reuse=reuse, bulk=BULK,
    )  # fmt: skip
    return result


class Placing:
    """One VM disk to be made from one image, as the front-end does it.

    Past the cache, unless `cached` was called.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.datastore = root / "datastores" / "100"
        self.disk = self.datastore / "7" / "disk.0"
        self.image = root / "images" / "0a1b"
        self.options: dict[str, Any] = {
            "image_format": "raw", "thin": False, "qcow2_options": [], "grow_to": 0,
            "sparse": True, "convert_timeout": 60.0, "bulk": BULK,
            "image": None, "check_space": True, "retry": False, "lock_timeout": 5.0,
            "record": {"action": "clone", "vm": 7, "image": "4", "sequence": "0"},
        }  # fmt: skip
        self.questions: list[str] = []
        self.then: Callable[[str], None] = lambda item: None
        self.other_host = False
        self.receiver: Sequence[str] = RECEIVER
        self.sent = 0
        self.call = LocalCall(self.answer)
        self._wanted: dict[str, Any] | None = None

    def with_snapshots(self) -> Placing:
        self.options["record"]["action"] = "ln"
        for number, snapshot in enumerate(SNAPSHOTS):
            draw(Path(f"{self.image}.snap", snapshot), "-" * number + "S")
        return self

    def cached(self, **wanted: Any) -> Placing:
        """By way of the host's cache; `wanted` changes what is asked of it."""
        self._wanted = wanted
        return self

    def thin(self) -> Placing:
        """Of a qcow2 image, whose disks are overlays; by way of the cache."""
        self.image.unlink()
        qcow2(self.image, "A0-B")
        self.options |= {"image_format": "qcow2", "thin": True}
        return self.cached()

    @property
    def entry(self) -> Path:
        """The path of the image in the host's cache."""
        return self.root / "datastores" / "1" / self.image.name

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if question["ask"] == "gone":
            self.questions.append("gone")
            return {"names": origin.missing(self.image.parent, question["names"])}
        item = str(question.get("item", "wanted"))
        self.questions.append(item)
        self.then(item)
        if item == "wanted":
            return {}
        is_image = item in ("disk", "image")
        source = self.image if is_image else Path(f"{self.image}.snap", item)
        found = self._bring(source, question)
        self.sent += found["sent"]
        return {"digest": found["digest"], "source": "fe", "written": found["written"]}

    def _bring(self, source: Path, question: dict[str, Any]) -> dict[str, Any]:
        if self.other_host:
            where = Path(question["temporary"])
            how = {"reuse": question["reuse"], "manifest": question["manifest"]}
            return send(source, where, self.receiver, **how)
        try:
            return transfers.copy_here(
                LocalCall(self.answer), path=str(source), version=None, stall=5.0,
                bulk=BULK, temporary=question["temporary"], manifest=question["manifest"],
            )  # fmt: skip
        except OSError as error:
            raise errors.from_os_error("transfer.copy", error) from error

    def arguments(self) -> dict[str, Any]:
        snapshots = self.options["record"]["action"] == "ln"
        facts = origin.describe(self.image, self.options["image_format"], snapshots=snapshots)
        fields = set(new_disk.Shape._fields)
        shape = {name: value for name, value in self.options.items() if name in fields}
        others = {name: value for name, value in self.options.items() if name not in fields}
        if self._wanted is not None:
            others["image"] = wanted(self.entry, facts) | self._wanted
        return {"path": str(self.disk), "source": facts, "shape": shape, **others}

    def run(self, agent: AgentClient) -> Any:
        return agent.call("disk.place", on_ask=self.answer, **self.arguments())

    def run_here(self) -> Any:
        return operations.place(self.call, **self.arguments())

    @property
    def warnings(self) -> list[str]:
        """What was said about trouble by operations run in this process."""
        return [text for severity, text in self.call.logged if severity == "WARN"]

    @property
    def names(self) -> list[str]:
        return listing(self.root / "datastores")

    def clean_directory(self) -> None:
        """The VM is gone; the cache is as it was."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.disk.parent)


def limits(**changed: Any) -> dict[str, Any]:
    """Limits of a cache that nothing here reaches, but for what is `changed`."""
    return {
        "max_bytes": None, "max_used_percent": 100, "min_age": 0.0, "orphan_age": 86400.0,
        "counted": "", **changed,
    }  # fmt: skip


def wanted(entry: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a cache, see `fill.Wanted`; `facts` describe the image."""
    return {
        "path": str(entry), "version": facts["version"], "needed": facts["allocated"],
        "headroom": 0, "is_replica": False, "limits": limits(), "lock_timeout": 5.0,
        "purpose": f"clone of {entry.name}", "bulk": BULK,
    }  # fmt: skip


def place_image(root: Path) -> Placing:
    """A raw image with data, zeros and a hole, ready to be placed."""
    draw(root / "images" / "0a1b", "A0-B", b"tail")
    os.makedirs(root / "datastores")
    return Placing(root)


def points(action: str, *groups: str) -> list[str]:
    """The crash points of these groups that an action passes."""
    return sorted(name for name in crashpoints.names(action) if name.partition(".")[0] in groups)


def run_and_die(agents: Agents, point: str, work: Callable[[AgentClient], Any]) -> None:
    died = pytest.raises(HostUnreachable, match="killed by SIGKILL")
    with agents.start(crash_at=point) as agent, died:
        work(agent)
