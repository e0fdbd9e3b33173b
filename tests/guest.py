"""The smallest guest that writes to its disk: a boot sector that counts.

It fits into the first sector of any disk and needs nothing but the firmware. Again and again it
adds one to a counter and writes it to the sector ``FIRST + counter % RING``: so a copy of the disk
is the state at one moment if, and only if, the ring holds consecutive numbers.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.cluster import Node

SECTOR = 512
FIRST, RING = 2048, 256  # sectors; the first one is a multiple of the other
_ORIGIN = 0x7C00  # where the firmware loads the sector and starts
_DRIVE, _COUNTER, _REQUEST = 0x7D00, 0x7D04, 0x7D10  # addresses in the sector
_BUFFER = 0x8000


def _word(value: int) -> bytes:
    return struct.pack("<H", value)


def _long(value: int) -> bytes:
    return struct.pack("<I", value)


def boot_sector() -> bytes:
    """The guest."""
    begin = b"".join(
        [
            b"\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc" + _word(_ORIGIN) + b"\xfb",  # segments, sp
            b"\x88\x16" + _word(_DRIVE),  # mov [drive], dl
        ]
    )
    loop = b"".join(
        [
            b"\x66\xff\x06" + _word(_COUNTER),  # inc dword [counter]
            b"\x66\xa1" + _word(_COUNTER),  # mov eax, [counter]
            b"\x66\xa3" + _word(_BUFFER),  # mov [buffer], eax
            b"\x66\x25" + _long(RING - 1),  # and eax, RING - 1
            b"\x66\x05" + _long(FIRST),  # add eax, FIRST
            b"\x66\xa3" + _word(_REQUEST + 8),  # mov [request.sector], eax
            b"\xb8\x00\x43\x8a\x16" + _word(_DRIVE),  # mov ax, 0x4300; mov dl, [drive]
            b"\xbe" + _word(_REQUEST) + b"\xcd\x13",  # mov si, request; int 0x13: write
            # hlt: until the timer ticks, 18 times a second. Three, for writes are what it costs.
            b"\xf4" * 3,
        ]
    )
    code = begin + loop + b"\xeb" + struct.pack("b", -len(loop) - 2)
    sector = bytearray(SECTOR)
    sector[: len(code)] = code
    # Disk address packet: its size, one sector, the buffer, the sector's number.
    request = struct.pack("<BBHHHQ", 16, 0, 1, _BUFFER, 0, FIRST)
    offset = _REQUEST - _ORIGIN
    sector[offset : offset + len(request)] = request
    sector[-2:] = b"\x55\xaa"
    return bytes(sector)


class Count(NamedTuple):
    """How far the guest is by what is on its disk."""

    highest: int
    is_one_moment: bool


def read(disk: bytes) -> Count:
    """Look at the content of a disk, raw, from its begin to behind the ring."""
    begin = FIRST * SECTOR
    found = [struct.unpack_from("<I", disk, begin + index * SECTOR)[0] for index in range(RING)]
    highest = max(found)
    expected = [0] * RING
    for number in range(max(1, highest - RING + 1), highest + 1):
        expected[number % RING] = number
    return Count(highest, found == expected)


def on(node: Node, path: str, image_format: str) -> Count:
    """How far the guest is by what a disk on a node says, chain and all, running or not."""
    begin, size = FIRST * SECTOR, RING * SECTOR
    argv = ["qemu-img", "dd", "-U", "-f", image_format, "-O", "raw", f"bs={RING * SECTOR}"]
    copy = "/var/tmp/ring"
    node.run([*argv, f"count={FIRST // RING + 1}", f"if={path}", f"of={copy}"])
    content = node.read(copy)
    node.run(["rm", copy])
    return read(content.ljust(begin + size, b"\0"))
