"""How large a file will be as an image, told without reading all of it."""

from __future__ import annotations

from typing import Any

from onestor_lib.agent import compression, qemu_img
from onestor_lib.agent import image_format as formats
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.sources import Source, StartAgain, open_source

_STEP = "stat"


def image_size(
    description: dict[str, Any], *, inspect: bool, decompress: bool, told: int, stall: float
) -> int:
    """Bytes that a guest sees of the image that the source will be (known failures H10, H11).

    ``told`` is what somebody has given as its size, 0 for nothing. Raises :class:`InvalidInput`
    when nobody can tell, and what the source raises.
    """
    source = open_source(description, step=_STEP, stall=stall)
    try:
        head = source.read_at(0, formats.HEAD) or b""
        kind = formats.compression_of(head) if decompress else ""
        if kind:
            return _uncompressed(source, kind, inspect, told)
        if inspect and not head:
            raise InvalidInput(_STEP, "the file is empty", path=source.name)
        found = _of_content(source, head, source.size or 0, inspect, decompress) or told
        return found or _unknown(source, "the source does not tell")
    except StartAgain:
        raise InvalidInput(_STEP, "the file has changed meanwhile", path=source.name) from None
    finally:
        source.close()


def _of_content(source: Source, head: bytes, size: int, inspect: bool, decompress: bool) -> int:
    """The size that content says itself; 0 if it does not."""
    if not inspect:
        return size
    found = formats.describe(
        head, size, step=_STEP, path=source.name, keeps_compressed=not decompress
    )
    fd = getattr(source, "fd", None)
    if fd is None or found.format == "raw":
        return found.virtual_size
    # qemu is asked, too: it may know better, and an image it cannot open is none.
    return qemu_img.virtual_size_of_open(fd, found.format, step=_STEP, path=source.name)


def _uncompressed(source: Source, kind: str, inspect: bool, told: int) -> int:
    # The smallest piece that can be decompressed is large: a block of bzip2 has up to 900 kB.
    compressed = source.read_at(0, CHUNK) or b""
    head = compression.head_of(kind, compressed, formats.HEAD, step=_STEP)
    if inspect:
        found = formats.describe(head, len(head), step=_STEP, path=source.name)
        if found.format != "raw":
            return found.virtual_size or told or _unknown(source, f"a compressed {found.format}")
    size = None
    if source.size is not None:
        least = compression.least_disk_size(head)
        size = compression.uncompressed_size(kind, source.size, source.read_at, least=least)
    return size or told or _unknown(source, f"a {kind} file does not always tell its size")


def _unknown(source: Source, why: str) -> int:
    cause = f"its size cannot be known before it is here ({why}): give SIZE in MB"
    raise InvalidInput(_STEP, cause, path=source.name)
