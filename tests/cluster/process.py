"""A program running in a node, and how to get rid of it for certain.

A program enters a pid namespace only by being forked into it, so the Popen of a program in a
node is that of its parent, which waits for it outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.waiting import wait_until


class CommandFailed(subprocess.CalledProcessError):
    """A program in a node ended with a failure; the message has what it said on stderr."""

    def __init__(
        self,
        node: str,
        process: subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes],
    ) -> None:
        super().__init__(process.returncode, process.args, process.stdout, process.stderr)
        self.node = node

    def __str__(self) -> str:
        stderr = (
            self.stderr if isinstance(self.stderr, str) else self.stderr.decode(errors="replace")
        )
        return f"on {self.node}: {super().__str__()}\n{stderr}"


class NodeProcess(subprocess.Popen[bytes]):
    """A program in a node, with pipes on stdin, stdout and stderr.

    To signal it use `kill_program` or `kill_tree`: `send_signal` and `terminate` of Popen reach
    the waiting parent. The return code is the program's.
    """

    def __init__(self, argv: Sequence[str], enter: Sequence[str], env: dict[str, str]) -> None:
        super().__init__(
            [*enter, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        self.args: list[str] = list(argv)

    def kill_program(self, sig: int = signal.SIGKILL) -> None:
        """Send `sig` to exactly the started program, and to none of its children."""
        children: list[int] = []

        def forked() -> bool:
            children[:] = _children(self.pid)
            return bool(children) or self.poll() is not None

        wait_until(forked, f"the start of {self.args}")
        if self.poll() is not None:
            raise ProcessLookupError(f"{self.args} has ended")
        os.kill(children[0], sig)

    def kill_tree(self) -> None:
        """SIGKILL the program and all it has started, in sessions of their own or not.

        Everything is stopped before anything is killed, so nothing escapes by forking. A daemon
        that left both its parent and its session earlier is no longer part of the tree. The
        waiting parent is left to collect the program: whoever else inherited it might not, and
        a node cannot end before the last of its zombies.
        """
        if self.poll() is not None:
            return
        stopped: set[int] = set()
        while fresh := _tree(self.pid) - stopped:
            for pid in fresh:
                _signal_if_there(pid, signal.SIGSTOP)
            stopped |= fresh
        programs = stopped - {self.pid}
        for pid in programs:
            _signal_if_there(pid, signal.SIGKILL)
        self.send_signal(signal.SIGCONT if programs else signal.SIGKILL)
        self.wait()


class _Relation(NamedTuple):
    pid: int
    parent: int
    session: int


def _tree(root: int) -> set[int]:
    """The process, its descendants, and all in a session that one of them leads."""
    relations = _relations()
    members = {root}
    while True:
        more = {r.pid for r in relations if r.parent in members or r.session in members}
        if more <= members:
            return members
        members |= more


def _relations() -> list[_Relation]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            fields = stat.rpartition(")")[2].split()
            found.append(_Relation(int(entry.name), int(fields[1]), int(fields[3])))
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _signal_if_there(pid: int, sig: int) -> None:
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return
