"""Bringing the content of a file from the machine it is on to the machine that asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable, OnestorError
from onestor_lib.frontend import openssh, retry
from onestor_lib.frontend.services.hosts import Hosts

_TRIES = 2


def bring(
    hosts: Hosts, source: AgentClient, path: str, *, host: str, **target: Any
) -> dict[str, Any]:
    """Bring ``path`` of the source's machine into a file of ``host``.

    ``target`` says where it goes there: ``temporary``, ``manifest``, ``reuse``, ``version`` as in
    the operation ``transfer.receive``. Verified there before this returns; the answer has the
    digest and how many bytes were sent. A transfer that fails for a reason that may pass is tried
    once more, a connection that sshd drops for a while.
    """
    bulk = hosts.bulk_priority()
    if source.host == host or (hosts.is_here(source.host) and hosts.is_here(host)):
        local = {name: target[name] for name in ("version", "temporary", "manifest")}
        stall = hosts.settings.seconds("STALL_TIMEOUT")
        answer: dict[str, Any] = source.call(
            "transfer.copy", path=path, bulk=bulk, stall=stall, **local
        )
        return answer

    argv = hosts.bulk_argv(host, "REPLICA_SSH_FE_OPTS", is_from_here=hosts.is_here(source.host))

    def send() -> dict[str, Any]:
        sent: dict[str, Any] = source.call(
            "transfer.send",
            path=path,
            argv=argv,
            host=host,
            stall=hosts.settings.seconds("STALL_TIMEOUT"),
            bytes_per_second=hosts.settings.megabytes("REPLICA_BWLIMIT_MB_S") or 0,
            bulk=bulk,
            **target,
        )
        return sent

    return _insist(hosts, (path, source.host, host), send, target)


def pull(
    hosts: Hosts,
    replica: str,
    address: str,
    *,
    host: str,
    image: dict[str, Any],
    answer: Callable[[dict[str, Any]], dict[str, Any]],
    **target: Any,
) -> dict[str, Any]:
    """Let ``host`` fetch an image from the cache of ``replica``, which it reaches at ``address``.

    ``answer`` does our part when the replica has to be filled first; else as :func:`bring`.
    """

    def fetch() -> dict[str, Any]:
        # Only this hop needs our keys, and only when there is something to fetch (failure C12).
        with hosts.agent(host, sends=True) as agent:
            pulled: dict[str, Any] = agent.call(
                "transfer.pull",
                on_ask=answer,
                argv=hosts.bulk_argv(address, "REPLICA_SSH_OPTS"),
                host=replica,
                image=image,
                marker=target["temporary"],
                stall=hosts.settings.seconds("STALL_TIMEOUT"),
                bytes_per_second=hosts.settings.megabytes("REPLICA_BWLIMIT_MB_S") or 0,
                bulk=hosts.bulk_priority(),
                **target,
            )
        return pulled

    what = (str(image["path"]), replica, host)
    return _insist(hosts, what, fetch, target, tries=1)  # behind it there is the origin


def _insist(
    hosts: Hosts,
    what: tuple[str, str, str],
    send: Callable[[], dict[str, Any]],
    how: dict[str, Any],
    tries: int = _TRIES,
) -> dict[str, Any]:
    pauses = retry.pauses()
    while True:
        begin = time.monotonic()
        try:
            sent = send()
        except OnestorError as error:
            if isinstance(error, HostUnreachable) and openssh.was_dropped(error):
                if retry.after(pauses):
                    continue
                raise
            tries -= 1
            if not error.retryable or tries == 0:
                raise
            hosts.log.warn(f"{error}; trying again")
            how["reuse"] = True  # what has come need not come again
            continue
        seconds = time.monotonic() - begin
        path, source, target = what
        hosts.log.tally.sent(source, target, int(sent["sent"]))
        words = f"{path} from {source} to {target}"
        hosts.log.line("DEBUG", f"sent {sent['sent']} bytes of {words} in {seconds:.3f} s")
        return sent
