"""agent.filter: what a program's end leaves, and whose error the reader sees."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed, OnestorError, TransferFailed
from onestor_lib.agent.filter import Filter
from tests.tool.conftest import MB, children, is_alive
from tests.waiting import wait_until

UNPACK = ["xz", "-dc"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    processes, threads = set(children(os.getpid())), set(threading.enumerate())
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    wait_until(lambda: set(children(os.getpid())) <= processes)
    wait_until(lambda: set(threading.enumerate()) <= threads)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


def start(argv: list[str], blocks: Iterator[bytes], **options: float) -> Filter:
    return Filter(argv, blocks, step="filter", stall=options.get("stall", 5.0))


def broken(*blocks: bytes) -> Iterator[bytes]:
    yield from blocks
    raise OnestorError("download", "gone")


def test_K7_stragglers_of_a_program_that_ended_well_end_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >{note}; cat"
    with start(["sh", "-c", script], iter([b"abc"])) as program:
        assert program.read(10) == b"abc"
    wait_until(lambda: not is_alive(int(note.read_text())))


def test_K2_a_failure_is_repeated_not_taken_for_the_end() -> None:
    with start(["xz", "-dc"], iter([b"\xfd7zXZ\x00 damaged, or cut off"])) as program:
        for _ in range(2):
            with pytest.raises(CommandFailed, match=r"xz: .*\(status 1\)"):
                program.read(1)


def test_H2_the_last_words_of_a_program_name_the_cause() -> None:
    with (
        start(UNPACK, iter([b"\xfd7zXZ\x00"])) as program,
        pytest.raises(CommandFailed, match="Unexpected end of input"),
    ):
        program.read(1)


def test_H2_the_source_s_error_wins_over_the_end_and_over_silence() -> None:
    with (
        start(["cat"], broken(b"abc")) as program,
        pytest.raises(OnestorError, match=r"^download: gone"),
    ):
        program.read(10)
    silent = ["sh", "-c", "cat >/dev/null; sleep 1000"]
    with (
        start(silent, broken(b"abc"), stall=0.5) as program,
        pytest.raises(OnestorError, match=r"^download: gone"),
    ):
        program.read(10)


def test_a_program_that_needs_no_more_is_no_error() -> None:
    with start(["head", "-c", "5"], iter([b"x" * MB] * 50)) as program:
        assert program.read(10) == b"xxxxx"
        assert program.read(10) == b""


def test_K7_a_program_that_closed_its_output_but_does_not_end() -> None:
    argv = ["sh", "-c", "exec >&-; sleep 1000"]
    begin = time.monotonic()
    with (
        start(argv, iter([b"x"]), stall=0.5) as program,
        pytest.raises(TransferFailed, match="sh does not end"),
    ):
        program.read(1)
    assert time.monotonic() - begin < 10


def test_K7_a_program_that_is_deaf_to_SIGTERM(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LINGER", 0.3)
    note = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ >{note}; echo x; while :; do sleep 1; done"
    with start(["sh", "-c", script], iter([])) as program:
        assert program.read(2) == b"x\n"
    assert not is_alive(int(note.read_text()))


def test_a_slow_source_is_not_the_program_s_fault() -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(0.4)
            yield b"x"

    with start(["tail", "-c", "4"], slowly(), stall=1.0) as program:
        assert program.read(10) == b"xxxx"


def test_J15_limits_are_a_failure() -> None:
    limits = process.Limits(cpu_seconds=1)
    argv = ["sh", "-c", "while :; do :; done"]
    with (
        Filter(argv, iter([]), step="filter", stall=20.0, limits=limits) as program,
        pytest.raises(CommandFailed, match=r"killed by SIG(XCPU|KILL)"),
    ):
        program.read(1)


class TestFilter:
    def filter(self, argv: list[str], blocks: list[bytes] | None = None) -> Filter:
        return Filter(argv, iter(blocks or []), step="filter", stall=5.0)

    def test_what_comes_out(self) -> None:
        with self.filter(["tr", "a", "b"], [b"aaa"] * 100_000) as program:
            assert program.read(5) == b"bbbbb"
            assert len(program.read(1 << 20)) == 300_000 - 5
            assert program.read(1) == b""

    def test_K4_a_program_that_complains_much(self) -> None:
        argv = ["sh", "-c", "yes error | head -c 1000000 >&2; cat; exit 3"]
        with self.filter(argv, [b"x" * MB]) as program:
            assert len(program.read(MB)) == MB
            with pytest.raises(CommandFailed, match=r"sh: error; error; error? \(status 3\)"):
                program.read(1)

    def test_K2_a_killed_program(self) -> None:
        argv = ["sh", "-c", "head -c 10; kill -9 $$"]
        with (
            self.filter(argv, [b"x" * MB]) as program,
            pytest.raises(CommandFailed, match="killed by SIGKILL"),
        ):
            program.read(MB)

    def test_K7_a_program_that_hangs(self) -> None:
        program = Filter(["sleep", "1000"], iter([]), step="x", stall=0.5)
        with program, pytest.raises(TransferFailed, match="nothing came through sleep"):
            program.read(1)

    def test_K12_a_missing_program_is_named(self) -> None:
        with pytest.raises(CommandFailed, match="no-such-program is not installed"):
            self.filter(["no-such-program"])
