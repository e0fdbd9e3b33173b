"""The origin of an image: the machine that has the image datastore, and the file there.

That is the front-end, whose files are looked at right here, or the first of the datastore's bridge
hosts (BRIDGE_LIST) that answers.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from onestor_lib.agent import origin
from onestor_lib.agent.client import AgentClient
from onestor_lib.frontend.arguments import Location
from onestor_lib.frontend.services import bridges
from onestor_lib.frontend.services.hosts import Hosts


class Origin:
    """The image at ``location``, or at the same path on a bridge host; a context manager."""

    def __init__(self, hosts: Hosts, location: Location, bridge_hosts: list[str]) -> None:
        self.path = location.path
        self.host = location.host
        self._hosts, self._bridges = hosts, bridge_hosts
        self._stack = contextlib.ExitStack()
        self._bridge: AgentClient | None = None  # to look at files with
        self._agent: AgentClient | None = None  # to send them with

    def __enter__(self) -> Origin:
        if self._bridges:
            self._bridge = self._stack.enter_context(
                bridges.first_answering(self._hosts, self._bridges)
            )
            self.host = self._bridge.host
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def is_here(self) -> bool:
        return self._hosts.is_here(self.host)

    def describe(self, image_format: str, *, snapshots: bool) -> dict[str, Any]:
        """Version and sizes of the image, see :func:`onestor_lib.agent.origin.describe`."""
        if self.is_here:
            return origin.describe(Path(self.path), image_format, snapshots=snapshots)
        facts: dict[str, Any] = (self._bridge or self.agent()).call(
            "image.describe", path=self.path, image_format=image_format, snapshots=snapshots
        )
        return facts

    def missing(self, directory: str, names: list[str]) -> list[str]:
        """Which of the images ``names`` are not in ``directory`` any more."""
        if self.is_here:
            return origin.missing(Path(directory), names)
        answer = (self._bridge or self.agent()).call(
            "image.missing", directory=directory, names=names
        )
        return list(answer["names"])

    def agent(self) -> AgentClient:
        """The agent that can send the image; started when it is first needed.

        Only this one is lent our ssh-agent (known failure C12).
        """
        if self._agent is None:
            self._agent = self._stack.enter_context(self._hosts.agent(self.host, sends=True))
        return self._agent
