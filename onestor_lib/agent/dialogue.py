"""What an operation may say to whoever asked for it: the front-end, or an agent in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Dialogue(Protocol):
    """The asking side of an operation; ``onestor_lib.agent.server.Call`` is one."""

    def ask(
        self, question: str, *, meanwhile: Callable[[], None] = ..., **facts: Any
    ) -> dict[str, Any]:
        """Let the other side do its part; its refusal is raised. See ``server.Call``."""

    def progress(self, done: int, total: int) -> None:
        """How many bytes of a long step are done; of 0 when only that it goes on."""

    def log(self, severity: str, text: str) -> None:
        """One line for the log of the VM or image."""
