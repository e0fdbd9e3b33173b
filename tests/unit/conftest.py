"""What all unit tests share: no processes, no sockets, and inputs that are the same every time."""

from __future__ import annotations

import socket
import subprocess
from typing import NoReturn

import pytest
from hypothesis import settings

settings.register_profile("onestor", database=None, deadline=None, derandomize=True)
settings.load_profile("onestor")


class NotInUnitTests(BaseException):
    """A unit test started a process or a connection; no handler for failures swallows this."""


@pytest.fixture(autouse=True)
def no_processes_and_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise NotInUnitTests(arguments)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda self: None)
    monkeypatch.setattr(socket.socket, "connect", refuse)
