"""Every start of a program on any machine, counted, and one of them made to fail.

A wrapper lies before each program in the PATH of each node. While `counting` it notes the start
under the next number, and fails if that is the chosen one. Numbers are those of the whole cluster:
the notes lie in one directory that all nodes share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import Node
from tests.cluster.sharing import share, unshare
from tests.testbed import Testbed

PLANTED = "planted failure"
_NOTES, _BEFORE = "/var/tmp/starts", "/usr/local/bin"
_SCRIPT = "/usr/local/lib/count-starts"
_PROGRAMS = ("/usr/sbin", "/usr/bin")
# What oned's mads start before our action runs, and what the wrapper needs itself.
_NOT_OURS = {"nice", "sh", "env"}

# Nothing but what the shell has built in: a wrapper costs a millisecond. "set -C": who can create
# the file has its number, nobody writes over it.
_WRAPPER = f"""#!/bin/sh
name=${{0##*/}}
for real in {" ".join(f"{directory}/$name" for directory in _PROGRAMS)}; do
    [ -x "$real" ] && break
done
if read -r chosen 2>/dev/null < {_NOTES}/chosen; then
    read -r host < /proc/sys/kernel/hostname
    set -C
    number=1
    until {{ printf '%s %s %s\\n' "$host" "$name" "$*" > {_NOTES}/$number; }} 2>/dev/null; do
        [ -e {_NOTES}/chosen ] || break
        number=$((number + 1))
    done
    if [ $number = "$chosen" ]; then
        echo "{PLANTED} of $name" >&2
        exit 1
    fi
fi
exec "$real" "$@"
"""


class Starts:
    """The wrappers of a running cluster; use :func:`counted_starts`."""

    def __init__(self, frontend: Node) -> None:
        self._notes = frontend.path(_NOTES)

    @contextlib.contextmanager
    def counting(self, fail: int = 0) -> Iterator[None]:
        """Count from one; the start with the number ``fail`` fails."""
        for note in self._notes.iterdir():
            note.unlink()
        (self._notes / "chosen").write_text(f"{fail}\n")
        try:
            yield
        finally:
            (self._notes / "chosen").unlink()

    def __getitem__(self, number: int) -> str:
        """Machine, program and arguments of a start; "" when there was none of that number."""
        note = self._notes / str(number)
        return note.read_text() if note.exists() else ""

    def __len__(self) -> int:
        return sum(note.name.isdigit() for note in self._notes.iterdir())


@contextlib.contextmanager
def counted_starts(bed: Testbed) -> Iterator[Starts]:
    """Wrappers on all nodes for the time of the block."""
    frontend = bed.frontend
    for node in bed.cluster.nodes:
        node.run(["mkdir", "-p", _NOTES])
        node.write(_SCRIPT, _WRAPPER, mode=0o755, owner="root")
    planted = [link for node in bed.cluster.nodes for link in _plant(node, node is frontend)]
    for node in bed.hosts:
        share(frontend, node, _NOTES)
    try:
        yield Starts(frontend)
    finally:
        for node in bed.hosts:
            unshare(node, _NOTES)
        for link in planted:
            link.unlink()


def _plant(node: Node, is_frontend: bool) -> Iterator[Path]:
    # Neither are the interpreter of the entry scripts and the command started by us.
    others = _NOT_OURS | ({"python3", "onestor"} if is_frontend else set())
    for directory in _PROGRAMS:
        for entry in os.scandir(node.path(directory)):
            link = node.path(f"{_BEFORE}/{entry.name}")
            if entry.name not in others and not os.path.lexists(link):
                link.symlink_to(_SCRIPT)
                yield link
