"""Downloads from a real server that misbehaves in every way it can."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onestor_lib
from onestor_lib.agent.bandwidth import Pace
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    NotAllowed,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.sources import StartAgain, http, open_source
from onestor_lib.agent.sources.http import HttpSource
from onestor_lib.agent.urls import describe as describe_url
from tests.http_server import HttpServer, Request, make_certificate

CONTENT = random.Random(1).randbytes(200_000)
OLD = "Wed, 21 Oct 2015 07:28:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:01 GMT"
POSITIONS = [0, 1, 2, 99_999, 100_000, 199_998, 199_999]
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxies_and_no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(http, "PAUSE", 0.001)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def source(url: str, *, stall: float = 10.0, **more: Any) -> HttpSource:
    return HttpSource({"kind": "http", "url": url, **more}, step="download", stall=stall)


def fetch(url: str, **more: Any) -> bytes:
    return b"".join(source(url, **more).pieces())


def failure(kind: type[OnestorError], url: str, **more: Any) -> OnestorError:
    """The error of a download, which is exactly of that class."""
    with pytest.raises(OnestorError) as caught:
        fetch(url, **more)
    assert type(caught.value) is kind
    assert caught.value.path == describe_url(url)
    assert caught.value.step == "download"
    return caught.value


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# One request, in order


def test_H14_an_undisturbed_download_is_one_full_get() -> None:
    with HttpServer(CONTENT) as server:
        opened = open_source(
            {"kind": "http", "url": server.url(), "block": 65536}, step="download", stall=10
        )
        assert opened.size is None
        pieces = list(opened.pieces())
        assert opened.size == len(CONTENT) and opened.is_complete_at_end
        opened.close()
        opened.close()
    assert b"".join(bytes(piece) for piece in pieces) == CONTENT
    assert 3 <= len(pieces) <= 5
    (request,) = server.requests
    assert request.is_full_get
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"] == f"onestor/{onestor_lib.__version__}"
    assert request.headers["connection"] == "close"
    assert "authorization" not in request.headers


def test_the_size_is_known_with_the_first_piece() -> None:
    with HttpServer(CONTENT) as server:
        opened = source(server.url(), block=1000)
        pieces = opened.pieces()
        next(pieces)
        assert opened.size == len(CONTENT)
        opened.close()
        del pieces


def test_H14_a_look_at_the_begin_costs_no_full_get() -> None:
    with HttpServer(CONTENT) as server:
        opened = source(server.url())
        assert opened.read_at(0, 512) == CONTENT[:512]
        assert opened.size == len(CONTENT)
        assert b"".join(opened.pieces()) == CONTENT
    assert server.full_gets == 1
    assert server.requests[0].headers["range"] == "bytes=0-511"


def test_H13_a_server_that_refuses_head_is_never_asked_so() -> None:
    with HttpServer(CONTENT, head_status=403) as server:
        opened = source(server.url())
        assert opened.read_at(0, 10) == CONTENT[:10]
        assert b"".join(opened.pieces()) == CONTENT
    assert {request.method for request in server.requests} == {"GET"}


def test_a_content_encoding_is_left_alone() -> None:
    with HttpServer(CONTENT, headers=[("Content-Encoding", "gzip")]) as server:
        assert fetch(server.url()) == CONTENT


def test_an_empty_file() -> None:
    with HttpServer(b"") as server:
        opened = source(server.url())
        assert opened.read_at(0, 10) == b"" and opened.size == 0
        assert list(opened.pieces()) == []
        assert opened.size == 0


def test_what_has_come_is_given_out_before_a_block_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_LONGEST", 0.0)
    gate = threading.Event()
    with HttpServer(CONTENT, gate=gate, gate_at=1000) as server:
        opened = source(server.url())
        pieces = opened.pieces()
        begin = b""
        while len(begin) < 1000:
            begin += next(pieces)
        gate.set()
        assert begin + b"".join(pieces) == CONTENT


# Parts


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (7, 100), (199_990, 100), (0, 300_000)])
def test_a_part(offset: int, count: int) -> None:
    with HttpServer(CONTENT) as server:
        opened = source(server.url())
        assert opened.read_at(offset, count) == CONTENT[offset : offset + count]
        assert opened.size == len(CONTENT)
        assert opened.read_at(len(CONTENT), 10) == b"" and opened.size == len(CONTENT)
        assert opened.read_at(0, 0) == b""
    assert server.full_gets == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_a_part_where_ranges_are_ignored(chunked: bool) -> None:
    with HttpServer(CONTENT, honours_ranges=False, chunked=chunked) as server:
        opened = source(server.url())
        assert opened.read_at(0, 100) == CONTENT[:100]
        assert opened.size == (None if chunked else len(CONTENT))
        assert opened.read_at(100, 100) is None


def test_a_part_is_tried_again() -> None:
    with HttpServer(CONTENT, drops=[0, 50], statuses=[503]) as server:
        with pytest.raises(TransferFailed):
            source(server.url()).read_at(100, 100)
        assert source(server.url()).read_at(100, 100) == CONTENT[100:200]


@pytest.mark.parametrize("lie", ["bytes 7-106/200000", "bytes 8-9", "bytes 8-7/200000", ""])
def test_a_part_that_is_not_the_requested_one(lie: str) -> None:
    with (
        HttpServer(CONTENT, partial={"Content-Range": lie}) as server,
        pytest.raises(TransferFailed, match="another part"),
    ):
        source(server.url()).read_at(8, 100)


# Broken connections


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_H1_a_dropped_connection_is_taken_up_where_it_broke(position: int, resets: bool) -> None:
    with HttpServer(CONTENT, drops=[position], resets=resets) as server:
        assert fetch(server.url()) == CONTENT
    assert server.full_gets <= 2
    if not resets and position:
        assert server.requests[1].headers["range"] == f"bytes={position}-"
        assert server.requests[1].headers["if-range"] == '"1"'


@pytest.mark.parametrize("position", POSITIONS)
def test_H1_a_chunked_download_is_taken_up_where_it_broke(position: int) -> None:
    with HttpServer(CONTENT, drops=[position], chunked=True) as server:
        opened = source(server.url())
        assert b"".join(opened.pieces()) == CONTENT
        assert opened.is_complete_at_end


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    drops=st.lists(st.integers(1, 20), max_size=12),
    chunked=st.booleans(),
    size=st.integers(1, 60),
)
def test_H1_drops_anywhere(drops: list[int], chunked: bool, size: int) -> None:
    content = bytes(range(size))
    # Chunks without length cannot be taken up when all bytes are there but not their end.
    with HttpServer(content, drops=list(drops), chunked=chunked) as server:
        try:
            assert fetch(server.url()) == content
        except StartAgain:
            assert chunked


def test_H1_many_drops_with_progress_are_not_counted() -> None:
    with HttpServer(CONTENT, drops=[10_000] * 15) as server:
        assert fetch(server.url()) == CONTENT
    assert len(server.requests) == 16


@pytest.mark.parametrize("position", [1, 100_000, 199_999])
def test_H1_a_server_without_ranges_has_the_reader_start_again(position: int) -> None:
    with HttpServer(CONTENT, drops=[position], honours_ranges=False) as server:
        opened = source(server.url())
        with pytest.raises(StartAgain):
            list(opened.pieces())
        assert b"".join(opened.pieces()) == CONTENT


@pytest.mark.parametrize(
    ("last_modified", "date"),
    [(None, None), (OLD, None), (OLD, OLD), ("yesterday", LATER)],
)
@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_H1_nothing_that_tells_a_change(
    etag: str | None, last_modified: str | None, date: str | None
) -> None:
    with (
        HttpServer(
            CONTENT, drops=[5000], etag=etag, last_modified=last_modified, date=date
        ) as server,
        pytest.raises(StartAgain),
    ):
        fetch(server.url())
    assert len(server.requests) == 1


def test_H1_a_date_of_change_that_is_old_enough_will_do() -> None:
    with HttpServer(CONTENT, drops=[5000], etag=None, last_modified=OLD, date=LATER) as server:
        assert fetch(server.url()) == CONTENT
    assert server.requests[1].headers["if-range"] == OLD


def test_H1_before_the_first_byte_nothing_is_lost() -> None:
    with HttpServer(CONTENT, drops=[0, 0], etag=None, honours_ranges=False) as server:
        assert fetch(server.url()) == CONTENT
    assert server.full_gets == 3


def change_at_second(server: HttpServer, **facts: Any) -> None:
    def change(request: Request) -> None:
        if len(server.requests) == 2:
            for name, value in facts.items():
                setattr(server, name, value)

    server.on_request = change


@pytest.mark.parametrize(
    "facts",
    [
        {"content": CONTENT[::-1], "etag": '"2"'},
        {"content": CONTENT + b"more"},
        {"content": CONTENT[:50]},  # 416
        {"partial": {"ETag": '"2"'}},
        {"partial": {"ETag": ""}},
        {"partial": {"Content-Range": "bytes 99-199999/200000"}},
        {"partial": {"Content-Range": "bytes 100-199999/*"}},
        {"partial": {"Content-Range": "bytes 100-200000/200000"}},
        {"partial": {"Content-Range": ""}},
        {"partial": {"Content-Length": "7"}},
    ],
)
def test_H1_a_file_that_has_changed_meanwhile(facts: dict[str, Any]) -> None:
    with HttpServer(CONTENT, drops=[100]) as server:
        change_at_second(server, **facts)
        with pytest.raises(StartAgain):
            fetch(server.url())


def test_H2_a_body_that_stays_shorter_than_announced_is_an_error() -> None:
    with HttpServer(CONTENT[:-1], lie=1) as server:
        server.partial = {"Content-Range": "bytes 199999-199999/200000", "Content-Length": "1"}
        server.honours_ranges = False
        with pytest.raises((StartAgain, TransferFailed)):
            fetch(server.url())


def test_H2_nothing_comes_three_times() -> None:
    with HttpServer(CONTENT, drops=[0] * 9) as server:
        error = failure(TransferFailed, server.url())
    assert "ended before the content did" in error.cause
    assert len(server.requests) == 3


@pytest.mark.parametrize("keeps_open", [False, True])
def test_H2_more_than_announced(keeps_open: bool) -> None:
    with HttpServer(CONTENT, lie=-1, keeps_open=keeps_open) as server:
        assert "more than it announced" in failure(TransferFailed, server.url()).cause


def test_a_server_that_leaves_the_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER", 0.05)
    with HttpServer(CONTENT, keeps_open=True) as server:
        assert fetch(server.url()) == CONTENT


@pytest.mark.parametrize(
    "lengths", [["200000", "1"], ["200000, 1"], ["many"], ["-1"], ["+5"], [""], ["9" * 30]]
)
def test_H2_no_valid_length(lengths: list[str]) -> None:
    with HttpServer(CONTENT, lengths=lengths) as server:
        assert "Content-Length" in failure(TransferFailed, server.url()).cause
    assert len(server.requests) == 1


def test_the_same_length_twice() -> None:
    with HttpServer(CONTENT, lengths=["200000", "200000, 200000"]) as server:
        assert fetch(server.url()) == CONTENT


def test_an_unknown_transfer_encoding() -> None:
    with HttpServer(CONTENT, headers=[("Transfer-Encoding", "gzip, chunked")]) as server:
        assert "Transfer-Encoding" in failure(TransferFailed, server.url()).cause


def test_H2_a_body_without_any_length() -> None:
    with HttpServer(CONTENT, delimited=True) as server:
        opened = source(server.url())
        assert b"".join(opened.pieces()) == CONTENT
        assert opened.size is None and not opened.is_complete_at_end


# Statuses


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (404, Missing, "HTTP status 404 Not Found"),
        (410, Missing, "HTTP status 410 Gone"),
        (401, NotAllowed, "HTTP status 401 Unauthorized"),
        (403, NotAllowed, "HTTP status 403 Forbidden"),
        (407, NotAllowed, "HTTP status 407 Proxy Authentication Required"),
        (400, OnestorError, "HTTP status 400 Bad Request"),
        (204, OnestorError, "HTTP status 204 No Content"),
        (206, OnestorError, "HTTP status 206 Partial Content"),
        (304, OnestorError, "HTTP status 304 Not Modified"),
        (499, OnestorError, "HTTP status 499"),
    ],
)
def test_H28_statuses_that_last(status: int, kind: type[OnestorError], cause: str) -> None:
    with HttpServer(CONTENT, status=status) as server:
        assert failure(kind, server.url()).cause == cause
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429])
def test_H2_statuses_that_may_pass(status: int) -> None:
    with HttpServer(CONTENT, statuses=[status] * 2) as server:
        assert fetch(server.url()) == CONTENT
    with HttpServer(CONTENT, status=status) as server:
        assert f"HTTP status {status} " in failure(TransferFailed, server.url()).cause
    assert len(server.requests) == 3


def test_the_pauses_between_tries_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http, "PAUSE", 0.5)
    monkeypatch.setattr(time, "sleep", slept.append)
    failure(TransferFailed, f"http://127.0.0.1:{closed_port()}/")
    assert slept == [0.5, 1.0]


def test_H28_nobody_listens() -> None:
    error = failure(TransferFailed, f"http://127.0.0.1:{closed_port()}/x")
    assert error.cause == "Connection refused"


def test_a_server_that_never_answers() -> None:
    with HttpServer(is_silent=True) as server:
        assert failure(TransferFailed, server.url(), stall=0.1).cause == "nothing came for 0.1 s"
    assert len(server.requests) == 3


def test_a_body_that_stalls_is_taken_up_again() -> None:
    gate = threading.Event()
    with HttpServer(CONTENT, gate=gate, gate_at=1000) as server:
        change_at_second(server, gate=None)
        assert fetch(server.url(), stall=0.2) == CONTENT
    assert server.requests[1].headers["range"] == "bytes=1000-"


def test_what_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(3):
                with listener.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(b"SSH-2.0-secret\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        error = failure(TransferFailed, f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        thread.join()
    assert "not valid HTTP" in error.cause and "secret" not in str(error)


# URLs


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (f"/{path}", f"/{path}")
        for path in (
            "a&b",
            "a'b",
            "a(b)c",
            "a%20b",
            "100%25",
            "a%2Fb%2f",
            "x?a=1&b=%26'()",
            "a+b;c",
        )
    ]
    + [
        ("/a b", "/a%20b"),
        ("/ä?ö", "/%C3%A4?%C3%B6"),
        ("/100%", "/100%25"),
        ('/"<>', "/%22%3C%3E"),
        ("/x#part", "/x"),
        ("", "/"),
        ("?q", "/?q"),
        ("/a/../b//c", "/a/../b//c"),
    ],
)
def test_H23_special_characters(path: str, sent: str) -> None:
    with HttpServer(files={sent: CONTENT}) as server:
        opened = source(server.url(path))
        assert b"".join(opened.pieces()) == CONTENT
        assert opened.read_at(5, 5) == CONTENT[5:10]
    assert server.requests[0].path == sent


@pytest.mark.parametrize(
    "url",
    [
        "http://h/a\nb", "http://h/a\r\nX: y", "http://h/\x00", "http://h/\x7f", "http:///x",
        "http://h:port/", "http://h:99999/", "http://[::1/", "http://a..b/", "http://a%0ab/",
        "http://a b/", "http://" + "a" * 70 + "/", "http://u:p@/x",
    ],
)  # fmt: skip
def test_J10_urls_that_cannot_be(url: str) -> None:
    failure(InvalidInput, url)


@pytest.mark.parametrize("scheme", ["ftp", "file", "data", "gopher"])
def test_J10_other_schemes_are_named(scheme: str) -> None:
    assert scheme in failure(InvalidInput, f"{scheme}://h/x").cause


def test_international_hosts_are_encoded() -> None:
    assert http._Target.of("http://Bücher.example/").host == "xn--bcher-kva.example"
    assert http._Target.of("https://[::1]:7/").url == "https://[::1]:7/"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b", "http://h/a/b"),
        ("http://user:secret@h:80/a?token=secret#secret", "http://h:80/a?..."),
        ("https://[::1]:1/a", "https://[::1]:1/a"),
        ("http://user:sec#ret@h/", "http://..."),
        ("http://user:secret@[h/", "http://..."),
        ("http:user:secret@h/", "http:..."),
        ("http://h?secret", "http://h?..."),
        ("nonsense", "nonsense"),
    ],
)
def test_J13_names_without_secrets(url: str, name: str) -> None:
    assert describe_url(url) == name


@pytest.mark.parametrize("status", [404, 403, 500, 418])
def test_J13_errors_tell_no_secrets(status: int) -> None:
    with HttpServer(status=status) as server:
        url = server.url("/x?token=hidden", login="somebody:hidden")
        with pytest.raises(OnestorError) as caught:
            fetch(url)
    text = str(caught.value)
    assert "hidden" not in text and "somebody" not in text and "/x?..." in text


# Logins


@pytest.mark.parametrize(
    ("login", "expected"), [("me:pass", "me:pass"), ("me:p%40s%3As", "me:p@s:s"), ("me", "me:")]
)
def test_a_login_in_the_url(login: str, expected: str) -> None:
    with HttpServer(CONTENT, login=expected) as server:
        assert fetch(server.url(login=login)) == CONTENT
        failure(NotAllowed, server.url())


def test_J13_a_login_never_goes_elsewhere() -> None:
    with HttpServer(CONTENT) as other, HttpServer(CONTENT, login="me:pass") as server:
        server.redirects = {"/image": "/moved", "/moved": other.url()}
        assert fetch(server.url(login="me:pass")) == CONTENT
    assert "authorization" in server.requests[1].headers
    assert "authorization" not in other.requests[0].headers


# Redirects


def test_redirects_are_followed() -> None:
    with HttpServer(CONTENT, drops=[100]) as server:
        server.redirects = {f"/{n}": f"/{n + 1}" for n in range(9)} | {"/9": "/Ã¤?x=%20&y z"}
        assert fetch(server.url("/0")) == CONTENT
    assert server.requests[10].path == "/%C3%A4?x=%20&y%20z"
    assert "range" in server.requests[-1].headers


def test_a_loop_of_redirects() -> None:
    with HttpServer(CONTENT, redirects={"/a": "/b", "/b": "/a"}) as server:
        assert "more than 10 redirects" in failure(OnestorError, server.url("/a")).cause
    assert len(server.requests) == 11


@pytest.mark.parametrize("scheme", ["ftp", "file"])
def test_J10_a_redirect_to_another_scheme(scheme: str) -> None:
    with HttpServer(CONTENT, redirects={"/image": f"{scheme}://user:hidden@h/x"}) as server:
        error = failure(NotAllowed, server.url())
    assert f"scheme {scheme} " in error.cause and "hidden" not in str(error)


@pytest.mark.parametrize("target", ["http://[h/", "http://h:port/", ""])
def test_a_redirect_to_nowhere(target: str) -> None:
    with HttpServer(CONTENT, redirects={"/image": target}) as server:
        failure(OnestorError, server.url())


def test_errors_after_a_redirect_name_the_host_without_secrets() -> None:
    with HttpServer(status=404) as other, HttpServer() as server:
        server.redirects = {"/image": other.url("/x?hidden", login="hidden:hidden")}
        error = failure(Missing, server.url())
    assert error.cause == "HTTP status 404 Not Found (redirected to 127.0.0.1)"


def test_J11_a_redirect_out_of_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HttpServer(CONTENT) as plain, HttpServer(certificate=certificate) as server:
        server.redirects = {"/image": plain.url()}
        assert "from https to http" in failure(NotAllowed, server.url()).cause
        assert plain.requests == []
        assert fetch(server.url(), digested=True) == CONTENT
        assert fetch(server.url(), insecure=True) == CONTENT


def test_a_redirect_into_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HttpServer() as plain, HttpServer(CONTENT, certificate=certificate) as server:
        plain.redirects = {"/image": server.url()}
        assert fetch(plain.url()) == CONTENT


# TLS


def test_J11_a_certificate_that_nobody_trusts(certificate: Path) -> None:
    with HttpServer(CONTENT, certificate=certificate) as server:
        error = failure(NotAllowed, server.url())
        assert "certificate is not trusted" in error.cause and "INSECURE" in error.cause
        assert server.requests == []
        assert fetch(server.url(), insecure=True) == CONTENT


def test_J11_a_trusted_certificate_of_another_host(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HttpServer(CONTENT, certificate=certificate) as server:
        assert fetch(server.url()) == CONTENT
        url = server.url().replace("127.0.0.1", "localhost")
        assert "not trusted" in failure(NotAllowed, url).cause


@pytest.mark.parametrize("position", [0, 1, 100_000, 199_999])
def test_H1_a_dropped_connection_with_tls(certificate: Path, position: int) -> None:
    with HttpServer(CONTENT, certificate=certificate, drops=[position]) as server:
        assert fetch(server.url(), insecure=True) == CONTENT


def test_H2_more_than_announced_with_tls(certificate: Path) -> None:
    with HttpServer(CONTENT, certificate=certificate, lie=-1) as server:
        failure(TransferFailed, server.url(), insecure=True)


# Proxies


def test_H24_a_proxy_is_used_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(CONTENT) as proxy, HttpServer(CONTENT) as server:
        monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{proxy.port}")
        assert fetch("http://images.example/a?b", block=1000) == CONTENT
        assert proxy.requests[0].path == "http://images.example/a?b"
        assert proxy.requests[0].headers["host"] == "images.example"
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cGFzcw=="
        monkeypatch.setenv("no_proxy", "other.example,127.0.0.1")
        assert fetch(server.url()) == CONTENT
    assert len(proxy.requests) == 1
    assert "proxy-authorization" not in server.requests[0].headers


def test_H24_a_proxy_for_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HttpServer() as proxy, HttpServer(CONTENT, certificate=certificate) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert fetch(server.url(login="me:pass")) == CONTENT
        assert proxy.requests[0].method == "CONNECT"
        assert "authorization" not in proxy.requests[0].headers
        assert server.requests[0].path == "/image"


def test_H24_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(OnestorError, match="http_proxy is of a kind that is not supported: socks5"):
        fetch("http://images.example/")


# Rates


def test_a_rate_is_kept() -> None:
    with HttpServer(CONTENT) as server:
        begin = time.monotonic()
        assert fetch(server.url(), rate=400_000, block=20_000) == CONTENT
        assert 0.45 < time.monotonic() - begin < 0.75


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, which only sleeping moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    yield now
    monkeypatch.undo()


def test_a_pace_is_an_average(clock: list[float]) -> None:
    pace = Pace(1000)
    for _ in range(100):
        clock[0] += 0.05  # what the network takes
        pace.wait(100)
    assert clock[0] - 1000 == pytest.approx(10)


def test_a_pace_makes_up_for_little(clock: list[float]) -> None:
    pace = Pace(1000)
    clock[0] += 600
    pace.wait(100)
    begin = clock[0]
    pace.wait(10_000)
    assert clock[0] - begin == pytest.approx(8.1, abs=2)
