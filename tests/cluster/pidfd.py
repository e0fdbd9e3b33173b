"""A process held by its pidfd, so that a signal never reaches a stranger with the same number."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path


class ProcessHandle:
    """One process, from whichever pid namespace its pidfd came."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.pid = _pid_here(fd)

    def alive(self) -> bool:
        """Whether the process still runs; a zombie does not."""
        return not self.wait_gone(0)

    def kill(self) -> None:
        """SIGKILL; nothing happens to a process that has already ended."""
        if self.alive():
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait_gone(self, timeout: float) -> bool:
        """Whether the process has ended, at the latest after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def close(self) -> None:
        os.close(self._fd)


def _pid_here(fd: int) -> int:
    """The process's number in the pid namespace of this process's /proc."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid" and int(value) > 0:
            return int(value)
    raise ProcessLookupError("the process has ended")
