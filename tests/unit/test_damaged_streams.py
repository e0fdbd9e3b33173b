"""Whoever receives raw bytes ends with one error, whatever the other side sends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import delta, frames, intake, moving, transfer, tree
from onestor_lib.agent.chunks import CHUNK, DIGEST
from onestor_lib.agent.delta import BLOCK
from onestor_lib.agent.errors import NoSpace, TransferFailed, to_json
from onestor_lib.agent.sources.remote import RemoteSource

Frame = tuple[bytes, int, bytes]
Receive = Callable[[frames.Pipe], object]

DAMAGED = "the stream is damaged"
DIGESTS = delta.digest_of(b"A" * BLOCK) + delta.digest_of(b"B" * BLOCK)
LISTED: tuple[Frame, Frame] = ((b"L", 0, DIGESTS), (b"G", 0, b""))
GAVE_UP: Frame = (b"X", 0, json.dumps(to_json(NoSpace("send", "full"))).encode("ascii"))


class Said:
    """A connection on which these frames come; then it ends, or falls silent."""

    def __init__(self, *said: Frame, end: type[Exception] = EOFError) -> None:
        self._content, self._end = bytearray(), end
        self.is_open = True
        for kind, offset, data in said:
            frames.write(self, kind, offset, data, timeout=1.0)
        self.is_open = False

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        if self.is_open:
            self._content += data

    def stream(self, operation: str, **arguments: object) -> Said:
        """As of an agent that is asked for it."""
        return self

    def unread(self, data: bytes | bytearray) -> None:
        self._content[:0] = data

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        if len(self._content) < count:
            raise self._end
        block = self._content[:count]
        del self._content[:count]
        return block


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "target"
    file.write_bytes(b"")
    yield file


@pytest.fixture
def copy(target: Path) -> Receive:
    """The receiver of a recovery copy of two blocks."""
    return lambda pipe: delta.receive(
        pipe, target, 2 * BLOCK, older=None, older_digests=b"", stall=1.0,
        on_progress=lambda *_: None, host="host1",
    )  # fmt: skip


@pytest.fixture
def image(target: Path) -> Iterator[Receive]:
    """The receiver of a new image."""
    fd = os.open(target, os.O_RDWR)
    yield lambda pipe: intake.receive(pipe, fd, path=str(target), stall=1.0)
    os.close(fd)


@pytest.fixture
def disk(target: Path) -> Receive:
    """The receiver of a file of a chunk and a half."""

    def receive(pipe: frames.Pipe) -> object:
        with transfer.Receiver(target, size=CHUNK * 3 // 2, stall=1.0, reuse=False) as receiver:
            return receiver.receive(pipe)

    return receive


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ([(b"L", 1, DIGESTS)], DAMAGED),
        ([(b"L", 0, DIGESTS[1:])], DAMAGED),
        ([(b"D", 0, b"A")], DAMAGED),
        ([*LISTED, (b"D", 1, b"A" * BLOCK)], DAMAGED),
        ([*LISTED, (b"D", 2 * BLOCK, b"A" * BLOCK)], DAMAGED),
        ([*LISTED, (b"P", 0, b""), (b"D", 0, b"B" * BLOCK)], transfer.DIFFERENT),
        ([*LISTED, (b"E", 2 * BLOCK, bytes(DIGEST))], transfer.DIFFERENT),
        (LISTED, "the sender went away"),
    ],
)
def test_of_a_recovery_copy(copy: Receive, said: list[Frame], cause: str) -> None:
    with pytest.raises(TransferFailed, match=f"receive the copy host1:.*{cause}"):
        copy(Said(*said))


@pytest.mark.parametrize("part", [b"\1" * 2, b"\1"])
def test_what_a_receiver_asks_for_is_looked_at(target: Path, part: bytes) -> None:
    target.write_bytes(b"A")
    fd = os.open(target, os.O_RDONLY)
    first = 0 if len(part) > 1 else 1  # more blocks than there are, or none that begins there
    with pytest.raises(ValueError, match=DAMAGED):
        delta.send(
            Said((b"W", first, part)), fd, 1, stall=1.0, on_progress=lambda *_: None, limit=None
        )
    os.close(fd)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ([(b"D", 1, b"A")], DAMAGED),
        ([(b"D", 0, b"")], DAMAGED),
        ([(b"Z", 0, b"")], DAMAGED),
        ([(b"D", 0, b"A"), (b"P", 0, b""), (b"E", 1, b"0")], transfer.DIFFERENT),
        ([(b"D", 0, b"A")], "the sender went away"),
    ],
)
def test_of_an_image(image: Receive, said: list[Frame], cause: str) -> None:
    with pytest.raises(TransferFailed, match=f"receive.*{cause}"):
        image(Said(*said))


@pytest.mark.parametrize(
    "frame",
    [
        (b"D", 0, b"A"),
        (b"D", CHUNK, b"A" * CHUNK),
        (b"D", 2 * CHUNK, b"A"),
        (b"D", 1, b"A" * CHUNK),
        (b"Z", 0, b"A"),
        (b"L", 0, b""),
    ],
)
def test_of_a_disk(disk: Receive, frame: Frame) -> None:
    with pytest.raises(TransferFailed, match=DAMAGED):
        disk(Said(frame))


@pytest.mark.parametrize("what", ["copy", "image", "disk"])
def test_silence_and_what_the_sender_met(what: str, request: pytest.FixtureRequest) -> None:
    receive: Receive = request.getfixturevalue(what)
    with pytest.raises(TransferFailed, match="nothing came for 1 s"):
        receive(Said(end=TimeoutError))
    with pytest.raises(NoSpace, match="full"):
        receive(Said(GAVE_UP))


@pytest.mark.parametrize(
    ("said", "error", "cause"),
    [
        ([], TransferFailed, "the sender went away"),
        ([GAVE_UP], NoSpace, "full"),
        ([(b"D", 0, b"A")], TransferFailed, DAMAGED),
    ],
)
def test_of_a_directory(
    tmp_path: Path, said: list[Frame], error: type[Exception], cause: str
) -> None:
    """Behind its last file there is one frame more: until it has come nothing has its name."""
    with pytest.raises(error, match=cause):
        moving._require_end(Said(*said), 1.0)
    with pytest.raises(TransferFailed, match="nothing came for 1 s"):
        moving._require_end(Said(end=TimeoutError), 1.0)


@pytest.mark.parametrize(
    ("said", "error", "cause"),
    [
        ([], TransferFailed, "copy.*: nothing came for 1 s"),
        ([GAVE_UP], NoSpace, "full"),
        ([(b"Z", 0, b"")], TransferFailed, DAMAGED),
        ([(b"D", 1, b"A"), (b"D", 0, b"B")], TransferFailed, DAMAGED),
    ],
)
def test_of_a_source_on_another_machine(
    said: list[Frame], error: type[Exception], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again and again, and says the same each time."""
    monkeypatch.setattr("onestor_lib.agent.sources.remote._PAUSE", 0.0)
    monkeypatch.setattr(RemoteSource, "_connected", lambda self: Said(*said))
    facts: dict[str, Any] = {"host": "host1", "argv": [], "path": "/image", "rules": {}, "block": 1}
    with pytest.raises(error, match=cause):
        list(RemoteSource(facts, step="copy", stall=1.0).pieces())


def test_a_fill_that_gets_nowhere_is_not_followed_for_ever(target: Path) -> None:
    go: Frame = (b"G", 0, b"")
    sender = transfer.Sender(Said(go), stall=0.05, on_progress=lambda *_: None, limit=None)
    with target.open("rb") as file, pytest.raises(TimeoutError):
        sender.follow(file.fileno(), 1, complete=lambda done: done, digest=lambda: "")


@pytest.mark.parametrize("wanted", ["[1]", "[-1]", "[null]", "[0.0]", "1", '{"0": 0}'])
def test_what_is_asked_for_of_a_directory_is_looked_at(tmp_path: Path, wanted: str) -> None:
    item = tree.Item("disk.0", tree.FILE)
    with pytest.raises(TransferFailed, match="asks for what was not offered"):
        moving.send(
            Said((b"P", 0, b""), (b"W", 0, wanted.encode())), tmp_path, [item], stall=1.0,
            on_progress=lambda *_: None, limit=None,
        )  # fmt: skip
