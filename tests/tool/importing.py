"""One image on its way into a datastore, as the front-end asks two agents for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from onestor_lib.agent.operations import datastore, intake
from tests.tool.placing import LocalCall

NAME = "0a1b2c"
COMPLETE = [f".{NAME}.manifest", NAME]
BULK = {"nice": 0, "ionice": "none"}


class Importing:
    """One source to be taken into an image datastore: by default ``file``."""

    def __init__(self, root: Path) -> None:
        self.incoming, self.datastore = root / "incoming", root / "datastore"
        for directory in (self.incoming, self.datastore):
            directory.mkdir()
        self.file = self.incoming / "file"
        self.image = self.datastore / NAME
        self.rules = {"restricted": ["/"], "safe": [str(self.incoming)]}
        self.source: dict[str, Any] = {}
        self.asked: dict[str, Any] = {
            "digests": {}, "decompress": True, "inspect": True, "step": "copy image", "stall": 10.0,
        }  # fmt: skip
        self.options: dict[str, Any] = {
            "inspect": True, "check_space": True, "wanted_format": "", "foreign_to": "qcow2",
            "known_format": "",
            "sparse": True, "convert_timeout": 60.0, "staging": "", "require_mount": False,
        }  # fmt: skip
        self.needs_space = "holes"
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda question: {}

    @property
    def description(self) -> dict[str, Any]:
        """The source as the front-end describes it."""
        path = str(self.file)
        file = {"kind": "file", "path": path, "name": path, "rules": self.rules, "block": 1 << 20}
        return self.source or file

    def create(self) -> dict[str, Any]:
        """The arguments of ``image.create``."""
        return {
            "base": str(self.datastore), "name": NAME, "bulk": BULK, "step": "copy image",
            "source": self.description["name"],
            "decompress": self.asked["decompress"], **self.options,
        }  # fmt: skip

    def pour(self, question: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``intake.pour``."""
        return {
            "source": self.description, "asked": self.asked, "argv": [], "host": "",
            "needs_space": self.needs_space, "bulk": BULK,
            "temporary": question["temporary"], "manifest": question["manifest"],
        }  # fmt: skip

    def run(self) -> str:
        """Import it with the operations called right here; the format it has then."""

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if question["ask"] != "content":
                return self.answer(question)
            return intake.pour(LocalCall(self.answer), **self.pour(question))

        return str(datastore.create(LocalCall(answer), **self.create())["format"])

    def run_in(self, agent: Any, sender: Any) -> Any:
        """Import it by two agents."""

        def answer(question: dict[str, Any]) -> Any:
            if question["ask"] != "content":
                return self.answer(question)
            return sender.call("intake.pour", **self.pour(question))

        return agent.call("image.create", on_ask=answer, **self.create())

    def measure(self, *, told: int = 0, timeout: float = 10.0) -> int:
        """The size in bytes that stat tells."""
        return datastore.measure(
            LocalCall(self.answer), source=self.description, inspect=self.options["inspect"],
            decompress=self.asked["decompress"], told=told, timeout=timeout,
        )["size"]  # fmt: skip
