"""frontend.log: what oned's versions make of stderr, and the log file."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import log
from onestor_lib.frontend.log import Log

# How oned from 7.0 on tells a log line, and the VM it belongs to (contract section 1.5, trap 1).
LOG_LINE = re.compile(r"^(ERROR|INFO|WARN|DEBUG):\s+(\d*)\s*")
SEVERITY = st.sampled_from([*log.SEVERITIES, "FATAL", ""])


def make(version: tuple[int, ...] = (7, 4)) -> tuple[Log, io.StringIO]:
    stderr = io.StringIO()
    journal = Log("clone", stderr=stderr)
    journal.version = version
    return journal, stderr


@given(SEVERITY, st.text())
@example("INFO", "12345 bytes")
@example("WARN", "x\nINFO: 12345 bytes\r\nERROR: 1")
@example("INFO", "")
def test_trap1_never_a_digit_behind_a_severity(severity: str, text: str) -> None:
    journal, stderr = make()
    journal.line(severity, text)
    journal.failure(str(OnestorError("copy image", text)))
    other, plain = make()
    other.failure(text)
    assert not LOG_LINE.match(plain.getvalue())
    *lines, last = stderr.getvalue().splitlines()
    assert len(lines) <= 1
    for line in lines:
        found = LOG_LINE.match(line)
        assert found and not found[2]
    assert not LOG_LINE.match(last), "the final line is the message, not a log line"
    assert not last.startswith("-")


def test_7x_gets_log_lines_and_the_final_line() -> None:
    journal, stderr = make()
    journal.info("5 MB sent")
    journal.warn("trying again")
    journal.line("DEBUG", "command")
    journal.failure("copy: failed")
    assert stderr.getvalue() == "INFO: clone: 5 MB sent\nWARN: clone: trying again\ncopy: failed\n"


@pytest.mark.parametrize("version", [(6, 2), (6, 8), (6, 10)])
def test_6x_users_see_nothing_but_the_final_line(version: tuple[int, ...]) -> None:
    journal, stderr = make(version)
    journal.info("5 MB sent")
    journal.failure("copy: failed")
    assert stderr.getvalue() == "copy: failed\n"


@pytest.mark.parametrize("version", [(5, 12), (6, 0)])
def test_the_first_versions_want_markers(version: tuple[int, ...]) -> None:
    journal, stderr = make(version)
    journal.info("5 MB sent")
    journal.failure("copy:\nfailed")
    marked = "ERROR MESSAGE --8<------\ncopy: failed\nERROR MESSAGE ------>8--\n"
    assert stderr.getvalue() == marked


def test_K5_the_file_has_everything(tmp_path: Path) -> None:
    journal, _ = make((6, 10))
    file = tmp_path / "onestor.log"
    journal.write_to(file)
    journal.info("5 MB\nsent")
    journal.line("DEBUG", "first\nsecond")
    journal.failure("copy: failed")
    text = file.read_text()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[\d+\] "
    for line in (
        "INFO clone: 5 MB sent",
        "DEBUG clone: first\n    second",
        "ERROR clone: copy: failed",
    ):
        assert re.search(rf"^{stamp}{line}$", text, re.MULTILINE)


def test_lines_of_others_do_not_look_like_entries(tmp_path: Path) -> None:
    journal, _ = make()
    file = tmp_path / "onestor.log"
    journal.write_to(file)
    entry = "2026-01-01T00:00:00+0000 [1] ERROR clone: made up"
    for separator in ("\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"):
        journal.line("DEBUG", f"said{separator}{entry}")
    journal.line("DEBUG", "")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines if line.startswith("    ")] == [entry] * 6
    assert len([line for line in lines if re.search(r" DEBUG clone: (said)?$", line)]) == 7
    assert len(lines) == 13


def test_trap8_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def broken(fd: int, data: bytes) -> int:
        tried.append(fd)
        raise BrokenPipeError  # as after a cancel

    journal = Log("clone")
    journal.write_to(tmp_path / "missing" / "onestor.log")
    monkeypatch.setattr("os.write", broken)
    journal.info("5 MB sent")
    journal.failure("copy: failed")
    assert tried == [2, 2], "straight to the descriptor: nothing is left to fail at exit"


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.10.0.1\n", (6, 10)), ("7.4.1", (7, 4)), ("", (7, 0)), ("v7", (7, 0)), (None, (7, 0))],
)
def test_version_of_opennebula(text: str | None, version: tuple[int, ...], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "VERSION").write_text(text)
    assert log.opennebula_version(tmp_path) == version


def test_6_10_is_after_6_2() -> None:
    journal, stderr = make((6, 10))
    journal.failure("x")
    assert "8<" not in stderr.getvalue()
