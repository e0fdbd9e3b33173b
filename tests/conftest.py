"""What is said at the beginning of each run, and what is run first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.sampling import EVERYWHERE, SEED, Sampled

# No worker shall begin with a file that takes minutes when the others are about to end.
_FIRST = ("life", "soak_tests", "drivers", "commands", "docs_tests", "install_tests")

# What a process has compiled of the tests, asserts and all, the others use: it takes a worker twice
# as long as everything else that it does before its first test. Never beside the sources, though.
sys.pycache_prefix = str(Path(__file__).parents[1] / ".venv/pycache")
sys.dont_write_bytecode = False


def pytest_report_header() -> str:
    return "faults: all of them" if EVERYWHERE else f"faults: a sample, FAULTS_SEED={SEED}"


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        variants = (each for mark in item.iter_markers("parametrize") for each in mark.args)
        if any(isinstance(each, Sampled) for each in variants):
            item.add_marker("sampled")
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))
