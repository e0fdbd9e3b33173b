"""Bringing the content of a file from the machine it is on to the machine that asked for it."""

from __future__ import annotations

import time
from typing import Any

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable, OnestorError
from onestor_lib.frontend import openssh, retry
from onestor_lib.frontend.services.hosts import Hosts

_TRIES = 2


def bring(
    hosts: Hosts,
    source: AgentClient,
    path: str,
    *,
    host: str,
    temporary: str,
    sparse: bool,
) -> int:
    """Bring ``path`` of the source's machine into the file ``temporary`` of ``host``.

    Verified there before this returns; how many bytes crossed the link. A transfer that fails
    for a reason that may pass is tried once more, a connection that sshd drops for a while.
    """
    if source.host == host or (hosts.is_here(source.host) and hosts.is_here(host)):
        source.call("transfer.copy", path=path, temporary=temporary, sparse=sparse)
        return 0
    tries, pauses = 0, retry.pauses()
    while True:
        begin = time.monotonic()
        try:
            sent: dict[str, Any] = source.call(
                "transfer.send",
                path=path,
                argv=hosts.bulk_argv(host),
                host=host,
                temporary=temporary,
                stall=hosts.settings.seconds("STALL_TIMEOUT"),
            )
        except OnestorError as error:
            if isinstance(error, HostUnreachable) and openssh.was_dropped(error):
                if retry.after(pauses):
                    continue
                raise
            tries += 1
            if not error.retryable or tries == _TRIES:
                raise
            hosts.log.warn(f"{error}; trying again")
            continue
        seconds = time.monotonic() - begin
        hosts.log.line("DEBUG", f"sent {sent['sent']} bytes of {path} to {host} in {seconds:.3f} s")
        return int(sent["sent"])
