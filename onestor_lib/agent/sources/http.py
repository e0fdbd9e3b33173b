"""The content of a file on a web server.

A connection that breaks is taken up where it broke, by a range request that a change of the file
makes void. Only GET is used, because presigned URLs refuse anything else; a transfer without
trouble is a single request.
"""

from __future__ import annotations

import base64
import contextlib
import email.message
import email.utils
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import onestor_lib
from onestor_lib.agent import urls
from onestor_lib.agent.bandwidth import Pace
from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    NotAllowed,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.sources import StartAgain

TRIES = 3  # in a row without a new byte
PAUSE = 0.5  # seconds before the next try; twice as long before the one after it
LINGER = 0.5  # seconds to look whether more comes than was announced
REDIRECTS = 10

_BLOCK = 1 << 20
_LONGEST = 1.0  # seconds until what has come is given out, be it less than a block
_PORTS = {"http": 80, "https": 443}
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429})  # as with 5xx, a later try may succeed
_CUT = "the connection ended before the content did"
_MORE = "the server sends more than it announced"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SAFE_IN_PATH = "/%!$&'()*+,;=:@[]"
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes +([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_NO_RANGE = re.compile(r"bytes +\*/([0-9]{1,18})", re.IGNORECASE)


class HttpSource:
    """A file that a web server gives; see :class:`onestor_lib.agent.sources.Source`.

    ``description``: ``url``; ``insecure`` (certificates are not looked at); ``block``, bytes;
    ``rate``, bytes a second or 0; ``digested`` (a digest of the content will be compared).
    """

    def __init__(self, description: Mapping[str, Any], *, step: str, stall: float) -> None:
        """Raises :class:`InvalidInput` for a URL that cannot be requested."""
        self.name = urls.describe(str(description["url"]))
        self._step, self._stall = step, stall
        self._insecure = bool(description.get("insecure"))
        self._may_leave_tls = self._insecure or bool(description.get("digested"))
        self._rate = int(description.get("rate") or 0)
        block = int(description.get("block") or _BLOCK)
        self._block = min(block, self._rate) if self._rate else block
        try:
            self._target = _Target.of(str(description["url"]))
        except _Trouble as trouble:
            raise self._error(trouble) from None
        self._opener = _opener(insecure=self._insecure)
        self._response: http.client.HTTPResponse | None = None
        self._size: int | None = None
        self._is_marked = True
        self._begun: _Answer | None = None

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def is_complete_at_end(self) -> bool:
        return self._is_marked or self._size is not None

    def prepare(self) -> None:
        """Begin with the content, so that the size is known; :meth:`pieces` goes on with it."""
        try:
            self._begun = self._begin()
        except _Trouble:  # met again, or not, by pieces()
            self.close()

    def pieces(self) -> Iterator[bytes]:
        """The content in order; raises :class:`OnestorError` and :class:`StartAgain`."""
        first: _Answer | None = None
        position = failures = 0
        pace = Pace(self._rate) if self._rate else None
        while True:
            begin = position
            try:
                if first is None or position == 0:
                    begun, self._begun = self._begun, None
                    answer = first = begun or self._begin()
                else:
                    answer = self._continue(first, position)
                for block in self._blocks(answer, pace):
                    position += len(block)
                    yield block
                self._check_end(position)
                return
            except _Trouble as trouble:
                failures = 0 if position > begin else failures + 1
                self.close()
                self._pause(failures, trouble)
            finally:
                self.close()

    def read_at(self, offset: int, count: int) -> bytes | None:
        """``count`` bytes at ``offset`` (fewer at the end); None when the server cannot do that."""
        failures = 0
        while count > 0:
            try:
                return self._read_at(offset, count)
            except _Trouble as trouble:
                failures += 1
                self.close()
                self._pause(failures, trouble)
            finally:
                self.close()
        return b""

    def close(self) -> None:
        response, self._response = self._response, None
        if response:
            with contextlib.suppress(OSError):
                response.close()

    def _begin(self) -> _Answer:
        """The whole content from its begin."""
        answer = self._get({})
        self._learn(answer)
        return answer

    def _learn(self, whole: _Answer) -> None:
        self._size = whole.length
        self._is_marked = whole.is_chunked or whole.length is not None

    def _continue(self, first: _Answer, position: int) -> _Answer:
        """What comes from ``position`` on of the content that began with ``first``."""
        validator = first.validator
        if validator is None:
            raise StartAgain("the server has nothing that tells whether the file has changed")
        answer = self._get({"Range": f"bytes={position}-", "If-Range": validator})
        total = self._size
        found = answer.range
        if found and total is None:
            total = found.total
        if not found or total is None or found.total != total or found.start != position:
            raise StartAgain("the server does not continue where the connection broke")
        if not answer.is_sane or not answer.is_of(first):
            raise StartAgain("the file has changed on the server")
        self._size = total
        return answer

    def _blocks(self, answer: _Answer, pace: Pace | None) -> Iterator[bytes]:
        """The content of ``answer``; what came before a connection broke is not lost."""
        parts: list[bytes] = []
        count, since = 0, time.monotonic()
        broken: _Trouble | None = None
        try:
            for part in answer.parts(self._block):
                parts.append(part)
                count += len(part)
                if pace:
                    pace.wait(len(part))
                if count >= self._block or time.monotonic() - since >= _LONGEST:
                    yield b"".join(parts)
                    parts, count, since = [], 0, time.monotonic()
        except _Trouble as trouble:
            broken = trouble
        if parts:
            yield b"".join(parts)
        if broken:
            raise broken

    def _check_end(self, position: int) -> None:
        if self._size is not None and position > self._size:
            raise _Trouble(_MORE, TransferFailed)
        if self._size is not None and position < self._size:
            raise _Trouble(_CUT)

    def _read_at(self, offset: int, count: int) -> bytes | None:
        answer = self._get({"Range": f"bytes={offset}-{offset + count - 1}"})
        if answer.status == 416:
            self._size = answer.total_without_range
            return b""
        if answer.status == 200:
            self._learn(answer)
            return answer.read(count) if offset == 0 else None
        found = answer.range
        if found is None or found.start != offset or not answer.is_sane:
            raise _Trouble("the server sends another part than the requested one", TransferFailed)
        content = answer.read(count)
        if found.total is not None:
            self._size = found.total
            if len(content) < min(count, found.total - offset):
                raise _Trouble(_CUT)
        return content

    def _get(self, headers: Mapping[str, str]) -> _Answer:
        """The answer to a request with ``headers``, wherever the server redirects it to."""
        target = self._target
        for _ in range(REDIRECTS + 1):
            response = self._send(target, headers)
            if response.status not in _REDIRECTED:
                break
            self.close()
            target = self._redirected(target, response)
        else:
            raise _Trouble(f"more than {REDIRECTS} redirects", OnestorError)
        expected = (200, 206, 416) if "Range" in headers else (200,)
        if response.status not in expected:
            raise self._elsewhere(_refusal(response.status), target)
        return _Answer(response, self._stall)

    def _send(self, target: _Target, more: Mapping[str, str]) -> _Response:
        headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"onestor/{onestor_lib.__version__}",
            **more,
        }
        login = target.login
        if not login and target.origin == self._target.origin:
            login = self._target.login
        if login:
            headers["Authorization"] = login
        request = urllib.request.Request(target.url, headers=headers, method="GET")
        try:
            response = self._opener.open(request, timeout=self._stall)
        except (OSError, http.client.HTTPException) as error:
            raise self._elsewhere(_connection_trouble(error, self._stall), target) from None
        if not isinstance(response, _Response):
            raise _Trouble("the proxy that the environment names is not an HTTP one", OnestorError)
        self._response = response
        return response

    def _redirected(self, target: _Target, response: http.client.HTTPResponse) -> _Target:
        location = response.headers.get("Location")
        if not location:
            raise _Trouble(f"{_status_text(response.status)} without a Location", OnestorError)
        try:
            url = urllib.parse.urljoin(target.url, location)
        except ValueError:
            raise _Trouble("a redirect to an invalid URL", OnestorError) from None
        # http.client has read the header as Latin-1; what was meant are the bytes.
        following = _Target.of(url.encode("latin-1", "replace").decode("utf-8", "surrogateescape"),
                               redirect=True)  # fmt: skip
        if (target.scheme, following.scheme) == ("https", "http") and not self._may_leave_tls:
            cause = (
                "the server redirects from https to http, which is followed only"
                " when a digest is given or with INSECURE"
            )
            raise _Trouble(cause, NotAllowed)
        return following

    def _elsewhere(self, trouble: _Trouble, target: _Target) -> _Trouble:
        if target.origin == self._target.origin:
            return trouble
        return _Trouble(f"{trouble.cause} (redirected to {target.host})", trouble.kind)

    def _pause(self, failures: int, trouble: _Trouble) -> None:
        """Wait for the next try; raises the error when there is none."""
        if trouble.kind is not None or failures >= TRIES:
            raise self._error(trouble) from None
        time.sleep(PAUSE * max(1, failures))

    def _error(self, trouble: _Trouble) -> OnestorError:
        return (trouble.kind or TransferFailed)(self._step, trouble.cause, path=self.name)


class _Trouble(Exception):
    """What went wrong; ``kind`` is the error it is, None when another try may succeed."""

    def __init__(self, cause: str, kind: type[OnestorError] | None = None) -> None:
        super().__init__(cause)
        self.cause, self.kind = cause, kind


class _Target(NamedTuple):
    """What is requested: ``url`` is pure ASCII, without user and fragment."""

    url: str
    scheme: str
    host: str
    port: int
    login: str  # the value of the Authorization header

    @property
    def origin(self) -> tuple[str, str, int]:
        return (self.scheme, self.host, self.port)

    @classmethod
    def of(cls, url: str, *, redirect: bool = False) -> _Target:
        what = "a redirect to an invalid URL" if redirect else "the URL is invalid"
        wrong = OnestorError if redirect else InvalidInput
        if _CONTROL.search(url):
            raise _Trouble(f"{what}: it contains control characters", InvalidInput)
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:  # its text would show parts of the URL
            raise _Trouble(f"{what}: host or port", wrong) from None
        if parts.scheme not in _PORTS:
            prefix = "a redirect: " if redirect else ""
            cause = f"{prefix}the scheme {parts.scheme or '(none)'} is not supported"
            raise _Trouble(cause, NotAllowed if redirect else InvalidInput)
        host = _ascii_host(parts.hostname or "")
        if host is None:
            raise _Trouble(f"{what}: no valid host", wrong)
        place = f"[{host}]" if ":" in host else host
        if port is not None:
            place += f":{port}"
        path = _encoded(parts.path, _SAFE_IN_PATH) or "/"
        if parts.query:
            path += "?" + _encoded(parts.query, _SAFE_IN_PATH + "?")
        return cls(
            f"{parts.scheme}://{place}{path}",
            parts.scheme,
            host,
            _PORTS[parts.scheme] if port is None else port,
            _basic(parts.netloc),
        )


def _encoded(text: str, safe: str) -> str:
    """``text`` with only those characters percent-encoded that must be."""
    return urllib.parse.quote(_BARE_PERCENT.sub("%25", text), safe, "utf-8", "surrogateescape")


def _ascii_host(host: str) -> str | None:
    """``host`` as it is looked up; None when it is no host name or address."""
    if ":" not in host:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    return host.lower() if _HOST.fullmatch(host) else None


def _basic(netloc: str) -> str:
    """The Authorization header for the user and password before the host, if there are any."""
    userinfo, at, _ = netloc.rpartition("@")
    if not at:
        return ""
    user, _, password = userinfo.partition(":")
    pair = urllib.parse.unquote_to_bytes(user) + b":" + urllib.parse.unquote_to_bytes(password)
    return "Basic " + base64.b64encode(pair).decode("ascii")


class _Range(NamedTuple):
    """A Content-Range: ``end`` is its last byte's position, ``total`` None when not told."""

    start: int
    end: int
    total: int | None


class _Answer:
    """A response whose content is wanted.

    ``length`` is how many bytes it will have, None when that is not announced.
    """

    def __init__(self, response: _Response, stall: float) -> None:
        self._response, self._stall = response, stall
        headers = response.headers
        self.status = response.status
        self.is_chunked = _is_chunked(response)
        self._announced = None if self.is_chunked else _content_length(headers)
        self.range = _range(headers) if self.status == 206 else None
        self.length = self._announced
        if self.length is None and self.range and not self.is_chunked:
            self.length = self.range.end - self.range.start + 1
        self._etag = headers.get("ETag")
        self._modified = headers.get("Last-Modified")
        self._date = headers.get("Date")

    @property
    def is_sane(self) -> bool:
        """Whether its range can be, and is as long as the content announced."""
        if self.range is None:
            return False
        start, end, total = self.range
        if end < start or (total is not None and end >= total):
            return False
        return self._announced in (None, end - start + 1)

    @property
    def total_without_range(self) -> int | None:
        """The length of the file as a refusal (416) tells it."""
        found = _NO_RANGE.fullmatch(self._response.headers.get("Content-Range", "").strip())
        return int(found[1]) if found else None

    @property
    def validator(self) -> str | None:
        """What a range request may name to get this content or none (RFC 9110, 13.1.5)."""
        if self._etag and _STRONG_ETAG.fullmatch(self._etag):
            return self._etag
        try:
            modified = email.utils.parsedate_to_datetime(self._modified or "")
            date = email.utils.parsedate_to_datetime(self._date or "")
            is_strong = date - modified >= timedelta(seconds=1)
        except (TypeError, ValueError):
            return None
        return self._modified if is_strong else None  # a younger file may change again unseen

    def is_of(self, first: _Answer) -> bool:
        """Whether it belongs to the same content as ``first`` does."""
        if self._etag is None and first.validator == first._etag:
            return False
        pairs = ((self._etag, first._etag), (self._modified, first._modified))
        return all(mine is None or mine == other for mine, other in pairs)

    def read(self, count: int) -> bytes:
        """The first ``count`` bytes, fewer if there are not so many."""
        found = b""
        for part in self.parts(count):
            found += part
            if len(found) >= count:
                break
        return found[:count]

    def parts(self, at_once: int) -> Iterator[bytes]:
        """The content as it comes; raises :class:`_Trouble` unless it comes as announced."""
        left = self.length
        while left is None or left > 0:
            part = self._read(at_once if left is None else min(at_once, left))
            if not part:
                if left is None:
                    return
                raise _Trouble(_CUT)
            if left is not None:
                left -= len(part)
            yield part
        self._expect_no_more()

    def _read(self, count: int) -> bytes:
        try:
            if self.is_chunked:
                return self._response.read1(count)
            return self._response.fp.read1(count)
        except (OSError, http.client.HTTPException) as error:
            raise _connection_trouble(error, self._stall) from None

    def _expect_no_more(self) -> None:
        more = b""
        with contextlib.suppress(OSError):
            self._response.connection.settimeout(LINGER)
            more = self._response.fp.read1(1)
        if more:
            raise _Trouble(_MORE, TransferFailed)


def _is_chunked(response: http.client.HTTPResponse) -> bool:
    codings = ", ".join(response.headers.get_all("Transfer-Encoding", [])).strip().lower()
    if codings in ("", "identity"):
        return False
    if codings != "chunked" or not response.chunked:
        raise _Trouble("the server uses an unknown Transfer-Encoding", TransferFailed)
    return True


def _content_length(headers: email.message.Message) -> int | None:
    values = {
        value.strip()
        for line in headers.get_all("Content-Length", [])
        for value in str(line).split(",")
    }
    if not values:
        return None
    if len(values) > 1 or not all(_NUMBER.fullmatch(value) for value in values):
        raise _Trouble("the server announces no valid Content-Length", TransferFailed)
    return int(values.pop())


def _range(headers: email.message.Message) -> _Range | None:
    found = _RANGE.fullmatch(str(headers.get("Content-Range", "")).strip())
    if not found:
        return None
    return _Range(int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3]))


def _refusal(status: int) -> _Trouble:
    kind: type[OnestorError] | None = OnestorError
    if status in (404, 410):
        kind = Missing
    elif status in (401, 403, 407):
        kind = NotAllowed
    elif status >= 500 or status in _PASSING:
        kind = None
    return _Trouble(_status_text(status), kind)


def _status_text(status: int) -> str:
    """The standard's words: a server's own may repeat what it was asked."""
    return f"HTTP status {status} {http.client.responses.get(status, '')}".rstrip()


def _connection_trouble(error: Exception, stall: float) -> _Trouble:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        cause = (
            f"the server's certificate is not trusted ({error.verify_message.rstrip('.')});"
            " the attribute INSECURE turns this check off"
        )
        return _Trouble(cause, NotAllowed)
    if isinstance(error, socket.timeout):
        return _Trouble(f"nothing came for {stall:g} s")
    if isinstance(error, http.client.IncompleteRead):
        return _Trouble(_CUT)
    if isinstance(error, http.client.RemoteDisconnected):
        return _Trouble("the server ended the connection without an answer")
    if isinstance(error, http.client.HTTPException):
        return _Trouble(f"the answer is not valid HTTP ({type(error).__name__})")
    words = error.strerror if isinstance(error, OSError) else ""
    return _Trouble(words or str(error) or type(error).__name__)


class _Response(http.client.HTTPResponse):
    """Remembers the connection, whose time limit would be out of reach else."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.connection = sock


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _TlsConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _HttpsHandler(urllib.request.AbstractHTTPHandler):
    """Without urllib's own, which reads all CAs for any URL in newer versions of Python."""

    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, *, insecure: bool) -> None:
        super().__init__()
        self._tls: ssl.SSLContext | None = None
        self._insecure = insecure

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req, context=self._context())

    def _context(self) -> ssl.SSLContext:
        """Made when it is first needed: reading all CAs takes a while."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            if self._insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls


def _opener(*, insecure: bool) -> urllib.request.OpenerDirector:
    """Opens http and https and nothing else; redirects and all statuses are left to the caller."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler(_proxies()))
    opener.add_handler(_HttpHandler())
    opener.add_handler(_HttpsHandler(insecure=insecure))
    return opener


def _proxies() -> dict[str, str]:
    """The proxies of the environment; one of another kind is an error, not a server of http."""
    found = urllib.request.getproxies()
    for scheme in ("http", "https"):
        kind, colon, _ = found.get(scheme, "").partition("://")
        if colon and kind not in ("http", "https"):
            cause = f"the proxy in {scheme}_proxy is of a kind that is not supported: {kind}"
            raise OnestorError("read the environment", cause)
    return found
