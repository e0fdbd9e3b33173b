"""The image datastore of a message: which machine has it, and making new images there."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Any

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import Missing, OnedUnavailable, OnestorError, Superseded
from onestor_lib.agent.image_format import NAMES
from onestor_lib.frontend import arguments, oned
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.message import Message
from onestor_lib.frontend.services import bridges
from onestor_lib.frontend.services.hosts import Hosts


class Datastore:
    """Where the images of the message's datastore lie: here, or on its bridge hosts."""

    def __init__(self, message: Message, settings: Settings, hosts: Hosts) -> None:
        self.given = message.base_path  # as oned writes it, with two slashes
        self.base = arguments.checked_path(self.given)
        self.settings = settings
        self.bridge = ""  # the bridge host in use; "" for this machine
        self._message, self._hosts = message, hosts
        self._bridges = bridges.parse(message.text("DATASTORE/TEMPLATE/BRIDGE_LIST"))

    @property
    def image_id(self) -> int:
        return arguments.number(self._message.required("IMAGE/ID"), "IMAGE/ID")

    @contextlib.contextmanager
    def agent(self) -> Iterator[AgentClient]:
        """An agent on the machine that has the datastore."""
        if not self._bridges:
            with self._hosts.local_agent() as agent:
                yield agent
            return
        with bridges.first_answering(self._hosts, self._bridges) as agent:
            self.bridge = "" if self._hosts.is_here(agent.host) else agent.host
            yield agent

    @property
    def is_on_bridges(self) -> bool:
        """Whether it is reached through bridge hosts only."""
        return bool(self._bridges)


def new_name(image_id: int) -> str:
    """A name for a new image: whole names of "-", a to f and digits are what probes count."""
    unique = f"{time.time_ns()}:{image_id}".encode("ascii")
    return hashlib.md5(unique, usedforsecurity=False).hexdigest()


def require_wanted(hosts: Hosts, image_id: int) -> None:
    """Raise :class:`Superseded` when the image was deleted meanwhile (known failure H6)."""
    try:
        oned.Client().image(image_id)
    except Missing as error:
        raise Superseded("make the image", f"image {image_id} was deleted meanwhile") from error
    except OnedUnavailable as error:
        hosts.log.warn(f"{error}; the image is kept")


class NewImage:
    """A new image of the datastore, made of content that is ``poured`` from somewhere."""

    def __init__(self, datastore: Datastore, hosts: Hosts, *, step: str) -> None:
        self.name = new_name(datastore.image_id)
        self.step = step
        self._datastore, self._hosts = datastore, hosts

    @property
    def source(self) -> str:
        """What oned will call it."""
        return f"{self._datastore.given}/{self.name}"

    def make(
        self,
        sender: contextlib.AbstractContextManager[AgentClient],
        content: dict[str, Any],
        *,
        asked: dict[str, Any],
        inspect: bool,
        known_format: str,
        wanted_format: str,
        display: str,
    ) -> dict[str, Any]:
        """Make it; format, size (bytes) and how many bytes were ``sent`` between machines.

        ``sender`` is on the machine that opens ``content`` (``onestor_lib.agent.sources``): any
        when the datastore is on a bridge host, else this one. ``asked`` is what is asked of it
        (``onestor_lib.agent.intake.Asked``), ``display`` its name.
        """
        settings, sent = self._datastore.settings, None

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            nonlocal sent
            if question["ask"] == "wanted":
                require_wanted(self._hosts, self._datastore.image_id)
                return {}
            if sent is not None:
                raise OnestorError(self.step, "the content was asked for twice", host=store.host)
            with sender as agent:
                poured = self._pour(agent, content, asked, question)
            sent = int(poured["sent"])
            return poured

        with self._datastore.agent() as store:
            made: dict[str, Any] = store.call(
                "image.create",
                on_ask=answer,
                base=self._datastore.base,
                name=self.name,
                staging=self._staging(),
                inspect=inspect,
                decompress=asked["decompress"],
                known_format=known_format,
                wanted_format=wanted_format,
                foreign_to="qcow2" if settings.yes("CONVERT") else "",
                sparse=settings.yes("SPARSE"),
                check_space=settings.yes("CHECK_FREE_SPACE"),
                convert_timeout=settings.seconds("CONVERT_TIMEOUT"),
                require_mount=settings.yes("REQUIRE_MOUNT"),
                bulk=self._hosts.bulk_priority(),
                step=self.step,
                source=display,
            )
        # It becomes part of an answer, and may be the word of another machine.
        if made["format"] not in NAMES:
            raise OnestorError(self.step, "the format is no format", host=store.host)
        return {"format": made["format"], "size": int(made["size"]), "sent": sent}

    def _pour(
        self,
        agent: AgentClient,
        content: dict[str, Any],
        asked: dict[str, Any],
        question: dict[str, Any],
    ) -> dict[str, Any]:
        settings, bridge = self._datastore.settings, self._datastore.bridge
        argv = []
        if bridge not in ("", agent.host):
            argv = self._hosts.bulk_argv(bridge, is_from_here=self._hosts.is_here(agent.host))
        space = "holes" if settings.yes("SPARSE") else "all"
        poured: dict[str, Any] = agent.call(
            "intake.pour",
            source=content,
            asked=asked,
            argv=argv,
            host=bridge,
            needs_space=space if settings.yes("CHECK_FREE_SPACE") else "no",
            bulk=self._hosts.bulk_priority(),
            temporary=question["temporary"],
            manifest=question["manifest"],
        )
        return poured

    def _staging(self) -> str:
        """STAGING_DIR, a directory on the machine that has the datastore; "" for none."""
        given = self._datastore.settings.text("STAGING_DIR", "(/.*)?", "an absolute path")
        return arguments.checked_path(given) if given else ""
