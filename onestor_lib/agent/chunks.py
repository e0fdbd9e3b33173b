"""Chunks and the digest over them.

Content is cut into chunks of 1 MiB. Each chunk that is not all zeros has a SHA-256; the digest of
the whole is the SHA-256 over the size and the (index, digest) pairs in order. So a hole costs
nothing to hash, however large, and equal content has an equal digest whatever holes its file has.
"""

from __future__ import annotations

import hashlib
import struct

CHUNK = 1 << 20  # bytes

_ZEROS = bytes(CHUNK)


def is_zero(block: bytes | bytearray | memoryview) -> bool:
    """Whether ``block`` (of at most one chunk) holds nothing but zeros."""
    return block == memoryview(_ZEROS)[: len(block)]


class ContentDigest:
    """Collects chunks in any order and gives the digest over all."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}

    def add(self, index: int, block: bytes | bytearray | memoryview) -> None:
        """Take the content of chunk ``index``; chunks never added are zeros."""
        if not is_zero(block):
            self._chunks[index] = hashlib.sha256(block).digest()

    def hexdigest(self, size: int) -> str:
        """The digest of content that is ``size`` bytes long."""
        whole = hashlib.sha256(struct.pack(">QQ", CHUNK, size))
        for index in sorted(self._chunks):
            whole.update(struct.pack(">Q", index) + self._chunks[index])
        return whole.hexdigest()
