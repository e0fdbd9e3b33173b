"""agent.chunks: manifests and the digest of the whole."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent import chunks
from onestor_lib.agent.chunks import CHUNK, DIGEST, NOTHING, Manifest, chunk_digest, is_zero


def manifest(content: dict[int, bytes], size: int) -> Manifest:
    made = Manifest(size)
    for index, block in content.items():
        made[index] = chunk_digest(block)
    return made


@given(st.dictionaries(st.integers(0, 40), st.binary(max_size=64)), st.integers(0, CHUNK - 1))
def test_holes_and_zeros_are_the_same(content: dict[int, bytes], less: int) -> None:
    size = 42 * CHUNK - less
    with_zeros = manifest({**content, 41: bytes(CHUNK)}, size)
    with_data = {index: block for index, block in content.items() if any(block)}
    without = manifest(with_data, size)
    assert with_zeros.digest() == without.digest()
    assert list(with_zeros.data_chunks(0, size)) == sorted(with_data)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({0: b"b"}, 2 * CHUNK),
        ({1: b"a"}, 2 * CHUNK),
        ({0: b"a"}, 2 * CHUNK - 1),
        ({0: b"a"}, 3 * CHUNK),
        ({}, 2 * CHUNK),
        ({0: b"a", 1: b"a"}, 2 * CHUNK),
    ],
)
def test_A8_every_difference_changes_the_digest(content: dict[int, bytes], size: int) -> None:
    assert manifest(content, size).digest() != manifest({0: b"a"}, 2 * CHUNK).digest()


def test_the_digest_is_the_documented_one() -> None:
    """Two versions of onestor must agree on it: it is written down beside images."""
    digests = hashlib.sha256(b"a").digest() + bytes(DIGEST)
    head = (CHUNK).to_bytes(8, "big") + (CHUNK + 1).to_bytes(8, "big")
    assert manifest({0: b"a"}, CHUNK + 1).digest() == hashlib.sha256(head + digests).hexdigest()


@pytest.mark.parametrize("length", [0, 1, 511, CHUNK])
def test_zeros_are_told_from_data(length: int) -> None:
    assert is_zero(bytes(length))
    assert not length or not is_zero(bytes(length - 1) + b"\1")
    assert chunk_digest(bytes(length)) == NOTHING
    assert chunk_digest(bytes(length) + b"\1") == hashlib.sha256(bytes(length) + b"\1").digest()


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (CHUNK, 1), (CHUNK + 1, 2), (1 << 40, 1 << 20)]
)
def test_a_last_chunk_may_be_short(size: int, count: int) -> None:
    assert chunks.count(size) == count
    if size < 1 << 40:
        assert len(Manifest(size)) == count


@given(st.dictionaries(st.integers(0, 9), st.binary(min_size=1, max_size=64)))
def test_a_manifest_survives_being_written_down(content: dict[int, bytes]) -> None:
    made = manifest(content, 10 * CHUNK)
    again = Manifest(made.size, made.to_bytes())
    assert again.digest() == made.digest()
    assert [again[index] for index in range(10)] == [made[index] for index in range(10)]


@pytest.mark.parametrize("wrong", [1, DIGEST - 1, DIGEST, 3 * DIGEST, 2 * DIGEST + 1])
def test_A9_a_manifest_of_another_length_is_damaged(wrong: int) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Manifest(2 * CHUNK, bytes(wrong))
