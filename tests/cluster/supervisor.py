"""The first process of a cluster: everything of the cluster lives below it and ends with it.

Runs as process 1 of its own pid namespace, so the kernel kills all the cluster's processes when
it ends, however it ends. Its network namespace is the switch that the nodes are plugged into.

    supervisor LAB CONTROL_FD USER_FD LOCK_FD

It starts nodes on request, and tears the cluster down when its user is gone: USER_FD is a pidfd
of the process that brought the cluster up, CONTROL_FD a socket to it. Holding LOCK_FD is what
shows that the lab is alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import disk, lab, link, report
from tests.cluster.link import SWITCH
from tests.cluster.plan import NodePlan
from tests.waiting import wait_until

PYTHON = "/usr/bin/python3"


def main(argv: list[str]) -> None:
    directory = Path(argv[0])
    control_fd, user, lock = (int(number) for number in argv[1:])
    for fd in (control_fd, user, lock):
        os.set_inheritable(fd, False)
    control = socket.socket(fileno=control_fd)
    try:
        with _in_memory(disk.shared_etc(directory)):
            disk.create_all(directory, [NodePlan.load(node) for node in lab.nodes(directory)])
            _build_switch()
            report.send_ready(control)
            _serve(control, user)
    except Exception:
        report.send_failure(control)
        raise
    finally:
        _kill_everything()
        lab.remove(directory)


@contextlib.contextmanager
def _in_memory(directory: Path) -> Iterator[None]:
    """Keep a directory off the disk: a thousand small files per cluster are slow on some."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _build_switch() -> None:
    link.disable_ipv6()
    subprocess.run(["ip", "link", "add", SWITCH, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", SWITCH, "up"], check=True)


def _serve(control: socket.socket, user: int) -> None:
    """Start a node per request, and reap, until the user is gone."""
    child_ended = _wake_when_a_child_ends()
    while True:
        readable, _, _ = select.select([control, user, child_ended], [], [])
        if child_ended in readable:
            child_ended.recv(4096)
            _reap()
        if user in readable:
            return
        if control in readable:
            request, fds, _, _ = socket.recv_fds(control, 4096, 1)
            if not request:
                return
            (node_report,) = fds
            _start_node(NodePlan.load(request.decode()), node_report)
            os.close(node_report)


def _start_node(plan: NodePlan, node_report: int) -> None:
    """Start the init of a node in fresh namespaces; it reports by itself."""
    namespaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    switch = os.open("/proc/self/ns/net", os.O_RDONLY)
    init = [PYTHON, "-m", "tests.cluster.init", plan.directory, str(node_report), str(switch)]
    for fd in (node_report, switch):
        os.set_inheritable(fd, True)
    try:
        os.posix_spawn(
            "/usr/bin/unshare",
            ["unshare", *namespaces, *init],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (
                    os.POSIX_SPAWN_OPEN,
                    1,
                    str(plan.console),
                    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                    0o644,
                ),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsigmask=[],
        )
    finally:
        os.close(switch)


def _wake_when_a_child_ends() -> socket.socket:
    """A socket that becomes readable with every SIGCHLD."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer.detach())
    return reader


def _reap() -> None:
    """Collect what has ended: nodes, and orphans that fell to process 1."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _kill_everything() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)

    def alone() -> bool:
        _reap()
        return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()] == ["1"]

    wait_until(alone, "the end of all processes of the cluster")


if __name__ == "__main__":
    main(sys.argv[1:])
