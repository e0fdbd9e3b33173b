"""Agents on hosts: one for each machine an action has work on, over ssh or right here."""

from __future__ import annotations

import contextlib
import copy
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from onestor_lib.agent.client import AgentClient, ProcessStream, Stream
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.frontend import bundle, openssh, ssh
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log

PATIENCE = 60.0  # seconds without any progress, for what is asked of many
_REPORT = 10.0  # seconds between two notes about progress


@dataclass
class Hosts:
    """Connects to hosts for one action, with its settings and its log.

    ``watch`` is told how many bytes of a long step are done, and of how many; ``patience`` is how
    many seconds an agent may do nothing (see ``AgentClient``).
    """

    settings: Settings
    log: Log
    watch: Callable[[int, int], None] = field(default=lambda done, total: None)
    patience: float = math.inf
    _reported: float = field(default_factory=time.monotonic, init=False)
    _agents: list[AgentClient] = field(default_factory=list, init=False)

    def under(self, settings: Settings) -> Hosts:
        """The same for hosts with other settings: they hear of each other's progress."""
        other = copy.copy(self)  # with the same list of agents
        other.settings = settings
        return other

    def is_here(self, host: str) -> bool:
        """Whether ``host`` is this machine by name. Another name for it works too, over ssh."""
        own = socket.gethostname()  # never a look-up: a name server may take its time
        return host in ("localhost", own, own.partition(".")[0])

    @contextlib.contextmanager
    def agent(self, host: str, *, sends: bool = False) -> Iterator[AgentClient]:
        """An agent on ``host`` for the ``with`` block; raises ``HostUnreachable``.

        One that ``sends`` data to another host is lent our ssh-agent: hosts have no private key.
        """
        begin = time.monotonic()
        if self.is_here(host):
            with self.local_agent() as agent:
                yield agent
            return
        stream = ssh.connect(
            host,
            python=self.settings.program("HOST_PYTHON"),
            timeout=self.settings.seconds("CONNECT_TIMEOUT"),
            forward_agent=sends,
        )
        with self._started(stream, host) as agent:
            self.log.line("DEBUG", f"agent on {host} after {time.monotonic() - begin:.3f} s")
            yield agent

    @contextlib.contextmanager
    def local_agent(self) -> Iterator[AgentClient]:
        """An agent on this machine."""
        stream = ProcessStream(openssh.local_agent_argv())
        with self._started(stream, socket.gethostname()) as agent:
            yield agent

    @contextlib.contextmanager
    def _started(self, stream: Stream, host: str) -> Iterator[AgentClient]:
        with AgentClient(
            stream,
            host,
            on_log=self._forward,
            on_progress=self._progress,
            on_counts=self.log.tally.counted,
            patience=self.patience,
        ) as agent:
            agent.start(bundle.build())
            self._agents.append(agent)
            try:
                yield agent
            finally:
                self._agents.remove(agent)

    def bulk_argv(
        self,
        address: str,
        options: str = "",
        *,
        more: Sequence[str] = (),
        is_from_here: bool = False,
    ) -> list[str]:
        """The command line that another agent uses to reach the agent at ``address``.

        ``options`` is the attribute that has the options of ssh for that link, if there is one;
        ``more`` are further ones. The configuration of ssh can be looked at, and the cipher be
        chosen by it, if that agent ``is_from_here``.
        """
        given = [*(self.settings.options(options) if options else []), *more]
        return openssh.agent_argv(
            address,
            # What comes first counts (ssh_config(5)).
            options=[*given, *(openssh.faster_cipher(address) if is_from_here else [])],
            python=self.settings.program("HOST_PYTHON"),
            connect_timeout=self.settings.seconds("CONNECT_TIMEOUT"),
        )

    def bulk_priority(self) -> dict[str, Any]:
        """How processes that copy images shall give way, see ``onestor_lib.agent.priority``."""
        ionice = self.settings.text(
            "BULK_IONICE", "idle|none|best-effort:[0-7]", "idle, none or best-effort:0 to 7"
        )
        return {"nice": self.settings.number("BULK_NICE", 0, 19), "ionice": ionice}

    def _progress(self, done: int, total: int) -> None:
        """Pass it on to the agents that wait for us; note it in the log file now and then."""
        if total:
            self.watch(done, total)
        for agent in self._agents:
            with contextlib.suppress(HostUnreachable):  # whoever talks with it will notice
                agent.tell_progress()
        now = time.monotonic()
        if done and now - self._reported > _REPORT:
            self._reported = now
            share = f" of {total >> 20} MB ({done * 100 // total} %)" if total else " MB"
            self.log.info(f"{done >> 20}{share} are through")

    def _forward(self, severity: str, text: str) -> None:
        self.log.line(severity, text)
