"""Content on its way to another machine, or from one: what breaks, changes, or takes its time."""

from __future__ import annotations

import hashlib
import lzma
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onestor_lib.agent import bandwidth, intake, sources
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import (
    HostUnreachable,
    NoSpace,
    NotAllowed,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.sources import Piece, StartAgain, Zeros
from onestor_lib.agent.sources.remote import RemoteSource
from tests.tool.conftest import MB, allocated, draw, listing
from tests.tool.importing import Importing
from tests.tool.placing import RECEIVER

pytestmark = pytest.mark.usefixtures("payload")


class Pieces:
    """A source of given pieces; an event among them is waited for."""

    is_complete_at_end = True
    size: int | None = None
    name = "pieces"

    def __init__(self, *pieces: Piece | threading.Event | BaseException) -> None:
        self._pieces = pieces

    def prepare(self) -> None:
        """Nothing is known."""

    def pieces(self) -> Iterator[Piece]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, threading.Event):
                piece.wait()
            else:
                yield piece

    def read_at(self, offset: int, count: int) -> bytes | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


def asked(**changes: Any) -> intake.Asked:
    facts = {"digests": {}, "decompress": True, "inspect": True, "step": "copy", "stall": 1.0}
    return intake.Asked(**{**facts, **changes})


def send(source: sources.Source, target: Path, **changes: Any) -> dict[str, Any]:
    """Bring content to another agent of this machine."""
    target.touch()
    result: dict[str, Any] = intake.onto_host(
        source, RECEIVER, "host1", asked(**changes), lambda done, total: None,
        temporary=str(target), manifest="", needed=0,
    )  # fmt: skip
    return result


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)


@pytest.fixture
def remote(importing: Importing) -> Importing:
    """Its source is read by an agent of another machine."""
    draw(importing.file, "A0-B", b"tail")
    importing.source = {
        "kind": "ssh", "name": "ssh://h:/x", "host": "h", "argv": RECEIVER, "rate": 0,
        "path": str(importing.file), "rules": importing.rules, "block": MB,
    }  # fmt: skip
    return importing


def test_holes_cross_no_link(tmp_path: Path) -> None:
    source = Pieces(b"a" * 10, Zeros(5 * MB), b"b" * MB, Zeros(1 << 40), b"end")
    found = send(source, tmp_path / "target")
    assert found["size"] == 10 + 5 * MB + MB + (1 << 40) + 3
    assert found["sent"] < 5 * MB and allocated(tmp_path / "target") < 5 * MB
    with (tmp_path / "target").open("rb") as file:
        assert file.read(11) == b"a" * 10 + b"\0"
        file.seek(-4, 2)
        assert file.read() == b"\0end"


def test_holes_count_for_digests(tmp_path: Path) -> None:
    source = Pieces(b"a" * CHUNK, Zeros(CHUNK + 7), b"end")
    content = b"a" * CHUNK + bytes(CHUNK + 7) + b"end"
    send(source, tmp_path / "target", digests={"sha256": hashlib.sha256(content).hexdigest()})
    assert (tmp_path / "target").read_bytes() == content
    with pytest.raises(OnestorError, match="SHA256 is"):
        send(source, tmp_path / "other", digests={"sha256": hashlib.sha256(b"aend").hexdigest()})


def test_holes_count_for_what_is_compressed(tmp_path: Path) -> None:
    """Padding behind a stream of .xz; what was cut off there is noticed."""
    packed = lzma.compress(b"content")
    assert send(Pieces(packed, Zeros(CHUNK + 4)), tmp_path / "target")["size"] == 7
    with pytest.raises(OnestorError):
        send(Pieces(packed[:-8], Zeros(CHUNK + 4)), tmp_path / "other")


def test_less_than_was_announced(tmp_path: Path) -> None:
    source = Pieces(b"abc")
    source.size = 4
    with pytest.raises(TransferFailed, match="copy pieces: 3 of 4 bytes have come"):
        send(source, tmp_path / "target")


def test_K8_a_receiver_waits_as_long_as_the_sender_lives(tmp_path: Path) -> None:
    """Nothing but zeros for three times as long as nothing at all may come."""
    pause = threading.Event()
    threading.Timer(3.0, pause.set).start()
    found = send(Pieces(b"a" * CHUNK, bytes(CHUNK), pause, b"b"), tmp_path / "target")
    assert found["size"] == 2 * CHUNK + 1


def test_A3_an_error_of_the_source_is_the_one_that_is_told(tmp_path: Path) -> None:
    source = Pieces(b"a" * CHUNK * 3, OnestorError("download", "gone"))
    with pytest.raises(OnestorError, match="download: gone"):
        send(source, tmp_path / "target")


def test_A3_a_receiver_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(OnestorError, match="target"):
        intake.onto_host(
            Pieces(b"a" * CHUNK * 40), RECEIVER, "host1", asked(), lambda done, total: None,
            temporary=str(tmp_path / "target"), manifest="", needed=0,
        )  # fmt: skip


def test_A3_a_host_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match=r"from .* to host1"):
        intake.onto_host(
            Pieces(b"a"), ["false"], "host1", asked(), lambda done, total: None,
            temporary=str(tmp_path / "target"), manifest="", needed=0,
        )  # fmt: skip


def test_H4_a_wrong_digest_on_the_way_to_a_bridge(tmp_path: Path) -> None:
    with pytest.raises(OnestorError, match=r"MD5 is .*, expected 0"):
        send(Pieces(b"a"), tmp_path / "target", digests={"md5": "0" * 32})


def test_C8_room_is_asked_for_first(small: Path, importing: Importing) -> None:
    with pytest.raises(NoSpace, match="30 MB needed"):
        intake.onto_host(
            Pieces(b"a"), RECEIVER, "host1", asked(), lambda done, total: None,
            temporary=str(small / "target"), manifest="", needed=30 * MB,
        )  # fmt: skip


class TestRemote:
    def test_content_and_size(self, remote: Importing) -> None:
        assert remote.measure() == 4 * MB + 4
        assert remote.run() == "raw"
        assert remote.image.read_bytes() == remote.file.read_bytes()
        assert allocated(remote.image) < 4 * MB

    def test_J8_its_rules_are_those_of_here(self, remote: Importing) -> None:
        remote.source["path"] = "/etc/passwd"
        for work in (remote.measure, remote.run):
            with pytest.raises(NotAllowed, match="RESTRICTED_DIRS"):
                work()
        assert listing(remote.datastore) == []

    def open(self, remote: Importing) -> RemoteSource:
        return RemoteSource(remote.description, step="copy", stall=5.0)

    def test_K9_LIMIT_TRANSFER_BW(self, remote: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of what crosses: a hole takes no time."""
        now = [1000.0]  # of the pace alone: it passes only while that sleeps
        clock = SimpleNamespace(
            monotonic=lambda: now[0],
            sleep=lambda seconds: now.append(now.pop() + seconds),
        )
        monkeypatch.setattr(bandwidth, "time", clock)
        draw(remote.file, "A--B", b"tail")
        remote.source["rate"] = MB // 4
        content = b"".join(
            bytes(int(piece)) if isinstance(piece, Zeros) else piece
            for piece in self.open(remote).pieces()
        )
        assert content == remote.file.read_bytes()
        assert now[0] - 1000 == pytest.approx(8, rel=1e-3)

    def test_A3_a_connection_that_breaks_goes_on(
        self, remote: Importing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onestor_lib.agent.sources.remote._PAUSE", 0.0)
        source = self.open(remote)
        content = b""
        for piece in source.pieces():
            content += bytes(int(piece)) if isinstance(piece, Zeros) else piece
            source.close()  # the next frame finds no connection
        assert content == remote.file.read_bytes()

    def test_J9_another_file_of_the_same_size(
        self, remote: Importing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onestor_lib.agent.sources.remote._PAUSE", 0.0)
        source = self.open(remote)
        pieces = source.pieces()
        next(pieces)
        source.close()
        other = draw(remote.incoming / "other", "C0-D", b"tail")
        other.replace(remote.file)
        with pytest.raises(StartAgain):
            list(pieces)
        assert remote.run() == "raw"
        assert remote.image.read_bytes()[:1] == b"C"

    def test_K8_a_machine_that_never_answers(self, remote: Importing) -> None:
        remote.source["argv"] = ["false"]
        with pytest.raises((HostUnreachable, TransferFailed)):
            list(self.open(remote).pieces())
