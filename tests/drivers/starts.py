"""Every start of a program on any machine, counted, and one of them made to fail.

A wrapper lies before each program in the PATH of each node. While `counting` it notes the start
under the next number, and fails if that is the chosen one. Numbers are those of the whole cluster:
the notes lie in one directory that all nodes share. So do the wrappers: there is one for each of
more than a thousand programs, and made for each node they would take longer than what is counted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tests.cluster import Node
from tests.cluster.sharing import share, unshare
from tests.testbed import Testbed

PLANTED = "planted failure"
_NOTES, _BEFORE = "/var/tmp/starts", "/usr/local/bin"
_LINKS = "/var/tmp/starts-wrappers"  # what all nodes have laid over _BEFORE
_SCRIPT = "/usr/local/lib/count-starts"
_PROGRAMS = ("/usr/sbin", "/usr/bin")
# What oned's mads start before our action runs, and what the wrapper needs itself.
_NOT_OURS = {"nice", "sh", "env"}
# On the front-end neither the interpreter of the entry scripts is started by us nor the command,
# which hosts do not have.
_INTERPRETER, _COMMAND = "python3", "onestor"

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
    with contextlib.ExitStack() as planted:
        for node in bed.cluster.nodes:
            node.run(["mkdir", "-p", _NOTES, _LINKS])
            node.write(_SCRIPT, _WRAPPER, mode=0o755, owner="root")

        def mount(node: Node, kind: str, options: str, path: str) -> None:
            node.run(["mount", "-t", kind, "-o", options, kind, path], user="root")
            planted.callback(unshare, node, path)

        mount(frontend, "tmpfs", "mode=755", _LINKS)  # its links go with it
        programs = _programs(bed)
        for name in programs - {_INTERPRETER, _COMMAND}:
            frontend.path(f"{_LINKS}/{name}").symlink_to(_SCRIPT)
        for node in bed.hosts:
            if _INTERPRETER in programs:
                link = node.path(f"{_BEFORE}/{_INTERPRETER}")
                link.symlink_to(_SCRIPT)
                planted.callback(link.unlink)
            for path in (_NOTES, _LINKS):
                share(frontend, node, path)
                planted.callback(unshare, node, path)
        for node in bed.cluster.nodes:
            mount(node, "overlay", f"lowerdir={_LINKS}:{_BEFORE}", _BEFORE)
        yield Starts(frontend)


def _programs(bed: Testbed) -> set[str]:
    """What any of the nodes has, and none of them something else before it already."""

    def inside(*directories: str) -> set[str]:
        paths = [node.path(each) for node in bed.cluster.nodes for each in directories]
        return {name for path in paths for name in os.listdir(path)}

    return inside(*_PROGRAMS) - inside(_BEFORE) - _NOT_OURS
