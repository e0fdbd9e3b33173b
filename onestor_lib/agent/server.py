"""The agent's main loop: takes requests, runs operations, answers; ends with its connection.

Messages to the agent: ``{"op": name, "args": {...}}``, and while an operation waits for the
front-end's part, ``{"progress": true}`` now and then, ``{"answer": {...}}`` or
``{"refusal": error}``. Messages from the agent: ``{"agent": {...}}`` once, then
``{"log": [severity, text]}``, ``{"progress": [done, total]}``, ``{"ask": question, ...}`` as they
come, and ``{"result": ...}`` or ``{"error": {...}}`` last, with the ``"counts"`` of
``onestor_lib.agent.counters`` if there are any. A request with ``"stream": true`` is
the last one; raw bytes follow in both directions, those of the agent behind ``{"stream": true}``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from onestor_lib.agent import channel, client, counters, crashpoints, errors, publish, signals
from onestor_lib.agent.operations import OPERATIONS, load


class Call:
    """One request being worked on: what an operation may do besides returning its result."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_raw = False

    def log(self, severity: str, text: str) -> None:
        """One line for the log of the VM or image; ``severity`` is INFO, WARN or ERROR."""
        self._server.writer.send({"log": [severity, errors.one_line(text)]})

    def progress(self, done: int, total: int) -> None:
        """How many bytes of a long step are done.

        Between raw bytes there is no room for messages: the other side sees those move itself.
        """
        if not self._is_raw:
            self._server.writer.send({"progress": [done, total]})

    def ask(
        self, question: str, *, meanwhile: Callable[[], None] = lambda: None, **facts: Any
    ) -> dict[str, Any]:
        """Let the front-end do its part now; its refusal is raised here as the error it is.

        ``meanwhile`` is called when the front-end says that there is progress.
        """
        self._server.writer.send({"ask": question, **facts})
        message = self._server.next_message(meanwhile)
        if "refusal" in message:
            raise errors.from_json(message["refusal"])
        answer = message.get("answer")
        return answer if isinstance(answer, dict) else {}

    def keep(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        """Enter ``context``, to be left at the end of the connection."""
        return self._server.kept.enter_context(context)

    @contextlib.contextmanager
    def streaming(self) -> Iterator[_RawPipe]:
        """The raw bytes of a request that was sent with ``"stream": true``, both ways."""
        with self._server.writer.raw() as write:
            self._is_raw = True
            try:
                yield _RawPipe(self._server.source, write)
            finally:
                self._is_raw = False


class _RawPipe:
    """What :class:`onestor_lib.agent.frames.Pipe` asks for."""

    def __init__(
        self,
        source: channel.ByteSource,
        write: Callable[[bytes | bytearray | memoryview, float], None],
    ) -> None:
        self.read_exactly, self.unread = source.read_exactly, source.unread
        self.write = write


class Server:
    """Reads messages in a thread, so that the end of the connection interrupts any operation."""

    def __init__(self) -> None:
        self.source = channel.ByteSource(0)
        self.writer = channel.Writer(1)
        # None: the connection is at its end
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._busy = False
        self.kept = contextlib.ExitStack()

    def serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._pulse, daemon=True).start()
        facts = {"host": os.uname().nodename, "pid": os.getpid(), "python": sys.version.split()[0]}
        self.writer.send({"agent": facts})
        while (message := self._messages.get()) is not None:
            self._busy = True
            answer = self._handle(message)
            if counts := counters.take():
                answer["counts"] = counts
            self.writer.send(answer)
            self._busy = False
            if message.get("stream"):
                return  # what is left of the stream is no message

    def next_message(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        while (message := self._messages.get()) is not None:
            if "progress" not in message:
                return message
            meanwhile()
        raise errors.Terminated

    def _handle(self, message: dict[str, Any]) -> dict[str, Any]:
        name, args = str(message.get("op")), message.get("args", {})
        try:
            if name not in OPERATIONS:
                raise errors.ProgrammerError("run an operation", f"there is none called {name}")
            return {"result": load(name)(Call(self), **args)}
        except errors.OnestorError as error:
            return {"error": errors.to_json(error)}
        except OSError as error:
            work = str(args.get("path") or args.get("temporary") or "")
            return {"error": errors.to_json(errors.from_os_error(name, error, where=work))}
        except Exception as error:  # noqa: BLE001 - the boundary: reported, never a traceback for oned
            import traceback

            bug = errors.ProgrammerError(name, f"{type(error).__name__}: {error}")
            return {"error": {**errors.to_json(bug), "traceback": traceback.format_exc()}}

    def _read(self) -> None:
        try:
            while True:
                line = self.source.read_line(channel.SILENCE)
                if not line:
                    continue
                message = channel.parse(line)
                self._messages.put(message)
                if message.get("stream"):
                    break  # from here on the operation itself reads
            _wait_for_hang_up(0)
            raise EOFError
        except (EOFError, TimeoutError, OSError, errors.OnestorError):
            self._messages.put(None)
            if self._busy:
                # A lost connection ends the work: the handler raises in the main thread.
                os.kill(os.getpid(), signal.SIGTERM)

    def _pulse(self) -> None:
        while True:
            threading.Event().wait(channel.PULSE)
            try:
                self.writer.pulse()
            except OSError:
                return


def _wait_for_hang_up(fd: int) -> None:
    """Return when the other side has closed the connection, read or not."""
    end = select.poll()
    end.register(fd, 0)  # errors and hang-ups are always told (poll(2))
    while not end.poll():
        pass


def main(settings: dict[str, str], payload: bytes) -> None:
    """Serve until the connection ends; called by the bootstrap code with what started it."""
    crashpoints.choose(settings.get("crash_at", ""))
    first = settings.get("host_path")
    if first and settings.get("frontend") != os.uname().nodename:
        os.environ["PATH"] = f"{first}:{os.environ.get('PATH', '')}"
    client.payload = payload
    signals.end_by_exception()
    os.umask(0o022)
    # Nothing but our messages may reach the connection: not an operation's print, not a program's.
    connection = os.dup(1)
    os.dup2(2, 1)
    os.write(connection, b"\n" + client.GREETING)  # noise before it may lack its line end
    server = Server()
    server.writer = channel.Writer(connection)
    for fd in (0, connection):
        channel.widen(fd)
    with contextlib.suppress(errors.Terminated, BrokenPipeError, TimeoutError), server.kept:
        server.serve()
    publish.discard_unfinished()
    os._exit(0)  # the reading thread may sit in a system call for ever
