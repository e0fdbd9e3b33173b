"""docs/coverage.md names lines of functions: they are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs_tests import pages

PAGE = pages.ROOT / "docs" / "coverage.md"
_ROW = re.compile(r"\| `(\S+\.py)` (\S+) \| ([^|]+) \|")


def rows() -> list[tuple[str, ...]]:
    """File, function and lines of each row."""
    return [match.groups() for match in _ROW.finditer(PAGE.read_text(encoding="utf-8"))]


def spans(node: ast.AST, name: str, above: str = "") -> Iterator[range]:
    """The lines of whatever has a dotted name."""
    for child in ast.iter_child_nodes(node):
        here = above
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            here = f"{above}.{child.name}".lstrip(".")
            if here == name:
                yield range(child.lineno, (child.end_lineno or child.lineno) + 1)
        yield from spans(child, name, here)


def test_there_are_rows() -> None:
    assert len(rows()) > 100


@pytest.mark.parametrize(("file", "function", "lines"), rows())
def test_lines_lie_in_their_function(file: str, function: str, lines: str) -> None:
    source = (pages.ROOT / "onestor_lib" / file).read_text(encoding="utf-8")
    found = list(spans(ast.parse(source), function))
    numbers = [int(number) for number in re.findall(r"\d+", lines)]
    assert numbers
    assert all(any(number in span for span in found) for number in numbers)
