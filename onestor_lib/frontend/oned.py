"""Asking oned: its XML-RPC API, found and signed on to as OpenNebula's own tools do.

``onevm show -x`` would start Ruby and take half a second (docs/design.md, section 6).
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import xml.parsers.expat
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path

from onestor_lib.agent.errors import InvalidInput, Missing, OnedUnavailable
from onestor_lib.frontend import xml as documents

TIMEOUT = 30.0  # seconds; $ONE_XMLRPC_TIMEOUT overrides it, as for OpenNebula's tools
_NOT_LEADING = ("1", "2")  # candidate, follower: states of Raft as OpenNebula numbers them
_NO_EXISTS = 0x0400
_FAILURES = (
    OSError,
    ValueError,
    http.client.HTTPException,
    xml.parsers.expat.ExpatError,
    xmlrpc.client.Error,
)


class Client:
    """The questions a driver has; each answer is XML.

    Raises :class:`Missing` for an object that oned does not know and :class:`OnedUnavailable`
    when it cannot be asked, or refuses.
    """

    def vm(self, vm_id: int) -> documents.Element:
        return self._info("vm", vm_id)

    def datastore(self, datastore_id: int) -> documents.Element:
        return self._info("datastore", datastore_id)

    def host(self, host_id: int) -> documents.Element:
        return self._info("host", host_id)

    def image(self, image_id: int) -> documents.Element:
        return self._info("image", image_id)

    def vms(self) -> documents.Element:
        """All VMs that are not done, with all that is known of each."""
        everybody, all_of_them, not_done = -2, -1, -1
        words = (everybody, all_of_them, all_of_them, not_done)
        return self._ask("one.vmpool.infoextended", "the VMs", *words)

    def hosts(self) -> documents.Element:
        """All hosts: what is known of one by its name only has to be looked for there."""
        return self._ask("one.hostpool.info", "the hosts")

    def datastores(self) -> documents.Element:
        """All datastores, of every kind."""
        return self._ask("one.datastorepool.info", "the datastores")

    def leads(self) -> bool:
        """Whether this oned decides: it is alone, or the leader of several (HA).

        One that cannot say so is alone.
        """
        try:
            state = self._ask("one.zone.raftstatus", "its state").text("STATE")
        except (Missing, OnedUnavailable):
            return True
        return state not in _NOT_LEADING

    def images(self) -> documents.Element:
        """All images of everybody."""
        everybody, all_of_them = -2, -1
        return self._ask("one.imagepool.info", "the images", everybody, all_of_them, all_of_them)

    def update_datastore(self, datastore_id: int, attributes: Mapping[str, str]) -> None:
        """Set attributes of a datastore, as ``onedatastore update --append`` does; others stay."""
        for name, value in attributes.items():
            if '"' in value or "\\" in value:
                raise InvalidInput("change the datastore", f"{name} would be {value!r}")
        merge = 1
        template = "".join(f'{name} = "{value}"\n' for name, value in attributes.items())
        step = f"change datastore {datastore_id}"
        self._call("one.datastore.update", step, datastore_id, template, merge)

    def _info(self, kind: str, object_id: int) -> documents.Element:
        return self._ask(f"one.{kind}.info", f"{kind} {object_id}", object_id)

    def _ask(self, method: str, what: str, *arguments: int) -> documents.Element:
        answer = self._call(method, f"ask oned for {what}", *arguments)
        return documents.parse(str(answer).encode("utf-8"), what)

    def _call(self, method: str, step: str, *arguments: int | str) -> object:
        url = endpoint()
        try:
            proxy = xmlrpc.client.ServerProxy(url, transport=_transport(url))
            with proxy:
                answer = getattr(proxy, method)(_session(), *arguments)
        except _FAILURES as error:
            raise OnedUnavailable(step, f"{url}: {error}") from None
        if not isinstance(answer, list) or len(answer) < 2:
            raise OnedUnavailable(step, f"{url}: unexpected answer")
        if answer[0] is not True:
            error_class = Missing if answer[2:3] == [_NO_EXISTS] else OnedUnavailable
            raise error_class(step, str(answer[1]))
        return answer[1]


def endpoint() -> str:
    """Where oned listens: $ONE_XMLRPC, one_endpoint files, else localhost (contract section 5)."""
    if url := os.environ.get("ONE_XMLRPC"):
        return url
    for directory in _homes():
        if url := _read(directory / "one_endpoint"):
            return url
    return "http://localhost:2633/RPC2"


def _session() -> str:
    candidates = [directory / "one_auth" for directory in _homes()]
    if path := os.environ.get("ONE_AUTH"):
        candidates.insert(0, Path(path))
    for candidate in candidates:
        if text := _read(candidate):
            return text
    places = ", ".join(map(str, candidates))
    raise OnedUnavailable("sign on to oned", f"no credentials in {places}")


def _homes() -> list[Path]:
    location = os.environ.get("ONE_LOCATION")  # a self-contained OpenNebula
    homes = [Path(location, "var", ".one") if location else Path("/var/lib/one/.one")]
    if home := os.environ.get("HOME"):
        homes.insert(0, Path(home) / ".one")
    return list(dict.fromkeys(homes))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip()
    except OSError:
        return ""


def _transport(url: str) -> xmlrpc.client.Transport:
    wanted = os.environ.get("ONE_XMLRPC_TIMEOUT", "")
    is_number = re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", wanted)
    timeout = (float(wanted) if is_number else 0.0) or TIMEOUT
    if not url.startswith("https:"):
        return _HttpTransport(timeout)
    context = ssl.create_default_context(capath=os.environ.get("ONE_CERT_DIR"))
    if os.environ.get("ONE_DISABLE_SSL_VERIFY"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _HttpsTransport(timeout, context)


class _HttpTransport(xmlrpc.client.Transport):
    """xmlrpc.client has no timeouts of its own: without one a hanging oned would hang us."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        chost, self._extra_headers, _ = self.get_host_info(host)  # type: ignore[arg-type]
        connection = _NoDelayConnection(chost, timeout=self._timeout)
        self._connection = host, connection  # type: ignore[assignment]  # what close() closes
        return connection


class _HttpsTransport(xmlrpc.client.SafeTransport):
    def __init__(self, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._timeout, self._ssl = timeout, context

    def make_connection(self, host: object) -> http.client.HTTPSConnection:
        chost, self._extra_headers, _ = self.get_host_info(host)  # type: ignore[arg-type]
        connection = http.client.HTTPSConnection(chost, timeout=self._timeout, context=self._ssl)
        self._connection = host, connection  # type: ignore[assignment]
        return connection


class _NoDelayConnection(http.client.HTTPConnection):
    """Header and body are two small packets: Nagle's algorithm would hold the second for 40 ms."""

    def connect(self) -> None:
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
