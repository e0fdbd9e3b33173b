"""agent.errors: one line for oned, exit statuses, and classes that cross the connection."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onestor_lib.agent import errors

FAMILY = [errors.OnestorError, *errors.OnestorError.__subclasses__()]


@given(st.text())
@example("- \n-x")
@example("\ud800 from a file name that is not UTF-8")
@example("INFO: 5 x")
@example("- ERROR:WARN:\n-DEBUG: INFO: 5")
@example("\x9b31m a terminal's escape in one character")
def test_K6_one_line_is_one_printable_line_that_oned_shows(text: str) -> None:
    line = errors.one_line(text)
    assert len(line.splitlines()) <= 1
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs")]
    assert not line.startswith(("-", " ", "ERROR:", "WARN:", "INFO:", "DEBUG:"))
    assert len(line) <= errors.MAX_LINE
    line.encode("utf-8")


def test_one_line_keeps_the_beginning_of_a_long_text() -> None:
    assert errors.one_line("x" * 2000) == "x" * 997 + "..."
    assert errors.one_line("a\n\tb\x00 c ") == "a b c"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("INFO: 5 x", "5 x"), ("ERROR:5", "5"), ("-WARN: - DEBUG:\n12 x", "12 x"), ("INFO:", ""),
        ("copy: INFO: 5", "copy: INFO: 5"), ("INFORMATION: 5", "INFORMATION: 5"),
        ("info: 5", "info: 5"), ("FATAL: 5", "FATAL: 5"),
    ],
)  # fmt: skip
def test_trap1_a_severity_of_others_never_leads(text: str, line: str) -> None:
    assert errors.one_line(text) == line


def test_K5_the_line_says_step_host_path_and_cause() -> None:
    error = errors.TransferFailed("send", "broken pipe", host="h1", path="/a")
    assert str(error) == "send h1:/a: broken pipe"
    assert str(errors.Missing("read", "gone", path="/a")) == "read /a: gone"
    assert str(errors.InvalidInput("read", "bad")) == "read: bad"


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_every_class_crosses_the_connection(cls: type[errors.OnestorError]) -> None:
    facts = json.loads(json.dumps(errors.to_json(cls("step", "cause", path="/p"))))
    error = errors.from_json(facts, host="h1")
    assert type(error) is cls
    assert (error.step, error.cause, error.host, error.path) == ("step", "cause", "h1", "/p")
    assert 1 <= cls.exit_code <= 254, "255 means killed to oned"


def test_exit_statuses_tell_the_classes_apart() -> None:
    assert len({cls.exit_code for cls in FAMILY}) == len(FAMILY)


def test_facts_from_another_version_are_an_error_all_the_same() -> None:
    assert type(errors.from_json({"type": "Unheard", "step": "s"})) is errors.OnestorError
    assert errors.from_json({"host": "there"}, host="here").host == "there"


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOENT, errors.Missing),
        (errno.ENOSPC, errors.NoSpace),
        (errno.EDQUOT, errors.NoSpace),
        (errno.EACCES, errors.NotAllowed),
        (errno.EIO, errors.OnestorError),
    ],
)
def test_H28_operating_system_errors_keep_their_cause(
    number: int, cls: type[errors.OnestorError]
) -> None:
    error = errors.from_os_error("copy", OSError(number, "words of the kernel", "/file"))
    assert type(error) is cls
    assert str(error) == "copy /file: words of the kernel"


def test_K5_where_is_for_errors_of_a_descriptor_alone() -> None:
    def place(number: int, *name: object, path: str = "") -> str:
        error = OSError(number, "words of the kernel", *name)
        return errors.from_os_error("copy", error, path=path, where="/at/work").path

    assert place(errno.EIO) == place(errno.ENOSPC) == place(errno.EROFS) == "/at/work"
    assert place(errno.ENOMEM) == place(errno.EMFILE) == place(errno.EPIPE) == ""
    assert place(errno.EIO, "/file") == "/file"
    assert place(errno.EIO, 7) == "/at/work", "the number of a descriptor is no name"
    assert place(errno.EIO, "/file", path="/known") == "/known"


def place_of(work: Callable[[], object]) -> str:
    """The file that the error of a system call is about."""
    with pytest.raises(OSError) as failed:
        work()
    return errors.from_os_error("place", failed.value).path


@pytest.mark.parametrize("make", [os.symlink, os.link, os.rename])
def test_K5_of_two_names_it_is_the_one_that_cannot_be_made(
    tmp_path: Path, make: Callable[[str, str], None]
) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    taken = tmp_path / "taken"
    taken.mkdir()
    nowhere = gone / "new"
    assert place_of(lambda: make(str(there), str(taken))) == str(taken)
    assert place_of(lambda: make(str(there), str(nowhere))) == str(nowhere)
    assert place_of(lambda: make(str(gone), str(nowhere))) == str(nowhere)


@pytest.mark.parametrize("make", [os.link, os.rename])
def test_K5_of_two_names_the_first_may_be_missing(
    tmp_path: Path, make: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    assert place_of(lambda: make(str(gone), str(tmp_path / "new"))) == str(gone)
    monkeypatch.chdir(tmp_path)
    assert place_of(lambda: make("gone", "new")) == "gone"


@pytest.mark.parametrize("target", ["../base", "/datastores/1/gone"])
def test_K5_what_a_symbolic_link_was_to_contain_is_no_file(tmp_path: Path, target: str) -> None:
    link = tmp_path / "gone/disk.0"
    assert place_of(lambda: link.symlink_to(target)) == str(link)
    link.parent.mkdir()
    link.touch()
    assert place_of(lambda: link.symlink_to(target)) == str(link)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("first", ["../base", "/datastores/1/0a1b", "/vm/.disk.0.tmp"])
def test_C8_a_disk_that_fails_has_the_new_name(number: int, first: str) -> None:
    error = OSError(number, "words of the kernel", first, None, "/vm/disk.0")
    assert errors.from_os_error("place", error).path == "/vm/disk.0"


def test_termination_passes_handlers_for_failures() -> None:
    assert not issubclass(errors.Terminated, Exception)
