"""agent.server: what becomes of an operation's errors; serving is tested in tests/tool."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from onestor_lib.agent import server


def answer_to(
    error: OSError, monkeypatch: pytest.MonkeyPatch, operation: str = "disk.place", **args: Any
) -> dict[str, str]:
    """The error in the answer to a request whose operation fails so."""

    def fail(call: server.Call, **args: Any) -> None:
        raise error

    monkeypatch.setattr(server, "load", lambda name: fail)
    answer = server.Server()._handle({"op": operation, "args": args})
    found: dict[str, str] = answer["error"]
    return found


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ESTALE],
)
@pytest.mark.parametrize("argument", ["path", "temporary"])
def test_K5_an_error_of_a_descriptor_is_told_of_what_we_are_at_work_on(
    monkeypatch: pytest.MonkeyPatch, number: int, argument: str
) -> None:
    error = OSError(number, os.strerror(number))
    found = answer_to(error, monkeypatch, **{argument: "/vm/disk.0"})
    assert (found["step"], found["path"]) == ("disk.place", "/vm/disk.0")


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EPIPE, errno.EAGAIN])
def test_K5_what_is_no_error_of_a_file_names_none(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No memory for a process, too many files, a broken pipe."""
    error = OSError(number, os.strerror(number))
    assert answer_to(error, monkeypatch, path="/vm/disk.0")["path"] == ""


def test_K5_a_file_that_the_error_names_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.EIO, "Input/output error", "/vm/disk.0.base")
    assert answer_to(error, monkeypatch, path="/vm/disk.0")["path"] == "/vm/disk.0.base"
