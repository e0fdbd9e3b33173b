"""Where the content of a new image comes from: a file here, a web server, another machine.

A source gives its content once, in order and exactly, whatever happens to connections on the way;
or it raises. :class:`StartAgain` asks its reader to begin anew with an empty target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Union


class Zeros(int):
    """So many bytes of zeros that need not be read: a hole."""


Piece = Union[bytes, Zeros]


class StartAgain(Exception):
    """What has come so far is not the begin of what the source has now."""


class Source(Protocol):
    """One file that becomes an image.

    ``name`` is how people are told of it: without secrets. ``size`` is the announced length in
    bytes, None when it is not known before the end; it may be unknown until something was read.
    ``is_complete_at_end`` False means that nothing but the content itself tells a whole file from
    one that was cut off.
    """

    name: str

    @property
    def size(self) -> int | None: ...

    @property
    def is_complete_at_end(self) -> bool: ...

    def prepare(self) -> None:
        """Find out the size, as far as that is possible without a request more than needed."""

    def pieces(self) -> Iterator[Piece]:
        """The content in order; raises :class:`OnestorError` and :class:`StartAgain`."""

    def read_at(self, offset: int, count: int) -> bytes | None:
        """``count`` bytes at ``offset`` (fewer at the end) without reading what lies before.

        None when the source cannot do that. ``read_at(0, count)`` always works.
        """

    def close(self) -> None:
        """End connections; harmless when repeated."""


def open_source(description: dict[str, Any], *, step: str, stall: float) -> Source:
    """The source that ``description`` names; its ``kind`` is "file", "http" or "ssh".

    ``stall`` is how many seconds may pass without progress. Raises what opening raises.
    """
    kind = description["kind"]
    if kind == "file":
        from onestor_lib.agent.sources.local import FileSource

        return FileSource(description, step=step)
    if kind == "http":
        from onestor_lib.agent.sources.http import HttpSource

        return HttpSource(description, step=step, stall=stall)
    from onestor_lib.agent.sources.remote import RemoteSource

    return RemoteSource(description, step=step, stall=stall)
