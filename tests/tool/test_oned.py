"""frontend.oned against a real XML-RPC server on the loopback device."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onestor_lib.agent.errors import InvalidInput, Missing, OnedUnavailable
from onestor_lib.frontend.oned import Client
from tests.http_server import make_certificate
from tests.tool.conftest import Oned, QuietServer


def test_each_question_is_the_call_of_its_kind(oned: Oned) -> None:
    for kind in ("vm", "datastore", "host", "image"):
        oned.answers[kind, 3] = f"<{kind.upper()}><ID>3</ID></{kind.upper()}>"
        assert getattr(Client(), kind)(3).text("ID") == "3"
        assert oned.calls[-1] == (f"one.{kind}.info", "oneadmin:secret", 3)


def test_what_oned_does_not_know_is_missing(oned: Oned) -> None:
    with pytest.raises(Missing, match=r"ask oned for vm 9: \[one.vm.info\] Error getting vm \[9\]"):
        Client().vm(9)


@pytest.mark.parametrize("code", [0x100, 0x200, 0x800, 0x2000])
def test_other_refusals_are_no_missing_objects(oned: Oned, code: int) -> None:
    oned.answers["vm", 9] = [False, "not authorized", code]
    with pytest.raises(OnedUnavailable, match="not authorized") as failure:
        Client().vm(9)
    assert failure.value.retryable


@pytest.mark.parametrize("answer", [[], [True], "text", [False]])
def test_odd_answers(oned: Oned, answer: object) -> None:
    oned.answers["vm", 9] = answer
    with pytest.raises((OnedUnavailable, InvalidInput)):
        Client().vm(9)


def test_a_fault_is_reported(oned: Oned) -> None:
    def fail() -> None:
        raise ValueError("internal error")

    oned.answers["vm", 9] = fail
    with pytest.raises(OnedUnavailable, match="internal error"):
        Client().vm(9)


def test_J13_credentials_are_in_no_message(oned: Oned) -> None:
    for setup in ([False, "no", 0x100], [], "text"):
        oned.answers["vm", 9] = setup
        with pytest.raises((OnedUnavailable, InvalidInput)) as failure:
            Client().vm(9)
        assert "secret" not in str(failure.value)


class TestPlaces:
    """Where oned and the credentials are found (contract section 5)."""

    @pytest.fixture(autouse=True)
    def home(self, oned: Oned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        oned.answers["vm", 1] = "<VM/>"
        monkeypatch.delenv("ONE_XMLRPC")
        monkeypatch.delenv("ONE_AUTH")
        monkeypatch.delenv("ONE_LOCATION", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        directory = tmp_path / "home" / ".one"
        directory.mkdir(parents=True)
        (directory / "one_auth").write_text("home:1\n")
        (directory / "one_endpoint").write_text(oned.url + "\n")
        return directory

    def test_files_below_home(self, oned: Oned) -> None:
        Client().vm(1)
        assert oned.calls[-1][1] == "home:1"

    def test_variables_come_first(
        self, oned: Oned, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "one_endpoint").write_text("http://127.0.0.1:1/")
        (home / "other").write_text("variable:2")
        monkeypatch.setenv("ONE_XMLRPC", oned.url)
        monkeypatch.setenv("ONE_AUTH", str(home / "other"))
        Client().vm(1)
        assert oned.calls[-1][1] == "variable:2"

    def test_an_empty_or_missing_file_is_passed_over(
        self, oned: Oned, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for content in (None, " \n"):
            other = home / "empty"
            if content is not None:
                other.write_text(content)
            monkeypatch.setenv("ONE_AUTH", str(other))
            Client().vm(1)
            assert oned.calls[-1][1] == "home:1"

    def test_no_credentials_at_all(self, home: Path) -> None:
        (home / "one_auth").unlink()
        if Path("/var/lib/one/.one/one_auth").exists():
            pytest.skip("this machine is a front-end")
        with pytest.raises(OnedUnavailable, match=f"no credentials in {home}/one_auth, "):
            Client().vm(1)


class Scripted:
    """A server that answers every connection with the same bytes, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/RPC2"
        self.answer = answer
        self.connections: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            self.connections.append(connection)
            if self.answer == b"stop":
                return
            if self.answer is not None:
                connection.recv(1 << 16)
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self.answer = b"stop"
        socket.create_connection(self.socket.getsockname()).close()
        self.thread.join()
        for each in (*self.connections, self.socket):
            each.close()


@pytest.fixture
def scripted(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, oned: Oned
) -> Iterator[Scripted]:
    server = Scripted(request.param)
    monkeypatch.setenv("ONE_XMLRPC", server.url)
    yield server
    server.stop()


def http(status: str, body: bytes, kind: str = "text/xml") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "scripted",
    [
        b"", b"garbage\r\n\r\n", http("500 Internal Server Error", b""), http("404 Not Found", b""),
        http("200 OK", b"<html><p>login</html>", "text/html"), http("200 OK", b""),
        http("200 OK", b"<methodResponse><params>")[:-5],
    ],
    indirect=True,
)  # fmt: skip
def test_whatever_answers_instead_of_oned_is_named(scripted: Scripted) -> None:
    with pytest.raises(OnedUnavailable, match="ask oned for vm 1: " + scripted.url):
        Client().vm(1)


@pytest.mark.parametrize("scripted", [None], indirect=True)
def test_K7_an_oned_that_hangs(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_XMLRPC_TIMEOUT", "0.3")
    begin = time.monotonic()
    with pytest.raises(OnedUnavailable, match="timed out"):
        Client().vm(1)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/RPC2", "socket:///x", "localhost", "http://["])
def test_nobody_there(oned: Oned, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ONE_XMLRPC", url)
    with pytest.raises(OnedUnavailable):
        Client().vm(1)


@pytest.mark.parametrize("timeout", ["", "0", "ten", "-5", "inf", "nan"])
def test_an_odd_time_limit_is_no_bug_of_ours(
    oned: Oned, monkeypatch: pytest.MonkeyPatch, timeout: str
) -> None:
    monkeypatch.setenv("ONE_XMLRPC_TIMEOUT", timeout)
    oned.answers["vm", 1] = "<VM/>"
    try:
        Client().vm(1)
    except OnedUnavailable:
        assert timeout not in ("", "0", "ten")


@pytest.fixture
def certificates(oned: Oned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """oned behind https; a directory with the certificate, as OpenSSL wants it."""
    directory = tmp_path / "certificates"
    directory.mkdir()
    both = make_certificate(tmp_path)
    (directory / "oned.pem").write_bytes((tmp_path / "certificate.pem").read_bytes())
    subprocess.run(["openssl", "rehash", str(directory)], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with QuietServer(("127.0.0.1", 0), logRequests=False) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.register_instance(oned)
        monkeypatch.setenv("ONE_XMLRPC", f"https://127.0.0.1:{server.server_address[1]}/RPC2")
        oned.answers["vm", 3] = "<VM><ID>3</ID></VM>"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield directory
        server.shutdown()
        thread.join()


def test_oned_behind_https_is_asked_if_its_certificate_is_known(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OnedUnavailable, match="certificate verify failed"):
        Client().vm(3)
    monkeypatch.setenv("ONE_CERT_DIR", str(certificates))
    assert Client().vm(3).text("ID") == "3"
    monkeypatch.delenv("ONE_CERT_DIR")
    monkeypatch.setenv("ONE_DISABLE_SSL_VERIFY", "1")
    assert Client().vm(3).text("ID") == "3"
