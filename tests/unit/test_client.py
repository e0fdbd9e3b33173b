"""agent.client: what the other side may say, or not say, without end. Real agents: tests/tool."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import repeat

import pytest

from onestor_lib.agent import channel
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable


class Says:
    """A connection on which these blocks come, one each hundredth of a second; then silence."""

    def __init__(self, said: Iterable[bytes]) -> None:
        self._said = iter(said)

    def send(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        """Nobody listens."""

    def receive(self, timeout: float) -> bytes:
        time.sleep(0.01)
        for block in self._said:
            return block
        raise TimeoutError

    def last_words(self) -> str:
        return "gone"

    def close(self) -> None:
        """Nothing is open."""


PROGRESS = b'{"progress": [5, 10]}\n'
LOG = b'{"log": ["INFO", "still here"]}\n'


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (repeat(PROGRESS), "it lives, but has done nothing"),
        (repeat(LOG), "it lives, but has done nothing"),
        ([], "no sign of life"),
    ],
)
def test_who_does_not_get_on_is_given_up(
    said: Iterable[bytes], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SILENCE", 0.15)
    with (
        AgentClient(Says(said), "host1", patience=0.1) as agent,
        pytest.raises(HostUnreachable, match=f"x host1: {cause}"),
    ):
        agent.call("x")


def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_LINE", 100)
    with (
        AgentClient(Says(repeat(b"x" * 60)), "host1") as agent,
        pytest.raises(HostUnreachable, match="x host1: a line without end"),
    ):
        agent.call("x")


def test_a_result_is_no_stream() -> None:
    with (
        AgentClient(Says([b'{"result": 1}\n']), "host1") as agent,
        pytest.raises(HostUnreachable, match="x host1: no stream has come"),
    ):
        agent.stream("x")
