"""agent.process: results in words. Real programs: tests/tool."""

from __future__ import annotations

import pytest

from onestor_lib.agent import process
from onestor_lib.agent.errors import CommandFailed
from onestor_lib.agent.process import Result


def result(status: int = 0, stderr: bytes = b"", *, timed_out: bool = False) -> Result:
    return Result(("qemu-img", "info", "a b"), status, b"", stderr, timed_out, 7.4)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (result(1), "qemu-img: exit status 1"),
        (result(-9), "qemu-img: killed by SIGKILL"),
        (result(-40), "qemu-img: killed by signal 40"),
        (result(-15, b"x", timed_out=True), "qemu-img: x (timed out after 7 s)"),
        (result(1, b"1\n 2\n\xff3 \n4\n\n"), "qemu-img: 2; \ufffd3; 4 (exit status 1)"),
    ],
)
def test_K6_the_reason_in_words(found: Result, reason: str) -> None:
    assert not found.ok
    assert found.reason == reason
    with pytest.raises(CommandFailed) as failure:
        found.check("inspect", path="/i")
    assert str(failure.value) == f"inspect /i: {reason}"


def test_signals_by_name_or_number() -> None:
    assert process.signal_name(15) == "SIGTERM"
    assert process.signal_name(40) == "signal 40"


def test_K6_the_last_lines_hold_the_cause() -> None:
    assert process.last_lines(b"1\n2\n\n 3 \r\n4\xff\n\n") == "; 3; 4\ufffd"
    assert process.last_lines(bytearray(b"one")) == "one"
    assert process.last_lines(b"\n \n") == ""


def test_success() -> None:
    assert result().check("inspect") is not None and result().ok
    assert str(result()) == "qemu-img info 'a b'"


def test_K12_the_search_path_keeps_its_order() -> None:
    directories = process.search_path("/usr/bin::/opt").split(":")
    assert directories[:2] == ["/usr/bin", "/opt"]
    assert {"/sbin", "/usr/sbin"} <= set(directories) and "" not in directories
    assert len(set(directories)) == len(directories)
