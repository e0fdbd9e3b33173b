"""Fetching an image from the replica's cache: what the host does that wants it.

One connection asks the replica to have the image and hold it. When the replica has to fetch it
from the origin first, a second connection follows that fill while it runs, so that both links are
busy at the same time; whatever goes wrong with that, the image comes over the first one then.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import client, transfer
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import HostUnreachable, OnestorError, TransferFailed

_PATIENCE = 5.0  # seconds for a follower to end
SENDING = "send"  # the step of errors that the replica has met while it was sending


class Fetched(NamedTuple):
    """What has come: its manifest, how many bytes crossed, and ``Receiver.written()``."""

    manifest: Manifest
    received: int
    written: dict[str, int]


class Replica:
    """The replica ``host`` as this host reaches it: ``argv`` starts an agent there.

    ``image`` is what to have (``cache.fill.Wanted``), ``sending`` how to send it: ``stall``,
    ``bytes_per_second`` and ``bulk``. ``marker`` is a file that tells whether it is this host.
    """

    def __init__(
        self,
        call: Dialogue,
        argv: Sequence[str],
        host: str,
        image: dict[str, Any],
        marker: str,
        sending: dict[str, Any],
    ) -> None:
        self._call, self._argv, self._host = call, argv, host
        self._image, self._marker, self._sending = image, marker, sending

    def fetch(self, temporary: Path, *, reuse: bool, progress: Path | None) -> Fetched:
        """Fetch the image into the existing file ``temporary``.

        When what arrives is not what the replica has recorded, or it cannot read its entry, that
        is checked; a damaged one is dropped, filled anew and fetched again. Raises
        :class:`TransferFailed`, :class:`HostUnreachable` and what the replica has met.
        """

        def receiver(reuse: bool) -> transfer.Receiver:
            return transfer.Receiver(
                temporary,
                size=int(self._image["version"]["size"]),
                stall=float(self._sending["stall"]),
                reuse=reuse,
                host=self._host,
                progress=progress,
                on_progress=self._call.progress,
            )

        try:
            return self._fetch(receiver, reuse)
        except OnestorError as error:
            is_doubtful = error.cause == transfer.DIFFERENT or error.step == SENDING
            if not is_doubtful or not (wrong := self._verify()):
                raise
        path = self._image["path"]
        self._call.log("WARN", f"the entry of {path} on {self._host} was dropped: {wrong}")
        return self._fetch(receiver, True)

    def _fetch(self, receiver: Callable[[bool], transfer.Receiver], reuse: bool) -> Fetched:
        with self._agent() as replica:
            arguments = {"receiver": os.uname().nodename, **self._sending}
            follower = _Follower(
                self._agent, lambda: receiver(reuse), self._image, arguments, self._call.log
            )
            with follower:
                held = replica.call(
                    "cache.hold",
                    on_ask=lambda question: self._pass_on(question, replica, follower),
                    image=self._image,
                    marker=self._marker,
                )
                digest = str(held["digest"])
                found = follower.result(digest)
            if found:
                return found
            with receiver(reuse or follower.has_begun) as rest:
                manifest = rest.receive(replica.stream("cache.read", **arguments))
                if manifest.digest() != digest:
                    path = str(self._image["path"])
                    raise TransferFailed(SENDING, transfer.DIFFERENT, host=self._host, path=path)
                return Fetched(manifest, follower.received + rest.received, rest.written())

    def _pass_on(
        self, question: dict[str, Any], replica: client.AgentClient, follower: _Follower
    ) -> dict[str, Any]:
        """Let the front-end answer a question of the replica; a fill there is followed."""
        facts = {name: value for name, value in question.items() if name != "ask"}
        if question["ask"] == "content":
            follower.follow(str(facts["temporary"]), str(facts["manifest"]))
        facts["host"] = self._host
        return self._call.ask(str(question["ask"]), meanwhile=replica.tell_progress, **facts)

    def _verify(self) -> str:
        timeout = self._image["lock_timeout"]
        with self._agent() as replica:
            found = replica.call("cache.verify", path=self._image["path"], lock_timeout=timeout)
        return str(found["wrong"])

    @contextlib.contextmanager
    def _agent(self) -> Iterator[client.AgentClient]:
        """An agent on the replica."""
        stream = client.ProcessStream(self._argv)
        with client.AgentClient(
            stream, self._host, on_log=self._call.log, on_progress=self._call.progress
        ) as agent:
            try:
                agent.start(client.payload)
            except HostUnreachable as error:
                raise transfer.between(error, self._host) from error
            yield agent


class _Follower:
    """Receives a fill of the replica while it runs, in a thread of its own.

    Nothing is lost when it fails: what has come need not come again.
    """

    def __init__(
        self,
        agent: Callable[[], contextlib.AbstractContextManager[client.AgentClient]],
        receiver: Callable[[], transfer.Receiver],
        image: dict[str, Any],
        arguments: dict[str, Any],
        log: Callable[[str, str], None],
    ) -> None:
        self.received = 0
        self._log = log
        self._agent, self._receiver = agent, receiver
        self._arguments = {
            "path": image["path"], "size": image["version"]["size"], **arguments
        }  # fmt: skip
        self._thread: threading.Thread | None = None
        self._connection: client.AgentClient | None = None
        self._found: Fetched | None = None
        self._ended = False

    @property
    def has_begun(self) -> bool:
        return self._thread is not None

    def follow(self, part: str, manifest: str) -> None:
        """Begin to follow the fill of ``part``, a file of the replica."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(part, manifest), daemon=True)
            self._thread.start()

    def result(self, digest: str) -> Fetched | None:
        """What has come when the fill is complete, if it has that digest; else None."""
        if self._thread:
            self._thread.join()
        if self._found and self._found.manifest.digest() == digest:
            return self._found
        return None

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        if self._connection:
            self._connection.close()  # ends the thread's waiting
        if self._thread:
            # It may be digesting. Whoever writes next waits for it (``locks.become_writer``).
            self._thread.join(_PATIENCE)

    def _run(self, part: str, manifest: str) -> None:
        try:
            self._receive(part, manifest)
        except (OnestorError, OSError) as error:
            self._log("DEBUG", f"the fill could not be followed: {error}")

    def _receive(self, part: str, manifest: str) -> None:
        with self._agent() as replica:
            self._connection = replica
            if self._ended:
                return
            with self._receiver() as receiver:
                pipe = replica.stream(
                    "cache.follow", part=part, manifest=manifest, **self._arguments
                )
                try:
                    found = receiver.receive(pipe)
                    self._found = Fetched(found, receiver.received, receiver.written())
                finally:
                    self.received = receiver.received
