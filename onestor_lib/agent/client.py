"""The other end of an agent's connection: start one, ask it to work, read its answers.

Used by the front-end for its control connections and by an agent that sends bytes to the agent of
another machine. How the bytes travel is the stream's business: a local process, the OpenSSH client
(both here), or paramiko (``frontend.ssh``).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from onestor_lib.agent import channel, counters, errors
from onestor_lib.agent.errors import HostUnreachable

GREETING = b"onestor agent\n"
START = "start the agent"  # the step up to the greeting

# The bundle this process was started with, to start further agents from an agent.
payload = b""

_BOOT = """\
import os,sys
if sys.version_info<(3,9):sys.exit("python3 here is "+sys.version.split()[0]+", onestor needs 3.9")
def r(n):
 b=b""
 while len(b)<n:
  c=os.read(0,n-len(b))
  if not c:sys.exit(1)
  b+=c
 return b
p=r(int(r(10)))
import json
h,_,b=p.partition(b"\\n")
h=json.loads(h)
n={"__name__":"onestor_bootstrap"}
exec(h["bootstrap"],n)
n["start"](h,b,p)
"""

# Constant texts, built from no data: the one for an argv, the other for a login shell.
BOOT_CODE = f"exec({json.dumps(_BOOT)})"
PYTHON_OPTIONS = "-ISB"  # isolated, without site, without writing bytecode


def shell_command(python: str) -> str:
    """The command line that starts an agent on a host; ``python`` is a checked program name."""
    return f"{python} {PYTHON_OPTIONS} -c '{BOOT_CODE}'"


class Stream(Protocol):
    """A connection to a program: bytes in, bytes out, and its last words."""

    def send(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        """Write all; ``TimeoutError`` after ``timeout`` seconds without progress."""

    def receive(self, timeout: float) -> bytes:
        """What has come, at least one byte; b"" at the end; ``TimeoutError``."""

    def last_words(self) -> str:
        """Why it ended: the program's error output, and its exit status."""

    def close(self) -> None:
        """End the connection and the program."""


class AgentClient:
    """Speaks with one agent; a context manager that ends it.

    ``host`` names the machine in errors; ``on_log`` gets (severity, text), ``on_progress`` gets
    (done, total) in bytes, ``on_counts`` what it has counted (``onestor_lib.agent.counters``).
    ``patience`` is how many seconds a call may take without getting on, which is told by
    progress and by questions, not by signs of life: what an agent waits for, a file system for one,
    may hang for ever. By default it may.
    """

    def __init__(
        self,
        stream: Stream,
        host: str,
        *,
        on_log: Callable[[str, str], None] = lambda severity, text: None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_counts: Callable[[str, list[list[Any]]], None] = counters.merge,
        patience: float = math.inf,
    ) -> None:
        self.host = host
        self._stream, self._on_log, self._on_progress = stream, on_log, on_progress
        self._on_counts, self._patience = on_counts, patience
        self._buffer = bytearray()
        self._heard = time.monotonic()  # when it said anything last
        # Messages and signs of life are sent by two threads. Whoever holds the lock while _quiet is
        # not set may write; behind that there is a raw stream, or a descriptor that is closed.
        self._is_asked = False
        self._sending = threading.Lock()
        self._quiet = threading.Event()

    def start(self, bundle: bytes) -> None:
        """Send the code and wait for the greeting; noise of login scripts before it is skipped.

        Raises :class:`HostUnreachable` with what the other side said instead.
        """
        self._send(b"%9d\n" % len(bundle) + bundle, START)
        noise = bytearray()
        while True:
            line = self._read_line(START)
            if line + b"\n" == GREETING:
                break
            noise += line + b"\n"
            if len(noise) > 1 << 16:
                raise HostUnreachable(START, "endless output", host=self.host)
        threading.Thread(target=self._pulse, daemon=True).start()
        self._next_message(START)

    def call(
        self,
        operation: str,
        *,
        on_ask: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        **arguments: Any,
    ) -> Any:
        """Run ``operation`` to its end and return its result; its error is raised.

        ``on_ask`` does this side's part when the operation asks for it; an error it raises is
        carried to the agent, which ends the operation with it.
        """
        self._message({"op": operation, "args": arguments})
        while True:
            message = self._next_message(operation)
            if "ask" not in message:
                return self._outcome(message)
            if on_ask is None:
                raise errors.ProgrammerError(operation, f"nobody answers {message['ask']!r}")
            try:
                self._is_asked = True
                try:
                    answer = on_ask(message)
                finally:
                    self._is_asked = False
                self._message({"answer": answer})
            except errors.OnestorError as error:
                self._message({"refusal": errors.to_json(error)})
                # The agent gives the refusal back as its error, after it has cleaned up.

    def tell_progress(self) -> None:
        """If the agent waits for an answer: tell it that the work on that goes on."""
        if self._is_asked:
            self._message({"progress": True})

    def stream(self, operation: str, **arguments: Any) -> AgentClient:
        """Ask for an operation that goes on in raw bytes: the last one of this connection.

        What is returned reads and writes them (``onestor_lib.agent.frames.Pipe``). Raises the
        operation's error if it fails before that.
        """
        self._message({"op": operation, "args": arguments, "stream": True}, last=True)
        message = self._next_message(operation)
        if "stream" not in message:
            self._outcome(message)
            raise HostUnreachable(operation, "no stream has come", host=self.host)
        return self

    def write(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        """Bytes of a stream; ``TimeoutError`` when nothing moves for ``timeout`` seconds."""
        self._stream.send(data, timeout)

    def read_exactly(self, count: int, timeout: float) -> bytearray:
        """``count`` bytes of a stream; ``timeout`` bounds the wait for each next piece."""
        while len(self._buffer) < count:
            came = self._stream.receive(timeout)
            if not came:
                raise EOFError
            self._buffer += came
        block = self._buffer[:count]
        del self._buffer[:count]
        return block

    def unread(self, data: bytes | bytearray) -> None:
        """Let ``data``, which was read last, be what comes next."""
        self._buffer[:0] = data

    def result(self, operation: str) -> Any:
        """The result of an operation behind its stream."""
        return self._outcome(self._next_message(operation))

    def close(self) -> None:
        with self._sending:
            self._quiet.set()
        self._stream.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _outcome(self, message: dict[str, Any]) -> Any:
        if "error" in message:
            if "traceback" in message["error"]:
                self._on_log("DEBUG", str(message["error"]["traceback"]))
            raise errors.from_json(message["error"], host=self.host)
        return message.get("result")

    def _next_message(self, step: str) -> dict[str, Any]:
        deadline, last = time.monotonic() + self._patience, -1
        while True:
            if time.monotonic() > deadline:
                raise self._idle(step)
            line = self._read_line(step, deadline)
            if not line:
                continue  # a sign of life
            message = channel.parse(line)
            if "log" in message:
                severity, text = message["log"]
                self._on_log(str(severity), str(text))
            elif "progress" in message:
                done, total = map(int, message["progress"])
                self._on_progress(done, total)
                if done != last or not total:  # 0 of 0: it goes on, nobody knows how far
                    deadline, last = time.monotonic() + self._patience, done
            else:
                if "counts" in message:
                    self._on_counts(self.host, message["counts"])
                return message

    def _idle(self, step: str) -> HostUnreachable:
        silent = time.monotonic() - self._heard
        cause = f"it lives, but has done nothing for {self._patience:.0f} s"
        if silent > channel.SILENCE / 2:
            cause = f"no sign of life for {silent:.0f} s"
        return HostUnreachable(step, cause, host=self.host)

    def _read_line(self, step: str, deadline: float = math.inf) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._idle(step)
            try:
                block = self._stream.receive(min(channel.SILENCE, left))
            except TimeoutError:
                if left < channel.SILENCE:
                    continue
                raise HostUnreachable(
                    step, f"no sign of life for {channel.SILENCE:.0f} s", host=self.host
                ) from None
            if not block:
                raise HostUnreachable(step, self._last_words(), host=self.host)
            self._buffer += block
            self._heard = time.monotonic()
            if len(self._buffer) > channel.MAX_LINE:
                raise HostUnreachable(step, "a line without end", host=self.host)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _message(self, message: dict[str, Any], *, last: bool = False) -> None:
        self._send(json.dumps(message).encode("ascii") + b"\n", "talk to the agent", last=last)

    def _send(self, data: bytes, step: str, *, last: bool = False) -> None:
        """Send ``data``; if it is the ``last`` message no sign of life follows it either."""
        try:
            with self._sending:
                if self._quiet.is_set():
                    raise BrokenPipeError  # closed, or the place of raw bytes now
                self._stream.send(data, channel.SILENCE)
                if last:
                    self._quiet.set()
        except (TimeoutError, OSError) as error:
            raise HostUnreachable(step, self._last_words(), host=self.host) from error

    def _last_words(self) -> str:
        """Why the connection has ended; nothing is sent any more."""
        with self._sending:
            self._quiet.set()
        return self._stream.last_words()

    def _pulse(self) -> None:
        while not self._quiet.wait(channel.PULSE):
            with self._sending:
                if self._quiet.is_set():
                    return
                # A connection that is broken is noticed by whoever waits for an answer.
                with contextlib.suppress(OSError):
                    self._stream.send(b"\n", channel.PULSE)


class ProcessStream:
    """A stream to a program started here: a local agent, or the OpenSSH client.

    Most agents start none, so what only this class needs is imported here.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        import subprocess

        self._argv0 = argv[0]
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = (
            self._process.stdin.fileno(),
            self._process.stdout.fileno(),
            self._process.stderr.fileno(),
        )
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
            channel.widen(fd)
        self._said = bytearray()

    def send(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        view = memoryview(data)
        watched = [self._err]
        while view:
            readable, writable, _ = select.select(watched, [self._in], [], timeout)
            if not readable and not writable:
                raise TimeoutError
            if readable and not self._listen():
                watched.clear()
            if writable:
                view = view[os.write(self._in, view) :]

    def receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        watched = [self._out, self._err]
        while True:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select(watched, [], [], left)
            if not readable:
                raise TimeoutError
            if self._err in readable and not self._listen():
                watched.remove(self._err)
            if self._out in readable:
                return os.read(self._out, 1 << 20)

    def last_words(self) -> str:
        from onestor_lib.agent import process

        self._end()
        self._listen()
        said = process.last_lines(self._said)
        status = self._process.returncode
        how = f"killed by {process.signal_name(-status)}" if status < 0 else f"status {status}"
        return f"{said} ({self._argv0}: {how})" if said else f"{self._argv0} ended: {how}"

    def close(self) -> None:
        self._end()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _listen(self) -> bool:
        """Take what the program says on stderr; False at its end."""
        try:
            block = os.read(self._err, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._said += block
        del self._said[: -(16 << 10)]
        return bool(block)

    def _end(self) -> None:
        """Close its stdin, which is its signal to clean up and end; insist after a while."""
        import subprocess

        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                self._process.wait(5.0)
                return
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signum)
        self._process.wait()
