"""agent.crashpoints: the registry; that processes really die is tested in tests/tool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints


@pytest.fixture(autouse=True)
def chosen_none() -> Iterator[None]:
    yield
    crashpoints.choose("")


@pytest.mark.parametrize("name", ["publish.sync", "publish", " publish.synced"])
def test_a_wrong_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no crash point"):
        crashpoints.choose(name)


def test_other_points_are_passed() -> None:
    crashpoints.choose("publish.synced")
    for name in set(crashpoints.POINTS) - {"publish.synced"}:
        crashpoints.reach(name)


def test_names_by_action() -> None:
    assert "place.snapshots" in crashpoints.names("tm.ln")
    assert "place.snapshots" not in crashpoints.names("tm.clone")
    assert crashpoints.names("tm.nothing") == []
