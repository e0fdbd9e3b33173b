"""How a starting process tells the one that waits for it whether it is ready.

One message on a SOCK_SEQPACKET socket: READY with a pidfd of the sender, or the traceback.
"""

from __future__ import annotations

import os
import socket
import traceback

from tests.cluster.pidfd import ProcessHandle

READY = b"ready"


class StartError(RuntimeError):
    """A cluster or a node did not start."""


def channel() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_ready(report: socket.socket) -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        socket.send_fds(report, [READY], [pidfd])
    finally:
        os.close(pidfd)


def send_failure(report: socket.socket) -> None:
    """Send the exception that is being handled."""
    report.send(traceback.format_exc().encode())


def receive(report: socket.socket, timeout: float) -> ProcessHandle:
    """The process at the other end, once it is ready."""
    report.settimeout(timeout)
    message, fds, _, _ = socket.recv_fds(report, 1 << 16, 1)
    if message == READY:
        try:
            return ProcessHandle(fds[0])
        except ProcessLookupError:
            os.close(fds[0])
            raise StartError("ended as soon as it was ready") from None
    raise StartError(message.decode() or "ended before it was ready")
