"""A file of this machine as the source of an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from onestor_lib.agent import extents, paths
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import TransferFailed
from onestor_lib.agent.sources import Piece, Zeros


class FileSource:
    """The file ``path``, opened once: what is checked is what is read (known failure J9).

    ``rules`` say where it may lie; without them it must be an image in the datastore ``base``.
    """

    is_complete_at_end = True

    def __init__(self, description: dict[str, Any], *, step: str) -> None:
        self.name = str(description["path"])
        self._step, self._block = step, int(description.get("block", CHUNK))
        if description.get("rules") is not None:
            rules = paths.Rules(**description["rules"])
            self.fd = paths.open_image(self.name, rules, step=step)
        else:
            image = paths.inside(self.name, description["base"], step=step)
            self.fd = paths.open_image(str(image), paths.ANYWHERE, step=step)
        self._before = os.fstat(self.fd)

    @property
    def size(self) -> int:
        return self._before.st_size

    @property
    def allocated(self) -> int:
        """Bytes that a copy with the same holes takes at most."""
        return min(self._before.st_blocks * 512, self.size)

    def prepare(self) -> None:
        """The size is known."""

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        """The content from ``start`` on; raises :class:`TransferFailed` if it changes."""
        position = start
        for begin, end in extents.data(self.fd, self.size, start):
            if begin > position:
                yield Zeros(begin - position)
            for offset in range(begin, end, self._block):
                block = extents.read_exactly(self.fd, min(self._block, end - offset), offset)
                yield block
            position = end
        if position < self.size:
            yield Zeros(self.size - position)
        after = os.fstat(self.fd)
        unchanged = (self.size, self._before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not unchanged:
            cause = "the file was changed while it was read"
            raise TransferFailed(self._step, cause, path=self.name)

    def read_at(self, offset: int, count: int) -> bytes:
        return extents.read_exactly(self.fd, count, offset)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
