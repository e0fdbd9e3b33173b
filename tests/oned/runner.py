"""Start a driver's script as a mad does, and wait for it as a mad does (contract 1.1 and 1.5)."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from tests.oned.reply import Result

METACHARACTERS = frozenset("*?{}[]<>()~&|\\$;'`\"\n#=%")
LINGER = 0.1  # seconds the mad reads on after the script has ended
TICK = 0.01


class Runner(Protocol):
    """What starts processes on one machine of the cluster, as oneadmin.

    The process has pipes on all three streams and leads a process group of its own, the number
    of which is its pid as the caller sees it. `env` is its whole environment.
    """

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str
    ) -> subprocess.Popen[bytes]: ...

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file on that machine."""
        ...


class LocalRunner:
    """Starts processes here, as the current user."""

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def exists(self, path: str) -> bool:
        return os.path.exists(path)


class Cancelled(Exception):
    """The result was asked for, but it has been dropped (contract 2.1, DRIVER_CANCEL)."""


def argv_of(command: str) -> list[str]:
    """The processes for a command line: itself, or a shell if it has metacharacters."""
    if METACHARACTERS.isdisjoint(command):
        return ["nice", "-n", "19", *command.split()]
    return ["nice", "-n", "19", "/bin/sh", "-c", command]


class Call:
    """A script in flight, fed and read by a thread of its own.

    A script that closes its stdin early is forgiven: the contract leaves that open.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        command: str,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> None:
        self._process = process
        self._command = command
        self._deadline = time.monotonic() + timeout if timeout else None
        self._problem = ""
        self._output = {"stdout": b"", "stderr": b""}
        self._cancelled = threading.Event()
        self._settled = threading.Event()  # the pipes are closed, the result is known or dropped
        self._thread = threading.Thread(target=self._attend, args=(stdin,), daemon=True)
        self._thread.start()

    def wait(self) -> Result:
        """Wait for the end of the script, or of its time."""
        self._settled.wait()
        if self._cancelled.is_set():
            raise Cancelled(self._command)
        code = self._process.returncode
        if self._problem or code < 0:
            code = 255
        stdout, stderr = (
            self._output[name].decode(errors="replace") for name in ("stdout", "stderr")
        )
        return Result(self._command, code, stdout, stderr, self._problem)

    def cancel(self) -> None:
        """Drop the result: the pipes are closed, the script keeps running."""
        self._cancelled.set()
        self._settled.wait()

    def kill(self, number: int) -> None:
        """Send a signal to the script's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the process itself, cancelled or not; tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _attend(self, stdin: bytes) -> None:
        process = self._process
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ, "stdout")
                selector.register(process.stderr, selectors.EVENT_READ, "stderr")
                if stdin:
                    os.set_blocking(process.stdin.fileno(), False)
                    selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
                else:
                    process.stdin.close()
                self._pump(selector, stdin)
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()
            self._outlast()
        finally:
            self._settled.set()
        process.wait()

    def _outlast(self) -> None:
        """Wait for the process, as long as anybody waits for it."""
        while not self._given_up():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TICK)
                return

    def _given_up(self) -> bool:
        """Tell whether nobody waits any more; who is out of time is told so here."""
        if self._deadline is not None and not self._problem and time.monotonic() > self._deadline:
            self._problem = f"Timeout executing {self._command}"
            self.kill(signal.SIGTERM)
        return bool(self._problem) or self._cancelled.is_set()

    def _pump(self, selector: selectors.BaseSelector, stdin: bytes) -> None:
        """Feed and read the script until its pipes end, or nobody cares for them any more.

        What a pipe gave counts only if its end was seen (contract 1.5, background children).
        """
        unwritten = memoryview(stdin)
        unfinished = {"stdout": bytearray(), "stderr": bytearray()}
        read_until: float | None = None
        while selector.get_map() and not self._given_up():
            for key, _ in selector.select(TICK):
                if key.data == "stdin":
                    unwritten = unwritten[_write(key.fd, unwritten) :]
                    ended = not unwritten
                else:
                    chunk = os.read(key.fd, 65536)
                    unfinished[key.data] += chunk
                    ended = not chunk
                    if ended:
                        self._output[key.data] = bytes(unfinished[key.data])
                if ended:
                    selector.unregister(key.fileobj)
                    if key.data == "stdin" and self._process.stdin:
                        self._process.stdin.close()
            now = time.monotonic()
            if read_until is None and self._process.poll() is not None:
                read_until = now + LINGER
            if read_until is not None and now > read_until:
                return


def _write(fd: int, data: memoryview) -> int:
    """Write what fits into the pipe; all of it counts as written when nobody reads any more."""
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        return len(data)
