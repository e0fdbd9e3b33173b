"""agent.transfer between two real processes: what arrives, and what is noticed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import channel, chunks, client, crashpoints, extents, frames, locks, transfer
from onestor_lib.agent.chunks import CHUNK, Manifest
from onestor_lib.agent.errors import (
    HostUnreachable,
    Missing,
    NoSpace,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.version import Version
from tests.tool import placing
from tests.tool.conftest import (
    MB,
    Agents,
    allocated,
    changed_bundle,
    children,
    draw,
    is_alive,
    request,
)
from tests.tool.placing import BULK, RECEIVER
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("payload")

# Stands between sender and receiver: passes AT bytes on, then does what ACTION says.
LINK = """
import os, select, subprocess, sys
at, action = int(sys.argv[1]), sys.argv[2]
receiver = subprocess.Popen(sys.argv[3:], stdin=subprocess.PIPE)
passed = 0
while block := os.read(0, 1 << 16):
    if passed <= at < passed + len(block):
        here = at - passed
        if action == "flip":
            block = block[:here] + bytes([block[here] ^ 1]) + block[here + 1:]
        else:
            receiver.stdin.write(block[:here])
            receiver.stdin.flush()
            if action == "stall":
                sender = select.poll()
                sender.register(0, 0)
                sender.poll()  # until it goes away
            break
    receiver.stdin.write(block)
    receiver.stdin.flush()
    passed += len(block)
receiver.stdin.close()
sys.exit(receiver.wait())
"""

# Notes the largest resident size, in KiB, of the program it runs.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def link(action: str, behind_bundle: int) -> list[str]:
    """A receiver behind a link that goes wrong so many bytes behind the code that is sent first."""
    at = 10 + len(client.payload) + behind_bundle
    return [sys.executable, "-c", LINK, str(at), action, *RECEIVER]


def send(source: Path, target: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Into a file that is there, as a caller of the receiver has made it."""
    target.touch()
    return placing.send(source, target, *arguments, **options)


@pytest.mark.parametrize(
    ("pattern", "tail"),
    [
        ("", b""),
        ("", b"x"),
        ("A", b""),
        ("A0-B", b"tail"),
        ("---", b""),
        ("--A", b""),
        ("AB--", b""),
    ],
)
def test_what_arrives_is_identical_and_keeps_its_holes(
    tmp_path: Path, pattern: str, tail: bytes
) -> None:
    source, target = draw(tmp_path / "source", pattern, tail), tmp_path / "target"
    result = send(source, target)
    assert target.read_bytes() == source.read_bytes()
    data = sum(letter not in "0-" for letter in pattern)
    assert result["size"] == len(pattern) * CHUNK + len(tail)
    assert result["sent"] == data * CHUNK + len(tail), "neither holes nor zeros are sent"
    assert allocated(target) <= data * CHUNK + 8192


def test_A8_equal_content_has_an_equal_digest_whatever_its_holes(tmp_path: Path) -> None:
    digests = {
        send(draw(tmp_path / pattern, pattern), tmp_path / "target")["digest"]
        for pattern in ("A0-B", "A-0B")
    }
    assert len(digests) == 1


def test_A16_a_sparse_terabyte_is_quick(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"end", (1 << 40) - 3)
    begin = time.monotonic()
    assert send(source, tmp_path / "target")["sent"] == CHUNK
    assert time.monotonic() - begin < 5
    with (tmp_path / "target").open("rb") as file:
        assert file.seek(-3, os.SEEK_END) == (1 << 40) - 3
        assert file.read() == b"end"


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    send(draw(tmp_path / "s", "A-"), tmp_path / "t", on_progress=lambda *facts: told.append(facts))
    assert told[-1] == (2 * CHUNK, 2 * CHUNK)


# 80 bytes behind the code lies the request, 300,000 bytes behind it the first chunk.
@pytest.mark.parametrize("behind", [300_000, CHUNK + 300_000, 3 * CHUNK])
def test_A8_one_bit_changed_on_the_way_is_noticed(tmp_path: Path, behind: int) -> None:
    with pytest.raises(TransferFailed, match=r"digest differ|stream is damaged") as failure:
        send(draw(tmp_path / "s", "ABCD"), tmp_path / "t", link("flip", behind))
    assert failure.value.retryable
    assert failure.value.host == "host1"


@pytest.mark.parametrize("behind", [0, 300_000, CHUNK, 3 * CHUNK + 300_000])
def test_A3_a_stream_that_is_cut_is_noticed(tmp_path: Path, behind: int) -> None:
    with pytest.raises((TransferFailed, HostUnreachable)) as failure:
        send(draw(tmp_path / "s", "ABCD"), tmp_path / "t", link("cut", behind))
    assert failure.value.retryable


def test_K8_a_stream_that_stands_still_ends_at_the_limit(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(TransferFailed, match="nothing moved for 1 s"):
        send(draw(tmp_path / "s", "ABCDE"), tmp_path / "t", link("stall", CHUNK), stall=1.0)
    assert time.monotonic() - begin < 15


def test_A19_the_receiver_ends_a_stream_that_stands_still(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.touch()
    with client.AgentClient(client.ProcessStream(RECEIVER), "host1") as receiver:
        receiver.start(client.payload)
        pipe = receiver.stream(
            "transfer.receive", temporary=str(target), size=CHUNK, stall=0.3, manifest="",
            reuse=False, bulk=BULK,
        )  # fmt: skip
        assert frames.read_manifest(pipe, CHUNK, 5.0).digest() == Manifest(CHUNK).digest()
        with pytest.raises(TransferFailed, match="nothing came for 0 s"):
            receiver.result("receive")


def test_K8_zeros_without_end_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent for blocks full of zeros, however long it takes to read them."""
    stall, read_exactly = 0.5, extents.read_exactly

    def slowly(*arguments: int) -> bytes:
        time.sleep(stall / 4)
        return read_exactly(*arguments)

    source = draw(tmp_path / "source", "A" + "0" * 12 + "B" + "0" * 12)
    monkeypatch.setattr(extents, "read_exactly", slowly)
    monkeypatch.setattr(transfer, "_REPORT", stall / 4)
    told: list[tuple[int, int]] = []
    begin = time.monotonic()
    result = send(
        source, tmp_path / "target", stall=stall, on_progress=lambda *facts: told.append(facts)
    )
    assert time.monotonic() - begin > 4 * stall, "each run of zeros took longer than the limit"
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert result["sent"] == 2 * CHUNK
    assert told == sorted(told) and len(told) > 10


def test_K8_without_signs_of_life_those_zeros_would_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above relies on: the limit holds on the other side."""
    read_exactly = extents.read_exactly

    def slowly(*arguments: int) -> bytes:
        time.sleep(0.1)
        return read_exactly(*arguments)

    monkeypatch.setattr(extents, "read_exactly", slowly)
    monkeypatch.setattr(transfer, "_REPORT", 60.0)
    with pytest.raises(TransferFailed, match="nothing came for 0 s"):
        send(draw(tmp_path / "source", "0" * 20), tmp_path / "target", stall=0.4)


def test_signs_of_life_do_not_get_into_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer takes longer than the pause between two signs of life."""
    monkeypatch.setattr(channel, "PULSE", 0.002)
    source = draw(tmp_path / "source", "ABCDEFGH" * 8)
    send(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_a_receiver_at_work_for_longer_than_the_pause_between_reports(tmp_path: Path) -> None:
    """It has nobody to report to: its connection is full of raw bytes."""
    target, data = tmp_path / "t", os.urandom(CHUNK)
    target.touch()
    with client.AgentClient(client.ProcessStream(RECEIVER), "host1") as receiver:
        receiver.start(client.payload)
        pipe = receiver.stream(
            "transfer.receive", temporary=str(target), size=CHUNK, stall=5.0, manifest="",
            reuse=False, bulk=BULK,
        )  # fmt: skip
        frames.read_manifest(pipe, CHUNK, 5.0)
        time.sleep(transfer._REPORT * 1.2)
        frames.write(pipe, b"D", 0, data, timeout=5.0)
        manifest = Manifest(CHUNK)
        manifest[0] = chunks.chunk_digest(data)
        frames.write(pipe, b"E", CHUNK, manifest.digest().encode("ascii"), timeout=5.0)
        assert receiver.result("receive")["digest"] == manifest.digest()
    assert target.read_bytes() == data


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = draw(tmp_path / "s", "AB")

    def change(done: int, total: int) -> None:
        os.utime(source, ns=(1, 1))

    with pytest.raises(TransferFailed, match="was changed while it was read"):
        send(source, tmp_path / "t", on_progress=change)


def test_a_second_try_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """The image was changed during the first try; what is zeros now had data then."""
    target = tmp_path / "t"
    send(draw(tmp_path / "s", "ABC"), target)
    source = draw(tmp_path / "s", "A-0")
    send(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_C1_a_full_disk_is_no_broken_link(tmp_path: Path, small: Path) -> None:
    source = draw(tmp_path / "s", "A" * 40)
    with pytest.raises(NoSpace, match="No space left"):
        send(source, small / "t")


def test_A13_an_image_of_another_version_is_not_sent(tmp_path: Path) -> None:
    """Looked at once more when it is open: it may have been replaced since it was described."""
    source, target = draw(tmp_path / "s", "A"), tmp_path / "t"
    version = Version.of(source.stat())
    assert send(source, target, version=version)["sent"] == CHUNK
    source.unlink()
    draw(source, "B")
    with pytest.raises(TransferFailed, match="was changed since the action began"):
        send(source, target, version=version)
    assert target.read_bytes() == b"A" * CHUNK


def test_missing_files_on_either_side_are_named(tmp_path: Path) -> None:
    source = draw(tmp_path / "s", "A")
    with pytest.raises(Missing, match=f"host1:{tmp_path}/no/t"):
        placing.send(source, tmp_path / "no" / "t")
    with pytest.raises(Missing, match=f"{tmp_path}/missing"):
        transfer.open_source(tmp_path / "missing")


def test_J12_the_receiver_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "t").symlink_to(draw(tmp_path / "victim", "V"))
    with pytest.raises(OnestorError, match="symbolic links"):
        send(draw(tmp_path / "s", "A"), tmp_path / "t")
    assert (tmp_path / "victim").read_bytes() == b"V" * CHUNK


def test_C12_a_receiver_that_cannot_start_says_why_and_between_whom(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo 'no route to host' >&2; exit 255"]
    hop = f"^start the agent from {re.escape(socket.gethostname())} to host1: "
    with pytest.raises(HostUnreachable, match=hop + r"no route to host \(sh: status 255\)$"):
        send(draw(tmp_path / "s", "A"), tmp_path / "t", argv)


@pytest.mark.parametrize("point", ["send.started", "send.half", "send.ended", "receive.started",
                                   "receive.half", "receive.ended"])  # fmt: skip
def test_A3_either_side_killed_and_the_next_try_succeeds(
    agents: Agents, crashed: Callable[[], list[str]], tmp_path: Path, point: str
) -> None:
    source, target = draw(tmp_path / "s", "AB-C"), tmp_path / "t"
    target.touch()
    options: dict[str, Any] = {
        "path": str(source), "argv": list(RECEIVER), "host": "host1", "temporary": str(target),
        "stall": 10.0, "version": None, "manifest": "", "reuse": False, "bulk": BULK,
        "bytes_per_second": 0,
    }  # fmt: skip
    with agents.start(crash_at=point) as sender, pytest.raises(OnestorError) as failure:
        sender.call("transfer.send", **options)
    assert crashed() == [point]
    assert failure.value.retryable and "SIGKILL" in str(failure.value)
    send(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert point in crashpoints.POINTS


def test_A3_the_receiver_ends_with_its_sender(agents: Agents, tmp_path: Path) -> None:
    source, target = draw(tmp_path / "s", "ABCDEFGH"), tmp_path / "t"
    target.touch()
    with agents.start() as sender:
        stream = sender._stream
        assert isinstance(stream, client.ProcessStream)
        pid = stream._process.pid
        request(
            sender, "transfer.send", path=str(source), argv=link("stall", 2 * CHUNK), host="host1",
            temporary=str(target), stall=60.0, version=None, manifest="", reuse=False, bulk=BULK,
            bytes_per_second=0,
        )  # fmt: skip
        wait_until(lambda: any(children(each) for each in children(pid)))
        (proxy,) = children(pid)
        (receiver,) = children(proxy)
    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: not is_alive(receiver))


@pytest.mark.parametrize("at", ["waits", "digests"])
def test_A3_A6_a_receiver_ends_with_its_connection_whatever_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """It does not read its connection then: it must notice all the same."""
    target = tmp_path / "t"
    target.touch()
    if at == "digests":
        os.mkfifo(tmp_path / "begun")
        code = changed_bundle(
            "onestor_lib.agent.transfer",
            (
                "    manifest = Manifest(size)\n    with Pipeline(2) as work:\n",
                f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n"
                "    while True: time.sleep(0.01)\n"
                "    manifest = Manifest(size)\n    with Pipeline(2) as work:\n",
            ),
        )
        monkeypatch.setattr(client, "payload", code)
    stream = client.ProcessStream(RECEIVER)
    pid = stream._process.pid
    with target.open("r+b") as other, contextlib.closing(stream):
        if at == "waits":
            locks.become_writer(other.fileno(), target, 1)
        receiver = client.AgentClient(stream, "host1")
        receiver.start(client.payload)
        receiver._message(
            {
                "op": "transfer.receive",
                "args": {
                    "temporary": str(target), "size": CHUNK, "stall": 600.0, "manifest": "",
                    "reuse": at == "digests", "bulk": BULK,
                },
                "stream": True,
            },
            last=True,
        )  # fmt: skip
        if at == "waits":
            name = str(target)
            wait_until(lambda: name in open_files(pid))
        else:
            (tmp_path / "begun").read_text()
        assert stream._process.stdin
        stream._process.stdin.close()
        assert stream._process.wait(4) == 0, "before it is made to (`ProcessStream`)"


def open_files(pid: int) -> list[str]:
    """What a process has open; what it closes meanwhile is left out."""
    found = []
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(fd.readlink()))
    return found


def test_A5_a_receiver_tells_how_far_it_has_digested(tmp_path: Path) -> None:
    """What lies there is read before the first byte crosses, which may take long."""
    source, target = draw(tmp_path / "s", "AB"), draw(tmp_path / "t", "AB")
    code = changed_bundle("onestor_lib.agent.transfer", ("_REPORT = 0.5", "_REPORT = -1.0"))
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "payload", code)
        result = send(source, target, reuse=True, on_progress=lambda *facts: told.append(facts))
    assert result["sent"] == 0
    assert told[:2] == [(0, 2 * CHUNK), (CHUNK, 2 * CHUNK)]


def test_A8_a_transfer_is_not_held_up_by_its_own_progress(tmp_path: Path) -> None:
    """A message between raw bytes would wait for their end: for ever."""
    source, target = draw(tmp_path / "s", "ABCD"), tmp_path / "t"
    code = changed_bundle("onestor_lib.agent.transfer", ("_REPORT = 0.5", "_REPORT = -1.0"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "payload", code)
        assert send(source, target, stall=3.0)["sent"] == 4 * CHUNK
    assert target.read_bytes() == source.read_bytes()


def test_memory_of_the_receiver_is_bounded(tmp_path: Path) -> None:
    """64 MiB for data, whatever the size (docs/design.md, section 7)."""
    figures = []
    for name, megabytes in (("little", 1), ("much", 256)):
        source, note = tmp_path / "source", tmp_path / "note"
        with source.open("wb") as file:
            block = os.urandom(CHUNK)
            for index in range(0, megabytes, 2):
                os.pwrite(file.fileno(), block, index * MB)
            file.truncate(megabytes * MB)
        result = send(
            source, tmp_path / name, [sys.executable, "-c", MEASURED, str(note), *RECEIVER]
        )
        assert result["sent"] == (megabytes + 1) // 2 * MB
        figures.append(int(note.read_text()))
        (tmp_path / name).unlink()
    assert (figures[1] - figures[0]) << 10 < 64 * MB
