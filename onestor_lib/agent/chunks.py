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


def chunk_digest(block: bytes | bytearray | memoryview) -> bytes:
    """The digest of one chunk; b"" for one of zeros."""
    return b"" if is_zero(block) else hashlib.sha256(block).digest()


class ContentDigest:
    """Folds the digests of chunks, in order, into the digest of content of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._whole = hashlib.sha256(struct.pack(">QQ", CHUNK, size))

    def fold(self, index: int, digest: bytes) -> None:
        """Take the :func:`chunk_digest` of chunk ``index``; chunks left out are zeros."""
        if digest:
            self._whole.update(struct.pack(">Q", index) + digest)

    def hexdigest(self) -> str:
        return self._whole.hexdigest()
