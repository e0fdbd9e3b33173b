"""A web server for tests: real sockets, and every misbehaviour a download has to cope with.

    with HttpServer(content=b"...", drops=[100]) as server:
        fetch(server.url("/image"))
        assert [request.method for request in server.requests] == ["GET", "GET"]

Everything can be changed while it runs. It answers one request for each connection. As a proxy it
answers requests for absolute URLs itself, as if it had fetched them, and connects for CONNECT.
"""

from __future__ import annotations

import base64
import contextlib
import re
import select
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_STEP = 16384  # bytes written at once
_PATIENCE = 20.0  # seconds until whatever hangs gives up
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


@dataclass(frozen=True)
class Request:
    """What a client has asked for; names of headers in lower case."""

    method: str
    path: str  # as it was sent: with the query, or an absolute URL to a proxy
    headers: dict[str, str]

    @property
    def is_full_get(self) -> bool:
        return self.method == "GET" and "range" not in self.headers


@dataclass
class HttpServer:
    """Serves ``content`` at every path, or the ``files``, each at its path as it is sent."""

    content: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)

    etag: str | None = '"1"'
    last_modified: str | None = None
    date: str | None = None
    honours_ranges: bool = True
    headers: list[tuple[str, str]] = field(default_factory=list)  # more of them
    partial: dict[str, str] = field(default_factory=dict)  # overrides headers of 206

    # The connection is dropped after so many bytes of the body, by request; None: it is not.
    # With ``chunked``, that is within a chunk.
    drops: list[int | None] = field(default_factory=list)
    resets: bool = False  # drop with RST instead of FIN
    lie: int = 0  # so many bytes more are announced than there are
    lengths: list[str] | None = None  # the Content-Length headers
    chunked: bool = False
    delimited: bool = False  # neither length nor chunks
    keeps_open: bool = False  # leave closing to the client

    statuses: list[int] = field(default_factory=list)  # instead of the content, by request
    status: int = 200  # instead of the content, always
    head_status: int = 403
    redirects: dict[str, str] = field(default_factory=dict)  # from path (no query) to URL
    login: str | None = None  # "user:password" that is asked for

    is_silent: bool = False  # accept and never answer
    gate: threading.Event | None = None  # waited for after ``gate_at`` bytes of a body
    gate_at: int = 0
    on_request: Callable[[Request], None] | None = None  # before the answer

    certificate: Path | None = None  # TLS: key and certificate in one file

    requests: list[Request] = field(default_factory=list)

    def url(self, path: str = "/image", *, login: str = "") -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{login + '@' if login else ''}127.0.0.1:{self.port}{path}"

    @property
    def full_gets(self) -> int:
        """How often the whole content was asked for."""
        return sum(request.is_full_get for request in self.requests)

    def __enter__(self) -> HttpServer:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tls: ssl.SSLContext | None = None
        if self.certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(self.certificate)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.settimeout(_PATIENCE)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
            with connection.makefile("rb") as file:
                request = _read_request(file)
            if request:
                self.requests.append(request)
                self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: Request) -> None:
        if self.on_request:
            self.on_request(request)
        if self.is_silent:
            self._wait_for_end(connection)
        elif request.method == "CONNECT":
            self._tunnel(connection, request)
        elif refusal := self._refusal(request):
            _send_head(connection, *refusal)
        else:
            self._send_content(connection, request)
            if self.keeps_open:
                self._wait_for_end(connection)

    def _refusal(self, request: Request) -> tuple[int, list[tuple[str, str]]] | None:
        """Status and headers when the content is not sent."""
        empty = ("Content-Length", "0")
        target = self.redirects.get(request.path.partition("?")[0])
        if request.method != "GET":
            return self.head_status, [empty]
        if self.login is not None:
            expected = "Basic " + base64.b64encode(self.login.encode()).decode()
            if request.headers.get("authorization") != expected:
                return 401, [("WWW-Authenticate", 'Basic realm="test"'), empty]
        if self.statuses:
            status = self.statuses.pop(0)
            if status != 200:
                return status, [empty]
        if self.status != 200:
            return self.status, [empty]
        if target is not None:
            return 302, [("Location", target), empty]
        if self.files and request.path not in self.files:
            return 404, [empty]
        return None

    def _send_content(self, connection: socket.socket, request: Request) -> None:
        content = self.files.get(request.path, self.content)
        status, start, end = self._range(request, len(content))
        if status == 416:
            refused = [("Content-Range", f"bytes */{len(content)}"), ("Content-Length", "0")]
            _send_head(connection, status, refused)
            return
        body = content[start:end]
        headers = self._validators()
        if status == 206:
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{len(content)}"))
        if self.chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        elif self.lengths is not None:
            headers += [("Content-Length", length) for length in self.lengths]
        elif not self.delimited:
            headers.append(("Content-Length", str(len(body) + self.lie)))
        if status == 206:
            headers = [(name, self.partial.get(name, value)) for name, value in headers]
            headers = [(name, value) for name, value in headers if value]
        _send_head(connection, status, headers + self.headers)
        self._send_body(connection, body)

    def _validators(self) -> list[tuple[str, str]]:
        facts = {"ETag": self.etag, "Last-Modified": self.last_modified, "Date": self.date}
        return [(name, value) for name, value in facts.items() if value is not None]

    def _range(self, request: Request, size: int) -> tuple[int, int, int]:
        """Status, start and end of what is sent."""
        found = _RANGE.fullmatch(request.headers.get("range", ""))
        condition = request.headers.get("if-range")
        if not found or not self.honours_ranges:
            return 200, 0, size
        if condition is not None and condition not in (self.etag, self.last_modified):
            return 200, 0, size
        start = int(found[1])
        if start >= size:
            return 416, 0, 0
        return 206, start, min(size, int(found[2]) + 1) if found[2] else size

    def _send_body(self, connection: socket.socket, body: bytes) -> None:
        drop = self.drops.pop(0) if self.drops else None
        end = len(body) if drop is None else min(drop, len(body))
        gate = self.gate_at if self.gate else end
        marks = sorted({*range(0, end, _STEP), end, min(gate, end)})
        for start, stop in zip(marks, marks[1:]):
            if self.gate and start == gate:
                self._wait(self.gate)
            is_cut = drop is not None and stop == end
            self._send_part(connection, body[start:stop], is_cut=is_cut)
        if self.gate and end <= gate:
            self._wait(self.gate)
        if drop is not None:
            if self.resets:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif self.chunked:
            connection.sendall(b"0\r\n\r\n")

    def _send_part(self, connection: socket.socket, part: bytes, *, is_cut: bool) -> None:
        if self.chunked and is_cut:
            part = b"%x\r\n%b" % (len(part) + 5, part)
        elif self.chunked:
            part = b"%x\r\n%b\r\n" % (len(part), part)
        connection.sendall(part)

    def _wait(self, gate: threading.Event) -> None:
        while not gate.wait(0.02) and not self._stop.is_set():
            pass

    def _wait_for_end(self, connection: socket.socket) -> None:
        """Return when the client has closed the connection, or the server stops."""
        while not self._stop.is_set():
            if select.select([connection], [], [], 0.02)[0] and not connection.recv(_STEP):
                return

    def _tunnel(self, connection: socket.socket, request: Request) -> None:
        host, _, port = request.path.rpartition(":")
        with socket.create_connection((host, int(port)), _PATIENCE) as other:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            to = {connection: other, other: connection}
            while not self._stop.is_set():
                for source in select.select(list(to), [], [], 0.02)[0]:
                    part = source.recv(_STEP)
                    if not part:
                        return
                    to[source].sendall(part)


def _read_request(file: BinaryIO) -> Request | None:
    lines = list(_head(file))
    if not lines:
        return None
    method, path, _ = lines[0].split(" ", 2)
    pairs = (line.partition(":") for line in lines[1:])
    return Request(method, path, {name.lower(): value.strip() for name, _, value in pairs})


def _head(file: BinaryIO) -> Iterator[str]:
    for line in file:
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            return
        yield text


def _send_head(connection: socket.socket, status: int, headers: list[tuple[str, str]]) -> None:
    """No words behind the status, as HTTP/2 has none: clients must know them."""
    lines = [f"HTTP/1.1 {status} ", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out"]
    subprocess.run([*argv, str(certificate)], check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both
