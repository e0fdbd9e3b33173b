"""How the mads and oned read what scripts print, version by version (contract 1.3 to 1.5)."""

from __future__ import annotations

import base64

import pytest

from tests.oned import reply
from tests.oned.reply import LogLine, Reply, Result, UnusableReply

ALL = ["5.12.0.5", "6.0.0.3", "6.2.0", "6.4.0", "6.6.0", "6.8.0", "6.10.0.1", "7.0.1", "7.4.1"]


def read(version: str, stdout: str = "", stderr: str = "", code: int = 0) -> Reply:
    return reply.read(version, "CP", 19, Result("/cp 19", code, stdout, stderr))


@pytest.mark.parametrize("version", ALL)
def test_noise_before_the_answer_wins(version: str) -> None:
    answer = read(version, "downloading...\n/path qcow2\n")
    assert answer.info == "downloading..."
    assert answer.undefined == ("/path qcow2",)


@pytest.mark.parametrize("version", ALL)
def test_silence_is_a_dash(version: str) -> None:
    answer = read(version)
    assert answer.info == "-"
    assert reply.made_source(version, answer) == "-"


MARKED = "INFO: cp: a\nERROR MESSAGE --8<------\nno room left\nERROR MESSAGE ------>8--\n"


@pytest.mark.parametrize(
    ("version", "stderr", "message"),
    [
        ("5.12.0.5", MARKED, "no room left"),
        ("6.0.0.3", MARKED, "no room left"),
        ("6.0.0.3", "no room left\n", ""),
        ("6.2.0", "INFO: cp: a\nno room left\n", "INFO: cp: a no room left"),
        (
            "6.10.0.1",
            MARKED,
            "INFO: cp: a ERROR MESSAGE --8<------ no room left ERROR MESSAGE ------>8--",
        ),
        ("7.0.1", "INFO: cp: a\n no room \nleft\n", "no roomleft"),
        ("7.4.1", "WARNING: old\nWARN: new\nno room left\n", "WARNING: oldno room left"),
        ("6.10.0.1", "- gone\n", ""),
        ("7.4.1", "-gone\n", ""),
    ],
)
def test_error_message(version: str, stderr: str, message: str) -> None:
    answer = read(version, stderr=stderr, code=1)
    assert not answer.success
    assert answer.error == message
    assert answer.failure("Failed") == (f"Failed: {message}" if message else "Failed")


def test_failed_scripts_are_logged_line_by_line() -> None:
    answer = read("6.10.0.1", stderr="ERROR: bad\nplain\nDEBUG: detail\n" + MARKED, code=3)
    assert answer.log == (
        LogLine("I", 19, "Command execution failed (exit code: 3): /cp 19"),
        LogLine("E", 19, "bad"),
        LogLine("I", 19, "plain"),
        LogLine("D", 19, "detail"),
        LogLine("I", 19, "cp: a"),
        LogLine("E", 19, "no room left"),
    )


def test_log_of_successful_scripts_by_version() -> None:
    stderr = "INFO: cp: 1 of 2\nINFO: 12345 bytes\nWARN:  slow\nINFO:none\nplain\n"
    assert read("6.10.0.1", "/path qcow2\n", stderr).log == ()
    assert read("7.0.1", "/path qcow2\n", stderr).log == (
        LogLine("I", -1, "cp: 1 of 2"),
        LogLine("I", 12345, "bytes"),
        LogLine("W", -1, "slow"),
    )


@pytest.mark.parametrize(
    ("version", "source", "kind"),
    [("5.12.0.5", "/path", ""), ("6.0.0.3", "/path", "qcow2"), ("7.4.1", "/path", "qcow2")],
)
def test_cp(version: str, source: str, kind: str) -> None:
    assert reply.source_and_format(version, read(version, "/path qcow2\n")) == (source, kind)


def test_cp_without_format() -> None:
    with pytest.raises(UnusableReply, match="image FORMAT was not returned"):
        reply.source_and_format("6.10.0.1", read("6.10.0.1", "/path\n"))
    assert reply.source_and_format("5.12.0.5", read("5.12.0.5", "/path\n")) == ("/path", "")


@pytest.mark.parametrize(
    ("version", "made", "cloned"),
    [
        ("5.12.0.5", "/path", "/path"),
        ("6.0.0.3", "/path qcow2", "/path qcow2"),
        ("6.4.0", "/path qcow2", "/path qcow2"),
        ("6.6.0", "/path qcow2", "/path"),
        ("7.4.1", "/path qcow2", "/path"),
    ],
)
def test_mkfs_and_clone_by_version(version: str, made: str, cloned: str) -> None:
    answer = read(version, "/path qcow2\n")
    assert reply.made_source(version, answer) == made
    assert reply.cloned_source(version, answer) == cloned


def test_stat() -> None:
    assert reply.size_mb(read("6.10.0.1", "4096\n")) == 4096
    assert reply.size_mb(read("6.10.0.1", "4 GB")) == 4
    for wrong in ("", "4.5", "GB 4"):
        with pytest.raises(UnusableReply):
            reply.size_mb(read("6.10.0.1", wrong))


def test_monitor_is_the_only_answer_of_many_lines() -> None:
    text = "USED_MB=34311\nFREE_MB=69588\nTOTAL_MB=258020\n"
    answer = reply.read("6.10.0.1", "MONITOR", 101, Result("", 0, text, ""), encode=True)
    assert base64.b64decode(answer.info).decode() == text
    assert answer.undefined == ()
    assert reply.monitored(answer) == {"USED_MB": 34311, "FREE_MB": 69588, "TOTAL_MB": 258020}


def test_monitor_with_noise() -> None:
    answer = reply.read("6.10.0.1", "MONITOR", 101, Result("", 0, "hello\n", ""), encode=True)
    with pytest.raises(UnusableReply, match="hello"):
        reply.monitored(answer)
