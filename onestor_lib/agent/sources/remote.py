"""A file of another machine as the source of an image, read by an agent there: ssh://."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from onestor_lib.agent import bandwidth, client, frames, transfer
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import HostUnreachable, TransferFailed
from onestor_lib.agent.sources import Piece, StartAgain, Zeros

_TRIES = 3  # in a row without a new byte
_PAUSE = 1.0  # seconds between two of them


class RemoteSource:
    """The file ``path`` of ``host``, whose agent ``argv`` starts.

    The ``rules`` for paths count there as they do here. A connection that breaks is made anew and
    goes on where it was, if the file is still the same.
    """

    is_complete_at_end = True

    def __init__(self, description: dict[str, Any], *, step: str, stall: float) -> None:
        self.name = f"ssh://{description['host']}:{description['path']}"
        self._host, self._argv = str(description["host"]), list(description["argv"])
        self._step, self._stall = step, stall
        rate = int(description.get("rate", 0))
        self._pace = bandwidth.Pace(rate) if rate else None
        self._file = {
            "path": description["path"], "rules": description["rules"],
            "base": description.get("base", ""), "step": step,
            "block": min(CHUNK, int(description["block"]), rate or CHUNK),
        }  # fmt: skip
        self._agent: client.AgentClient | None = None
        self._facts: dict[str, Any] | None = None
        self._done = 0  # bytes given out

    @property
    def size(self) -> int | None:
        return None if self._facts is None else int(self._facts["version"]["size"])

    @property
    def allocated(self) -> int | None:
        """Bytes that a copy with the same holes takes at most."""
        return None if self._facts is None else int(self._facts["allocated"])

    @property
    def _version(self) -> Any:
        return None if self._facts is None else self._facts["version"]

    def prepare(self) -> None:
        with contextlib.suppress(HostUnreachable):  # the content is asked for again and again
            self._connected()

    def pieces(self) -> Iterator[Piece]:
        tries = _TRIES
        while True:
            before = self._done
            try:
                yield from self._rest()
                return
            except (HostUnreachable, EOFError, TimeoutError, OSError, ValueError) as error:
                self.close()
                tries = _TRIES if self._done > before else tries - 1
                if not tries:
                    if isinstance(error, HostUnreachable):
                        raise
                    cause = str(error) or f"nothing came for {self._stall:.0f} s"
                    raise TransferFailed(self._step, cause, path=self.name) from error
                time.sleep(_PAUSE)

    def read_at(self, offset: int, count: int) -> bytes:
        answer = self._connected().call("source.peek", offset=offset, count=count, **self._file)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        if self._agent:
            self._agent.close()
            self._agent = None

    def _rest(self) -> Iterator[Piece]:
        """What has not been given out yet."""
        agent = self._connected()
        pipe = agent.stream(
            "source.read", start=self._done, version=self._version, stall=self._stall, **self._file
        )
        while True:
            kind, offset, data = frames.read(pipe, self._stall)
            if kind == b"X":
                raise frames.error_of(data, self._host)
            if kind not in (b"D", b"E") or offset < self._done:
                raise ValueError("the stream is damaged")
            if offset > self._done:
                hole, self._done = offset - self._done, offset
                yield Zeros(hole)
            if kind == b"E":
                self.close()
                return
            if self._pace:
                self._pace.wait(len(data))
            self._done += len(data)
            yield bytes(data)

    def _connected(self) -> client.AgentClient:
        if self._agent:
            return self._agent
        agent = client.AgentClient(client.ProcessStream(self._argv), self._host)
        self._agent = agent
        try:
            agent.start(client.payload)
        except HostUnreachable as error:
            self.close()
            raise transfer.between(error, self._host) from error
        facts = agent.call("source.describe", **self._file)
        if self._facts is not None and facts["version"] != self._version and self._done:
            raise StartAgain
        self._facts = facts
        return agent
