"""agent.chunks: the digest over chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent.chunks import CHUNK, ContentDigest, chunk_digest, is_zero


def digest(content: dict[int, bytes], size: int) -> str:
    folded = ContentDigest(size)
    for index in sorted(content):
        folded.fold(index, chunk_digest(content[index]))
    return folded.hexdigest()


@given(st.dictionaries(st.integers(0, 1 << 40), st.binary(max_size=64)), st.integers(0, 1 << 60))
def test_holes_and_zeros_are_the_same(content: dict[int, bytes], size: int) -> None:
    with_zeros = {**content, 1 << 41: bytes(CHUNK)}
    without = {index: block for index, block in content.items() if any(block)}
    assert digest(content, size) == digest(with_zeros, size) == digest(without, size)


@pytest.mark.parametrize(
    ("content", "size"),
    [({0: b"b"}, 9), ({1: b"a"}, 9), ({0: b"a"}, 10), ({}, 9), ({0: b"a", 1: b"a"}, 9)],
)
def test_A8_every_difference_changes_the_digest(content: dict[int, bytes], size: int) -> None:
    assert digest(content, size) != digest({0: b"a"}, 9)


@pytest.mark.parametrize("length", [0, 1, 511, CHUNK])
def test_zeros_are_told_from_data(length: int) -> None:
    assert is_zero(bytes(length))
    assert not length or not is_zero(bytes(length - 1) + b"\1")
