"""Datastore actions as oned runs them, fed by a web server, and with whatever a user may write."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onestor_lib.agent.errors import (
    InvalidInput,
    Missing,
    NotAllowed,
    OnestorError,
    ProgrammerError,
    TransferFailed,
)
from onestor_lib.frontend import message as messages
from tests.http_server import HttpServer, make_certificate
from tests.sampling import one_of
from tests.tool.conftest import MB, Oned, draw, listing, qcow2
from tests.tool.test_boundary import FrontEnd, fe, one_line
from tests.waiting import wait_until

__all__ = ["fe"]  # a fixture

CONTENT = random.Random(4).randbytes(200_000)


@pytest.fixture
def nothing_new(fe: FrontEnd) -> Iterator[None]:
    yield
    assert listing(fe.images) == []


def stored(fe: FrontEnd, url: str, template: str = "", **image: str) -> bytes:
    """What `cp` has made of a URL."""
    done = fe.run("datastore", "cp", "4", stdin=fe.message(template, ID="4", PATH=url, **image))
    assert done.returncode == 0, done.stderr
    path, image_format = done.stdout.split()
    assert image_format == "raw"
    return Path(path).read_bytes()


def refused(
    fe: FrontEnd, url: str, cls: type[OnestorError], template: str = "", action: str = "cp"
) -> str:
    """The one line of an action that fails."""
    message = fe.message(template, ID="4", PATH=url)
    return one_line(fe.run("datastore", action, "4", stdin=message), cls)


BREAKS = [
    (kind, at)
    for kind in ("ranges", "no ranges", "no validator", "compressed")
    for at in (0, 1, 65_535, 100_000, 199_999)
]


@pytest.mark.fault
@pytest.mark.parametrize(("kind", "at"), one_of(4, BREAKS))
def test_H1_a_connection_that_breaks_anywhere(fe: FrontEnd, at: int, kind: str) -> None:
    content = gzip.compress(CONTENT) if kind == "compressed" else CONTENT
    with HttpServer(content, drops=[at]) as server:
        server.honours_ranges = kind != "no ranges"
        if kind == "no validator":
            server.etag = None
        assert stored(fe, server.url()) == CONTENT


@pytest.mark.parametrize("lie", [-1, 1, -100_000, 100_000])
def test_H2_a_server_that_lies_about_the_length(fe: FrontEnd, nothing_new: None, lie: int) -> None:
    with HttpServer(CONTENT, lie=lie) as server:
        refused(fe, server.url(), TransferFailed)


def test_H2_no_length_at_all(fe: FrontEnd) -> None:
    with HttpServer(CONTENT, delimited=True) as server:
        assert "give its SHA256" in refused(fe, server.url(), TransferFailed)
        assert listing(fe.images) == []
        server.content = gzip.compress(CONTENT)  # may be the first of several members
        assert "give its SHA256" in refused(fe, server.url(), TransferFailed)


@pytest.mark.parametrize("digest", ["MD5", "SHA1", "SHA256", "SHA512"])
def test_H4_digests_of_what_was_received(fe: FrontEnd, digest: str) -> None:
    packed = gzip.compress(CONTENT)
    right = hashlib.new(digest, packed).hexdigest()
    with HttpServer(packed) as server:
        for value, status in ((right, 0), ("0" * len(right), 1)):
            text = base64.b64decode(fe.message(ID="4", PATH=server.url())).decode()
            template = f"<TEMPLATE><{digest}>{value}</{digest}></TEMPLATE></IMAGE>"
            message = base64.b64encode(text.replace("</IMAGE>", template).encode()).decode()
            done = fe.run("datastore", "cp", "4", stdin=message)
            assert done.returncode == status, done.stderr
            assert not status or f"{digest} is {right}" in done.stderr
    assert len(listing(fe.images)) == 2


def test_H14_one_request_for_one_import(fe: FrontEnd) -> None:
    with HttpServer(CONTENT) as server:
        assert stored(fe, server.url()) == CONTENT
        assert [request.is_full_get for request in server.requests] == [True]


def test_a_slow_server(fe: FrontEnd) -> None:
    """All but the end comes; what comes in a while does not count as lost."""
    gate = threading.Event()
    with HttpServer(CONTENT, gate=gate, gate_at=150_000) as server:
        message = fe.message(ID="4", PATH=server.url())
        process = fe.start("datastore", "cp", "4")
        answer: list[str] = []
        thread = threading.Thread(target=lambda: answer.extend(process.communicate(message)))
        thread.start()
        wait_until(lambda: server.requests)
        gate.set()
        thread.join()
    assert process.returncode == 0 and Path(answer[0].split()[0]).read_bytes() == CONTENT


def test_H12_a_server_that_never_answers(fe: FrontEnd, nothing_new: None) -> None:
    fe.configure("datastore", 'STALL_TIMEOUT="1"\nSTAT_TIMEOUT="2"')
    with HttpServer(is_silent=True) as server:
        assert "no answer within 2 s" in refused(fe, server.url(), TransferFailed, action="stat")
        assert "nothing came for 1 s" in refused(fe, server.url(), TransferFailed)


@pytest.mark.parametrize("action", ["stat", "cp"])
def test_J11_a_certificate_nobody_trusts(fe: FrontEnd, tmp_path: Path, action: str) -> None:
    insecure = "<INSECURE>YES</INSECURE>"
    with HttpServer(CONTENT, certificate=make_certificate(tmp_path)) as server:
        assert "INSECURE" in refused(fe, server.url(), NotAllowed, action=action)
        assert listing(fe.images) == []
        message = fe.message(insecure, ID="4", PATH=server.url())
        assert fe.run("datastore", action, "4", stdin=message).returncode == 0


@pytest.mark.parametrize("action", ["stat", "cp"])
def test_H28_J13_what_is_not_there(fe: FrontEnd, nothing_new: None, action: str) -> None:
    with HttpServer(status=404) as server:
        url = server.url("/a?token=hidden", login="user:hidden")
        line = refused(fe, url, Missing, action=action)
    assert "/a?...: HTTP status 404 Not Found" in line
    assert "hidden" not in line + fe.log.read_text()


@pytest.mark.parametrize("scheme", ["ftp", "s3", "dict", "gopher", "json"])
@pytest.mark.parametrize("action", ["stat", "cp"])
def test_J10_other_schemes(fe: FrontEnd, nothing_new: None, scheme: str, action: str) -> None:
    assert f"type {scheme}:" in refused(fe, f"{scheme}://h/x", InvalidInput, action=action)


def test_H10_stat_over_http(fe: FrontEnd, tmp_path: Path) -> None:
    """Never all of it: a few small pieces tell (known failure H13: and no HEAD)."""
    disk = qcow2(tmp_path / "disk", "A" + "-" * 76).read_bytes()
    with HttpServer(files={"/disk": disk, "/disk.gz": gzip.compress(disk)}) as server:
        for path in ("/disk", "/disk.gz"):
            message = fe.message(PATH=server.url(path))
            assert fe.run("datastore", "stat", "1", stdin=message).stdout == "77\n"
        assert not [request for request in server.requests if request.is_full_get]
        assert {request.method for request in server.requests} == {"GET"}


def test_K15_H3_a_terminated_import(fe: FrontEnd, nothing_new: None) -> None:
    gate = threading.Event()
    with HttpServer(bytes(64) + CONTENT * 20, gate=gate, gate_at=3 * MB) as server:
        process = fe.start("datastore", "cp", "4")
        assert process.stdin
        process.stdin.write(fe.message(ID="4", PATH=server.url()))
        process.stdin.close()
        wait_until(lambda: [name for name in listing(fe.images) if name.endswith(".tmp")])
        process.terminate()
        assert process.wait(10) == 143
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        wait_until(lambda: listing(fe.images) == [])
        gate.set()


@pytest.mark.parametrize("size", [1 << 20, 4 << 20])
def test_K3_a_large_message(fe: FrontEnd, size: int) -> None:
    """4 MiB in base64 on stdin; the kernel takes up to 128 KiB as one argument."""
    file = draw(fe.incoming / "file", "A")
    ids = "<ID>123456</ID>" * (size * 3 // 4 // 15 - 200)
    message = fe.message(f"<IMAGES>{ids}</IMAGES>", PATH=str(file))
    assert size * 0.95 < len(message) <= size
    assert fe.run("datastore", "stat", "1", stdin=message).stdout == "1\n"
    small = fe.message("<X>" + "x" * 90_000 + "</X>", PATH=str(file))
    assert fe.run("datastore", "stat", small, "1").stdout == "1\n"


ACTIONS = ("cp", "stat", "mkfs", "clone", "rm", "monitor", "export", "snap_delete", "snap_revert",
           "snap_flatten")  # fmt: skip
ELEMENTS = (
    "IMAGE/ID", "IMAGE/PATH", "IMAGE/SOURCE", "IMAGE/SIZE", "IMAGE/FORMAT", "IMAGE/FS",
    "IMAGE/TYPE", "IMAGE/TARGET_SNAPSHOT", "IMAGE/TEMPLATE/MD5", "IMAGE/TEMPLATE/SHA256",
    "IMAGE/TEMPLATE/DRIVER", "IMAGE/TEMPLATE/SIZE", "DATASTORE/ID", "DATASTORE/TYPE",
    "DATASTORE/TEMPLATE/DRIVER", "DATASTORE/TEMPLATE/CONVERT", "DATASTORE/TEMPLATE/SPARSE",
    "DATASTORE/TEMPLATE/RESTRICTED_DIRS", "DATASTORE/TEMPLATE/SAFE_DIRS",
    "DATASTORE/TEMPLATE/NO_DECOMPRESS", "DATASTORE/TEMPLATE/LIMIT_TRANSFER_BW",
    "DATASTORE/TEMPLATE/STAGING_DIR", "DATASTORE/TEMPLATE/INSECURE",
    "DATASTORE/TEMPLATE/REQUIRE_MOUNT", "DATASTORE/TEMPLATE/CHECK_FREE_SPACE",
)  # fmt: skip
HOSTILE = st.one_of(
    st.sampled_from([
        "", "-1", "--help", "-oProxyCommand=touch CANARY", "$(touch CANARY)", "`touch CANARY`",
        "'; touch CANARY; '", "\"; touch CANARY; \"", "| touch CANARY", "a\ntouch CANARY",
        "../../CANARY", "/CANARY", "/..", "/", "//", ".", "0", "123", "4294967296", "1" * 30,
        "raw", "qcow2", "save_as", "swap", "ext4", "ext4 -F", "YES", "no", "GOOD", "GOOD/../GOOD",
        "IMAGE", "IMAGE/", "IMAGE.snap/0", "json:{}", "file:///etc/passwd", "ssh://a;b:/c",
        "http://", "http://[", "0" * 32, "1K", "\u202e\u0663", "\U0001f4be",
    ]),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=40),
)  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_J1_J2_J4_whatever_a_message_says(fe: FrontEnd, oned: Oned, action: str) -> None:
    """Never a traceback, never a shell, never a file outside of the datastore."""
    draw(fe.incoming / "good", "A")
    fe.log.touch()
    before = _files(fe)

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(ELEMENTS), HOSTILE, max_size=6))
    def tried(changes: dict[str, str]) -> None:
        image = draw(fe.images / "0a1b", "B")
        done = fe.run("datastore", action, "4", stdin=_message(fe, changes, image))
        assert 0 <= done.returncode < 255 and done.returncode != ProgrammerError.exit_code, changes
        assert "Traceback" not in done.stdout + done.stderr + fe.log.read_text()
        if done.returncode:
            assert done.stdout == ""
        assert _files(fe) == before, changes
        for name in listing(fe.images):
            if (fe.images / name).is_file():
                (fe.images / name).unlink()

    tried()


def _files(fe: FrontEnd) -> list[str]:
    """Everything but the datastore: there, nothing may appear or go."""
    inside = str(fe.images.relative_to(fe.root))
    return [name for name in listing(fe.root) if not name.startswith(inside)]


def _message(fe: FrontEnd, changes: dict[str, str], image: Path) -> str:
    values = {
        "IMAGE/ID": "4", "IMAGE/PATH": "GOOD", "IMAGE/SOURCE": "IMAGE", "IMAGE/SIZE": "2",
        "IMAGE/FORMAT": "raw", "DATASTORE/ID": "1", "DATASTORE/TYPE": "0",
        "DATASTORE/BASE_PATH": str(fe.images), "DATASTORE/TEMPLATE/SAFE_DIRS": str(fe.incoming),
        **changes,
    }  # fmt: skip
    tree: dict[str, list[str]] = {"IMAGE": [], "DATASTORE": []}
    inner: dict[str, list[str]] = {"IMAGE": [], "DATASTORE": []}
    for path, value in values.items():
        text = value.replace("GOOD", str(fe.incoming / "good")).replace("IMAGE", str(image))
        text = escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "?", text))
        whose, *rest = path.split("/")
        (inner if len(rest) > 1 else tree)[whose].append(f"<{rest[-1]}>{text}</{rest[-1]}>")
    body = "".join(
        f"<{whose}>{''.join(tree[whose])}<TEMPLATE>{''.join(inner[whose])}</TEMPLATE></{whose}>"
        for whose in tree
    )
    text = f"<DS_DRIVER_ACTION_DATA>{body}</DS_DRIVER_ACTION_DATA>"
    return base64.b64encode(text.encode()).decode()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_J4_messages_that_are_none(noise: bytes, is_encoded: bool) -> None:
    """In this process, as starting one takes longer than all of it."""
    data = base64.b64encode(noise) if is_encoded else noise
    with pytest.raises(InvalidInput):
        messages.read(["4"], io.BytesIO(data))
