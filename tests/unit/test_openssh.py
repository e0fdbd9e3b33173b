"""frontend.openssh: the ssh-agent that timers and people use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onestor_lib.frontend import openssh

NAME = "SSH_AUTH_SOCK"


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the service of OpenNebula's ssh-agent leaves; there is no other agent."""
    monkeypatch.setenv(NAME, "/of/a/session")  # so that the test's own comes back
    monkeypatch.delenv(NAME)
    file = tmp_path / "ssh-agent.env"
    monkeypatch.setattr(openssh, "_AGENT", file)
    return file


def test_C12_a_timer_finds_the_ssh_agent_of_oned(note: Path) -> None:
    note.write_text("SSH_AGENT_PID=1\nSSH_AUTH_SOCK=/var/run/one/ssh-agent.sock\n")
    openssh.find_agent()
    assert os.environ[NAME] == "/var/run/one/ssh-agent.sock"


def test_C12_an_ssh_agent_that_is_there_already_is_used(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note.write_text("SSH_AUTH_SOCK=/var/run/one/ssh-agent.sock\n")
    monkeypatch.setenv(NAME, "/of/a/session")
    openssh.find_agent()
    assert os.environ[NAME] == "/of/a/session"


@pytest.mark.parametrize("text", [None, "", "SSH_AGENT_PID=1\n", "SSH_AUTH_SOCK=\n"])
def test_where_there_is_no_ssh_agent_none_is_named(note: Path, text: str | None) -> None:
    """OpenSSH takes an empty name for one."""
    if text is not None:
        note.write_text(text)
    openssh.find_agent()
    assert NAME not in os.environ
