"""agent.channel: lines and bytes from one pipe, with deadlines."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from onestor_lib.agent import channel, frames
from onestor_lib.agent.channel import ByteSource
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.agent.server import _RawPipe


@pytest.fixture
def pipe() -> Iterator[tuple[ByteSource, int]]:
    read, write = os.pipe()
    yield ByteSource(read), write
    os.close(read)
    os.close(write)


def test_what_was_read_ahead_is_not_lost(pipe: tuple[ByteSource, int]) -> None:
    source, write = pipe
    os.write(write, b"first\n\nthird\nraw bytes\nrest")
    assert [source.read_line(1) for _ in range(3)] == [b"first", b"", b"third"]
    assert source.read_exactly(9, 1) == b"raw bytes"
    os.write(write, b" and more")
    assert source.read_exactly(9, 1) == b"\nrest and"
    assert source.read_exactly(0, 0) == b""


def test_a_message_in_the_place_of_the_first_frame_is_read_as_one(
    pipe: tuple[ByteSource, int],
) -> None:
    source, write = pipe
    os.write(write, b'{"refusal": {"step": "send"}}\nnext\n')
    with pytest.raises(EOFError):
        frames.read(_RawPipe(source, channel.Writer(write)._put), 1)
    assert [source.read_line(1) for _ in range(2)] == [b'{"refusal": {"step": "send"}}', b"next"]


def test_waits_end(pipe: tuple[ByteSource, int]) -> None:
    source, write = pipe
    os.write(write, b"half")
    with pytest.raises(TimeoutError):
        source.read_line(0.05)
    with pytest.raises(TimeoutError):
        source.read_exactly(5, 0.05)


def test_the_end_of_the_stream() -> None:
    for content in (b"", b"half"):
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        with pytest.raises(EOFError):
            ByteSource(read).read_line(1)
        with pytest.raises(EOFError):
            ByteSource(read).read_exactly(5, 1)
        os.close(read)


def test_a_line_without_end(pipe: tuple[ByteSource, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_LINE", 100)
    source, write = pipe
    os.write(write, b"x" * 200)
    with pytest.raises(EOFError, match="without end"):
        source.read_line(1)


@pytest.mark.parametrize("line", [b"", b"text", b"[1]", b"1", b"\xff", b'{"a":'])
def test_lines_that_are_no_message(line: bytes) -> None:
    with pytest.raises(HostUnreachable, match="unexpected line"):
        channel.parse(line)
    assert channel.parse(b'{"op": "x"}') == {"op": "x"}
