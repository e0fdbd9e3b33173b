"""agent.frames: what is written can be read, and what is damaged is noticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import errors, frames
from onestor_lib.agent.chunks import CHUNK, DIGEST, Manifest

HEADER = struct.calcsize(">cQI")


class Tube:
    """One direction of a connection, in memory."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        if len(self.content) < count:
            raise EOFError
        block = self.content[:count]
        del self.content[:count]
        return block

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        self.content += data

    def unread(self, data: bytes | bytearray) -> None:
        self.content[:0] = data


def manifest(digests: dict[int, bytes], size: int) -> Manifest:
    made = Manifest(size)
    for index, digest in digests.items():
        made[index] = digest
    return made


FRAME = st.tuples(
    st.sampled_from([b"H", b"G", b"D", b"Z", b"P", b"E", b"X"]),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=200),
)


@given(st.lists(FRAME, max_size=8))
def test_frames_arrive_as_they_were_sent(sent: list[tuple[bytes, int, bytes]]) -> None:
    tube = Tube()
    for kind, offset, data in sent:
        frames.write(tube, kind, offset, data, timeout=1)
    came = [frames.read(tube, 1) for _ in sent]
    assert [(kind, offset, bytes(data)) for kind, offset, data in came] == sent
    assert not tube.content


@given(FRAME, st.data())
def test_A3_a_frame_that_is_cut_is_the_end_of_the_stream(
    frame: tuple[bytes, int, bytes], data: st.DataObject
) -> None:
    whole = Tube()
    frames.write(whole, *frame, timeout=1)
    cut = data.draw(st.integers(0, len(whole.content) - 1))
    with pytest.raises(EOFError):
        frames.read(Tube(bytes(whole.content[:cut])), 1)


def test_a_whole_chunk_is_the_longest_frame() -> None:
    tube = Tube()
    frames.write(tube, b"D", 0, bytes(CHUNK), timeout=1)
    assert len(frames.read(tube, 1)[2]) == CHUNK


@pytest.mark.parametrize("length", [CHUNK + 1, (1 << 32) - 1])
def test_A8_a_frame_too_long_is_damage_and_nothing_is_reserved_for_it(length: int) -> None:
    tube = Tube(struct.pack(">cQI", b"D", 0, length))
    with pytest.raises(ValueError, match="damaged"):
        frames.read(tube, 1)


@pytest.mark.parametrize("line", [b'{"error": {"type": "NoSpace"}}\n', b'\n{"result": null}\n'])
def test_a_message_ends_the_frames_and_is_not_lost(line: bytes) -> None:
    """The other side has left the stream: it says why in its next message."""
    tube = Tube(line)
    for read in (lambda: frames.read(tube, 1), lambda: frames.read_manifest(tube, 1, 1)):
        with pytest.raises(EOFError):
            read()
    assert bytes(tube.content) == line


@given(
    st.dictionaries(st.integers(0, 99), st.binary(min_size=DIGEST, max_size=DIGEST)),
    st.integers(0, CHUNK - 1),
)
def test_a_manifest_crosses(digests: dict[int, bytes], less: int) -> None:
    size = 100 * CHUNK - less
    have, tube = manifest(digests, size), Tube()
    frames.write_manifest(tube, have, 1)
    assert frames.read_manifest(tube, size, 1).to_bytes() == have.to_bytes()
    assert not tube.content


def test_a_manifest_of_many_frames_crosses_and_holes_cost_nothing() -> None:
    at_once = CHUNK // DIGEST
    size = 3 * at_once * CHUNK
    have, tube = manifest({0: b"a" * DIGEST, 3 * at_once - 1: b"z" * DIGEST}, size), Tube()
    frames.write_manifest(tube, have, 1)
    assert len(tube.content) == 2 * (HEADER + CHUNK) + HEADER, "the frame of nothing is left out"
    assert frames.read_manifest(tube, size, 1).digest() == have.digest()


def test_nothing_to_say_is_one_frame() -> None:
    tube = Tube()
    frames.write_manifest(tube, Manifest(1 << 40), 1)
    assert frames.read(tube, 1) == (b"G", 0, bytearray())
    assert not tube.content


@pytest.mark.parametrize(
    ("kind", "first", "digests"),
    [
        (b"H", 0, b"x" * (DIGEST - 1)), (b"H", 0, b"x" * (DIGEST + 1)),
        (b"H", 2, b"x" * DIGEST), (b"H", 1, b"x" * 2 * DIGEST), (b"H", 1 << 63, b"x" * DIGEST),
        (b"D", 0, b"x" * DIGEST), (b"E", 0, b""), (b"X", 0, b"{}"), (b"\0", 0, b""),
    ],
)  # fmt: skip
def test_A8_a_manifest_that_cannot_be_is_damage(kind: bytes, first: int, digests: bytes) -> None:
    tube = Tube()
    frames.write(tube, kind, first, digests, timeout=1)
    frames.write(tube, b"G", 0, timeout=1)
    with pytest.raises(ValueError, match="damaged"):
        frames.read_manifest(tube, 2 * CHUNK, 1)


def test_the_sender_s_error_arrives_as_the_error_it_is() -> None:
    tube = Tube()
    frames.write_error(tube, errors.NoSpace("read", "no room — 'ü'", path="/p"), 1)
    kind, _, data = frames.read(tube, 1)
    found = frames.error_of(data, "r1")
    assert kind == b"X"
    assert (type(found), found.step, found.cause) == (errors.NoSpace, "read", "no room — 'ü'")
    assert (found.host, found.path) == ("r1", "/p")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[1]", b"null", b"12"])
def test_an_error_that_cannot_be_read_is_one_all_the_same(data: bytes) -> None:
    found = frames.error_of(data, "r1")
    assert isinstance(found, errors.TransferFailed)
    assert found.host == "r1" and found.retryable
