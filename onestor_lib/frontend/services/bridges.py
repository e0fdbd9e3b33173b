"""Bridge hosts: machines through which an image datastore is reached (BRIDGE_LIST)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.frontend import arguments, xml
from onestor_lib.frontend.services.hosts import Hosts


def parse(names: str) -> list[str]:
    """The hosts of BRIDGE_LIST, in order; raises :class:`InvalidInput` for what is no host."""
    return [arguments.host(word) for word in names.split()]


def of(datastore: xml.Element | None) -> list[str]:
    """The bridge hosts of an image datastore as oned describes it."""
    return parse(datastore.text("TEMPLATE/BRIDGE_LIST")) if datastore is not None else []


@contextlib.contextmanager
def first_answering(
    hosts: Hosts, bridges: list[str], *, sends: bool = False
) -> Iterator[AgentClient]:
    """An agent on the first of the bridge hosts that answers (known failure C11).

    ``sends`` as in :meth:`Hosts.agent`. Raises :class:`HostUnreachable` naming every host and its
    cause when none does (known failure H20).
    """
    with contextlib.ExitStack() as stack:
        yield _enter_first(hosts, bridges, sends, stack)


def _enter_first(
    hosts: Hosts, bridges: list[str], sends: bool, stack: contextlib.ExitStack
) -> AgentClient:
    failed: list[HostUnreachable] = []
    for bridge in bridges:
        try:
            return stack.enter_context(hosts.agent(bridge, sends=sends))
        except HostUnreachable as error:
            failed.append(error)
            if len(failed) < len(bridges):
                hosts.log.warn(f"bridge host: {error}; trying the next one")
    if len(failed) == 1:
        raise failed[0]
    causes = "; ".join(f"{error.host}: {error.step}: {error.cause}" for error in failed)
    raise HostUnreachable("reach a bridge host", causes)
