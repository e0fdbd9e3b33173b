"""Agents on hosts: one for each machine an action has work on, over ssh or right here."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from onestor_lib.agent.client import AgentClient, ProcessStream
from onestor_lib.frontend import bundle, openssh, ssh
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log


@dataclass
class Hosts:
    """Connects to hosts for one action, with its settings and its log."""

    settings: Settings
    log: Log

    def is_here(self, host: str) -> bool:
        """Whether ``host`` is this machine by name. Another name for it works too, over ssh."""
        own = socket.gethostname()  # never a look-up: a name server may take its time
        return host in ("localhost", own, own.partition(".")[0])

    @contextlib.contextmanager
    def agent(self, host: str) -> Iterator[AgentClient]:
        """An agent on ``host`` for the ``with`` block; raises ``HostUnreachable``."""
        begin = time.monotonic()
        if self.is_here(host):
            with self.local_agent() as agent:
                yield agent
            return
        stream = ssh.connect(
            host,
            python=self.settings.program("HOST_PYTHON"),
            timeout=self.settings.seconds("CONNECT_TIMEOUT"),
        )
        with AgentClient(stream, host, on_log=self._forward) as agent:
            agent.start(bundle.build())
            self.log.line("DEBUG", f"agent on {host} after {time.monotonic() - begin:.3f} s")
            yield agent

    @contextlib.contextmanager
    def local_agent(self) -> Iterator[AgentClient]:
        """An agent on this machine."""
        stream = ProcessStream(openssh.local_agent_argv())
        name = socket.gethostname()
        with AgentClient(stream, name, on_log=self._forward) as agent:
            agent.start(bundle.build())
            yield agent

    def bulk_argv(self, host: str) -> list[str]:
        """The command line that another agent uses to send data to ``host``."""
        return openssh.agent_argv(
            host,
            options=self.settings.options("SSH_OPTS"),
            python=self.settings.program("HOST_PYTHON"),
            connect_timeout=self.settings.seconds("CONNECT_TIMEOUT"),
        )

    def _forward(self, severity: str, text: str) -> None:
        self.log.line(severity, text)
