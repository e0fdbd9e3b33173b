"""agent.transfer: whose a received file is. What crosses between processes: tests/tool."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from onestor_lib.agent import frames, transfer
from onestor_lib.agent.errors import LockTimeout, NoSpace, TransferFailed

CONTENT = b"what was received"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "part"
    path.write_bytes(b"")
    return path


def receiver(part: Path, *, stall: float = 0.0, reuse: bool = False) -> transfer.Receiver:
    return transfer.Receiver(part, size=len(CONTENT), stall=stall, reuse=reuse)


def receive(part: Path) -> dict[str, int]:
    """Let a receiver fill the part; what it says of it."""
    with receiver(part) as first:
        part.write_bytes(CONTENT)
        return first.written()


def test_what_was_received_is_claimed(part: Path) -> None:
    written = receive(part)
    with transfer.claimed(part, written, timeout=0):
        part.rename(part.with_name("published"))
    assert part.with_name("published").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["content", "size", "replaced", "emptied"])
def test_A2_what_was_written_to_again_is_refused(part: Path, change: str) -> None:
    """At once: the clock of files is coarser than the time between two system calls."""
    written = receive(part)
    if change == "replaced":
        part.rename(part.with_name("other"))
        part.write_bytes(CONTENT)
    elif change == "emptied":
        with receiver(part):
            pass  # a receiver of an earlier try, which has waited for the one above to end
    else:
        part.write_bytes(CONTENT[::-1] if change == "content" else CONTENT + b"x")
    with (
        pytest.raises(TransferFailed, match=f"{part}: the file was written to again"),
        transfer.claimed(part, written, timeout=0),
    ):
        pytest.fail("it was claimed")


def test_A2_the_time_of_a_complete_file_is_finer_than_the_clock_of_files(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a write within the same few milliseconds would not change its version."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_234_567_890_123_456_789)
    written = receive(part)
    assert written["mtime_ns"] == part.stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_A6_nobody_writes_to_what_is_claimed(part: Path) -> None:
    written = receive(part)
    busy = pytest.raises(LockTimeout, match="an earlier transfer has not ended after 0 s")
    with transfer.claimed(part, written, timeout=0), busy, receiver(part):
        pass
    assert part.read_bytes() == CONTENT


def test_A6_a_receiver_of_an_earlier_try_cannot_empty_what_is_published(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has opened the part and waits; when it is its turn the part has another name."""
    written = receive(part)
    met: list[Exception] = []
    waits = threading.Event()
    sleep = time.sleep

    def sleep_and_tell(seconds: float) -> None:
        waits.set()
        sleep(seconds)

    def come_late() -> None:
        try:
            with receiver(part, stall=20.0):
                pass
        except Exception as error:  # noqa: BLE001 - looked at below
            met.append(error)

    monkeypatch.setattr(time, "sleep", sleep_and_tell)
    stale = threading.Thread(target=come_late)
    with transfer.claimed(part, written, timeout=0):
        stale.start()
        assert waits.wait(10)
        part.rename(part.with_name("published"))
    stale.join()
    assert [type(error) for error in met] == [FileNotFoundError]
    assert part.with_name("published").read_bytes() == CONTENT


class GivenUp:
    """A connection whose other end is gone; what that has said last can still be read."""

    def __init__(self) -> None:
        self.said, self.is_open = bytearray(), True

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        if not self.is_open:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.said += data

    def unread(self, data: bytes | bytearray) -> None:
        self.said[:0] = data

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        block = self.said[:count]
        del self.said[:count]
        if len(block) < count:
            raise EOFError
        return block


def test_A3_a_sender_that_has_gone_before_it_was_asked(part: Path) -> None:
    """A broken link, which may be better next time, unless it has given another reason."""
    pipe = GivenUp()
    pipe.is_open = False
    with receiver(part) as gone, pytest.raises(TransferFailed, match="the sender went away"):
        gone.receive(pipe)
    pipe.is_open = True
    frames.write_error(pipe, NoSpace("send", "full"), 1.0)
    pipe.is_open = False
    with receiver(part) as gone, pytest.raises(NoSpace, match="full"):
        gone.receive(pipe)


def test_what_is_told_of_is_how_far_an_earlier_try_has_been_digested(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait as long as that goes on (A5)."""
    monkeypatch.setattr(transfer, "_REPORT", -1.0)
    told: list[tuple[int, int]] = []
    part.write_bytes(CONTENT)
    with transfer.Receiver(
        part,
        size=len(CONTENT),
        stall=0.0,
        reuse=True,
        on_progress=lambda *facts: told.append(facts),
    ) as found:
        assert os.path.getsize(part) == found.manifest.size
    assert told == [(0, len(CONTENT))]
