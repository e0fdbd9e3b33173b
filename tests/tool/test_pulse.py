"""Signs of life must never get between the bytes of a stream."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from onestor_lib.agent import channel, client
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.frontend import bundle, openssh
from tests.tool.placing import send


def test_A8_a_transfer_that_takes_longer_than_the_pulse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of pulses would go out while these chunks are sent: not one may."""
    monkeypatch.setattr(channel, "PULSE", 0.0001)
    monkeypatch.setattr(client, "payload", bundle.build())
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(CHUNK) * 64)
    target.touch()
    sent = send(source, target)
    assert sent["sent"] == 64 * CHUNK
    assert target.read_bytes() == source.read_bytes()


def test_K7_signs_of_life_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system that an agent looks at may hang while the agent itself lives."""
    monkeypatch.setattr(channel, "PULSE", 0.01)
    lives = """
import sys, time
print("onestor agent\\n{}", flush=True)
while True:
    print(flush=True)
    time.sleep(0.01)
"""
    stream = client.ProcessStream([sys.executable, "-c", lives])
    with client.AgentClient(stream, "host01", patience=0.5) as agent:
        agent.start(b"")
        with pytest.raises(HostUnreachable, match="it lives, but has done nothing"):
            agent.call("cache.entries")


def test_no_pulse_after_the_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor's number is given to the next file that is opened."""
    monkeypatch.setattr(channel, "PULSE", 0.0001)
    agent = client.AgentClient(client.ProcessStream(openssh.local_agent_argv()), "here")
    agent.start(bundle.build())
    before = threading.active_count()
    agent.close()
    reader, writer = os.pipe()
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(5)
        assert threading.active_count() < before
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)
