"""Disks of a VM that come from no image: empty ones, and its context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestor_lib.agent import blank, placing, publish, space, transfer
from onestor_lib.agent.errors import TransferFailed, from_os_error
from onestor_lib.agent.server import Call

_PATIENCE = 60.0  # seconds for another writer of a temporary to end


def make(
    call: Call,
    *,
    path: str,
    size: int,
    image_format: str,
    filesystem: str,
    options: list[str],
    qcow2_options: list[str],
    sparse: bool,
    check_space: bool,
    timeout: float,
    record: dict[str, Any],
    retry: bool,
    lock_timeout: float,
) -> None:
    """Put an empty disk of ``size`` bytes at ``path``; see ``onestor_lib.agent.blank.make``.

    The other arguments are those of ``disk.place``.
    """
    disk = Path(path)
    with (
        placing.held(call, disk, record=record, retry=retry, lock_timeout=lock_timeout) as place,
        _explained(disk),
    ):
        if check_space and not sparse:
            space.require(disk.parent, size)
        made = blank.make(
            disk, size=size, image_format=image_format, filesystem=filesystem, options=options,
            sparse=sparse, timeout=timeout, stack=place.stack, qcow2_options=qcow2_options,
        )  # fmt: skip
        place.take(lambda replace, undo: made.publish(mode=0o660, replace=replace))


def receive(
    call: Call, *, path: str, size: int, record: dict[str, Any], lock_timeout: float
) -> None:
    """Put ``size`` bytes that the front-end brings at ``path``, over whatever is there.

    The front-end is asked for the ``content`` of the temporary it is told. The VM may run and have
    the old file open: it keeps that until it opens the disk anew.
    """
    disk = Path(path)
    with (
        placing.held(call, disk, record=record, retry=True, lock_timeout=lock_timeout) as place,
        _explained(disk),
    ):
        made = place.stack.enter_context(publish.Temporary(disk))
        answer = call.ask("content", temporary=str(made.path))
        with transfer.claimed(made.path, answer["written"], _PATIENCE):
            if (arrived := made.path.stat().st_size) != size:
                cause = f"{arrived} of {size} bytes have arrived"
                raise TransferFailed("receive", cause, path=str(made.path))
            made.renew()
        place.take(lambda there, undo: made.publish(mode=0o660, replace=there), replace=True)


@contextlib.contextmanager
def _explained(disk: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise  # may mean that the VM was deleted, see ``placing.held``
    except OSError as error:
        raise from_os_error("make disk", error, path=str(disk)) from error
