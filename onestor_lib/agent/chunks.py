"""Chunks, and the manifest that says what is in each.

Content is cut into chunks of 1 MiB. Each chunk that is not all zeros has a SHA-256; the manifest
lists them in order, and the digest of the whole is the SHA-256 over size and manifest. So a hole
costs nothing to hash, and equal content has an equal digest whatever holes its file has.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

CHUNK = 1 << 20  # bytes
DIGEST = 32  # bytes of the digest of one chunk

_ZEROS = bytes(CHUNK)
NOTHING = bytes(DIGEST)  # stands in a manifest for a chunk of zeros


def is_zero(block: bytes | bytearray | memoryview) -> bool:
    """Whether ``block`` (of at most one chunk) holds nothing but zeros."""
    return block == memoryview(_ZEROS)[: len(block)]


def chunk_digest(block: bytes | bytearray | memoryview) -> bytes:
    """The digest of one chunk; :data:`NOTHING` for one of zeros."""
    return NOTHING if is_zero(block) else hashlib.sha256(block).digest()


def count(size: int) -> int:
    """How many chunks content of ``size`` bytes has."""
    return -(-size // CHUNK)


class Manifest:
    """The digests of all chunks of content of ``size`` bytes: 32 bytes for each 1 MiB."""

    def __init__(self, size: int, digests: bytes = b"") -> None:
        """Of zeros, or of what ``digests`` say; ``ValueError`` when those are too many or few."""
        self.size = size
        self._digests = bytearray(digests or DIGEST * count(size))
        if len(self._digests) != DIGEST * count(size):
            raise ValueError("the manifest is damaged")

    def __len__(self) -> int:
        return len(self._digests) // DIGEST

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._digests[index * DIGEST : (index + 1) * DIGEST])

    def __setitem__(self, index: int, digest: bytes) -> None:
        self._digests[index * DIGEST : (index + 1) * DIGEST] = digest

    def data_chunks(self, start: int, end: int) -> Iterator[int]:
        """The indexes of the chunks between two offsets that are not all zeros, in order."""
        return (index for index in range(start // CHUNK, count(end)) if self[index] != NOTHING)

    def digest(self) -> str:
        """The digest of the whole content."""
        return hashlib.sha256(struct.pack(">QQ", CHUNK, self.size) + self._digests).hexdigest()

    def to_bytes(self) -> bytes:
        return bytes(self._digests)
