"""agent.crashpoints: the registry; that processes really die is tested in tests/tool."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from onestor_lib.agent import crashpoints
from tests.tool.conftest import ROOT


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


def test_whatever_passes_a_point_is_killed_there_by_a_test() -> None:
    """Tests are made of the list by ``names("tm.clone")``, or by ``points``, for each of these."""
    killed = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        if "unit" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                first = node.args[0]
                if name in ("names", "points") and isinstance(first, ast.Constant):
                    killed.add(first.value)
    assert killed == {action for actions in crashpoints.POINTS.values() for action in actions}


def test_kinds_of_a_clone_pass_different_points() -> None:
    whole, thin = crashpoints.names("tm.clone"), crashpoints.names("tm.clone thin")
    assert "place.received" in whole and "place.received" not in thin
    assert "place.based" in thin and "place.based" not in whole
    assert "fill.synced" in whole and "fill.synced" in thin
    assert not [name for name in crashpoints.names("tm.ln") if name.startswith("fill")], "A15"
