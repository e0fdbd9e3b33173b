"""agent.delta: a file arrives whole, and only what is new of it crosses."""

from __future__ import annotations

import os
import queue
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onestor_lib.agent import delta
from onestor_lib.agent.bandwidth import Limit
from onestor_lib.agent.delta import BLOCK
from onestor_lib.agent.errors import OnestorError, TransferFailed

A, B, C, ZERO = (bytes([number]) * BLOCK for number in (1, 2, 3, 0))


class End:
    """One end of a connection in memory."""

    def __init__(self, sends: queue.Queue[bytes], receives: queue.Queue[bytes]) -> None:
        self._sends, self._receives = sends, receives
        self._buffer = bytearray()
        self.damage = b""

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        block = bytes(data)
        if self.damage and self.damage in block:
            block = block.replace(self.damage, b"x" * len(self.damage))
        self._sends.put(block)

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        while len(self._buffer) < count:
            try:
                block = self._receives.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError from None
            if not block:
                raise EOFError
            self._buffer += block
        found = self._buffer[:count]
        del self._buffer[:count]
        return found

    def unread(self, data: bytes | bytearray) -> None:
        self._buffer[:0] = data

    def close(self) -> None:
        self._sends.put(b"")


def ends() -> tuple[End, End]:
    one: queue.Queue[bytes] = queue.Queue()
    two: queue.Queue[bytes] = queue.Queue()
    return End(one, two), End(two, one)


def cross(
    tmp_path: Path, content: bytes, older: bytes | None, *, known: bytes | None = None,
    damage: bytes = b"", cut: bool = False, limit: Limit | None = None,
) -> tuple[bytes, int]:  # fmt: skip
    """What arrives, and how many bytes have crossed for it."""
    source, target, before = (tmp_path / name for name in ("source", "target", "before"))
    source.write_bytes(content)
    target.write_bytes(b"")
    digests = b""
    if older is not None:
        before.write_bytes(older)
        with before.open("rb") as file:
            digests = bytes(delta.digests(file.fileno(), len(older)))
    sender, receiver = ends()
    sender.damage = damage
    failures: list[BaseException] = []

    def send() -> None:
        fd = os.open(source, os.O_RDONLY)
        try:
            if cut:
                return
            delta.send(sender, fd, len(content), stall=5, on_progress=lambda *_: None, limit=limit)
        except (OnestorError, OSError, EOFError, ValueError) as error:
            failures.append(error)
        finally:
            os.close(fd)
            sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        found, received = delta.receive(
            receiver, target, len(content), older=before if older is not None else None,
            older_digests=digests if known is None else known, stall=5,
            on_progress=lambda *_: None, host="host1",
        )  # fmt: skip
    finally:
        receiver.close()
        thread.join()
    with target.open("rb") as file:
        assert found == bytes(delta.digests(file.fileno(), len(content)))
    return target.read_bytes(), received


def test_the_first_time_all_of_it_crosses_but_for_zeros(tmp_path: Path) -> None:
    content = A + ZERO + B + ZERO + b"end"
    assert cross(tmp_path, content, None) == (content, 2 * BLOCK + 3)
    assert (tmp_path / "target").stat().st_blocks * 512 <= 3 * BLOCK


def test_what_has_moved_does_not_cross(tmp_path: Path) -> None:
    """A new cluster in the middle moves all that lie behind it."""
    assert cross(tmp_path, A + C + B, A + B) == (A + C + B, BLOCK)
    assert cross(tmp_path, B + A, A + B) == (B + A, 0)
    assert cross(tmp_path, A, A + B) == (A, 0)


def test_G19_what_the_older_one_is_believed_to_hold_is_looked_at(tmp_path: Path) -> None:
    """It was damaged meanwhile: that block crosses."""
    (tmp_path / "right").write_bytes(A + B)
    with (tmp_path / "right").open("rb") as file:
        known = bytes(delta.digests(file.fileno(), 2 * BLOCK))
    assert cross(tmp_path, A + B, A + C, known=known) == (A + B, BLOCK)
    assert cross(tmp_path, A + B, b"", known=known) == (A + B, 2 * BLOCK)


def test_G19_damage_on_the_way_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match="receive the copy host1:"):
        cross(tmp_path, A + B, None, damage=B)
    with pytest.raises(TransferFailed, match="went away"):
        cross(tmp_path, A, None, cut=True)


def test_K9_what_crosses_keeps_the_rate_of_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: neither zeros nor what the receiver has take any of it."""
    now = [5_000_000_000]  # ns: time that passes only while somebody sleeps
    monkeypatch.setattr("time.monotonic_ns", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.append(now.pop() + round(seconds * 1e9)))
    begin = now[0]
    limit = Limit("host1", 10 * BLOCK, tmp_path)
    content = A + ZERO + B + C + b"end"
    assert cross(tmp_path, content, B, limit=limit) == (content, 2 * BLOCK + 3)
    assert now[0] - begin == pytest.approx(0.2e9, rel=1e-3)


PIECES = st.lists(st.sampled_from([A, B, C, ZERO, b"x" * 5]), max_size=6).map(b"".join)


@settings(deadline=None, max_examples=60)
@given(PIECES, st.none() | PIECES)
def test_anything_arrives_whatever_was_there(
    tmp_path_factory: Any, content: bytes, older: bytes | None
) -> None:
    arrived, received = cross(tmp_path_factory.mktemp("delta"), content, older)
    assert arrived == content and received <= len(content)


def test_many_blocks_cross_in_many_frames(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes
    content = bytearray(700 * BLOCK)
    for index in range(0, 700, 3):
        content[index * BLOCK : index * BLOCK + 16] = noise(16)
    older = bytes(content)
    content[9 * BLOCK] ^= 1
    assert cross(tmp_path, bytes(content), older) == (bytes(content), BLOCK)
