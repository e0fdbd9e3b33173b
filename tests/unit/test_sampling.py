"""tests.sampling: how many, how spread, and that in time everything is tried."""

from __future__ import annotations

import pytest

from tests import sampling
from tests.sampling import Sampled, one_of, sample


@pytest.fixture(autouse=True)
def some_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "EVERYWHERE", False)


@pytest.mark.parametrize(("size", "count"), [(56, 1), (56, 3), (8, 3), (21, 6), (7, 7), (7, 9)])
def test_evenly_spread_and_in_time_all_of_it(size: int, count: int) -> None:
    seen: set[int] = set()
    for seed in range(size):
        found = sample(range(size), count, seed)
        assert len(found) == min(size, count)
        gaps = [after - before for before, after in zip(found, found[1:])]
        assert all(0 < gap < 2 * size / count + 1 for gap in gaps)
        seen |= set(found)
    assert seen == set(range(size))


@pytest.mark.parametrize("size", [16, 18, 20, 40])
def test_what_comes_in_turns_is_not_always_of_the_same_kind(size: int) -> None:
    mixed = [len({place % 2 for place in sample(range(size), 4, seed)}) > 1 for seed in range(16)]
    assert sum(mixed) > len(mixed) / 2


def test_one_of_so_many() -> None:
    assert [len(one_of(2, range(size))) for size in (0, 1, 2, 3, 25)] == [0, 1, 1, 2, 13]


def test_all_of_it_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "EVERYWHERE", True)
    assert list(sample(range(9), 2)) == list(range(9))


def test_who_has_all_variants_at_each_run_is_not_marked(request: pytest.FixtureRequest) -> None:
    assert isinstance(sample(range(9), 2), Sampled)
    assert not isinstance(sample(range(9), 9), Sampled)
    assert request.node.get_closest_marker("sampled") is None


@pytest.mark.parametrize("kind", one_of(2, ["one", "other"]))
def test_who_has_not_is_marked(request: pytest.FixtureRequest, kind: str) -> None:
    assert request.node.get_closest_marker("sampled") is not None
