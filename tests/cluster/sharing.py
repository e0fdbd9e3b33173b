"""One directory in two nodes, as an NFS export mounted in both would be."""

from __future__ import annotations

import ctypes
import os

from tests.cluster.node import Node

# Of the x86-64 and arm64 kernels; glibc has no functions for them before 2.36.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE, _MOVE_EMPTY_PATH = 1, 4


def share(source: Node, target: Node, path: str) -> None:
    """Mount what `source` has at `path` over the same path of `target`.

    A copy of the mount is made in the one namespace and moved into the other by its descriptor.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = _share(source.pid, target.pid, path.encode())
        finally:
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(waited):
        raise OSError(code, os.strerror(code), path)


def _share(source: int, target: int, path: bytes) -> int:
    """In a process of its own; 0, or the number of the error."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    there = os.open(f"/proc/{target}/ns/mnt", os.O_RDONLY)
    here = os.open(f"/proc/{source}/ns/mnt", os.O_RDONLY)
    if libc.setns(here, 0):  # which goes to the root of it, too
        return ctypes.get_errno()
    mount = libc.syscall(_OPEN_TREE, -100, path, ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC))
    if mount < 0 or libc.setns(there, 0):
        return ctypes.get_errno()
    moved = libc.syscall(_MOVE_MOUNT, mount, b"", -100, path, _MOVE_EMPTY_PATH)
    return 0 if moved == 0 else ctypes.get_errno()


def unshare(target: Node, path: str) -> None:
    """Undo `share`, or take off whatever else is mounted there."""
    target.run(["umount", path], user="root")
