"""Each row of docs/known-failures.md is a test at least; docs/known-failures-tests.md says which.

The rows are named in the tests' names. UPDATE_PAGES=1 in the environment writes the page anew.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator

from tests.docs_tests import pages

ROWS = pages.ROOT / "docs" / "known-failures.md"
PAGE = pages.ROOT / "docs" / "known-failures-tests.md"
HEAD = """\
# Which test is about which known failure

Made from the names of the tests; `tests/docs_tests/test_known_failures.py` fails when it is not
as they are. What each row is about: [known-failures.md](known-failures.md).

| row | tests |
|---|---|
"""
_ID = re.compile(r"[A-Z]\d+")


def rows() -> list[str]:
    """The ids of all rows, in their order."""
    return re.findall(r"^\| ([A-Z]\d+) \|", ROWS.read_text(encoding="utf-8"), re.MULTILINE)


def named() -> Iterator[tuple[str, str]]:
    """Each row that is in the name of a test, or of a class of tests, with where that is."""
    for file in sorted((pages.ROOT / "tests").rglob("test_*.py")):
        where = file.relative_to(pages.ROOT / "tests").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for word in node.name.split("_") if node.name.lower().startswith("test") else ():
                    if _ID.fullmatch(word):
                        yield word, f"`{where}::{node.name}`"


def matrix() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {row: [] for row in rows()}
    for row, test in named():
        assert row in found, f"{test} names {row}, which is no row"
        found[row].append(test)
    return found


def test_each_row_has_a_test() -> None:
    found = matrix()
    assert len(found) > 200
    assert [row for row, tests in found.items() if not tests] == []


def test_the_page_says_which() -> None:
    lines = [f"| {row} | {', '.join(tests)} |\n" for row, tests in matrix().items()]
    text = HEAD + "".join(lines)
    if os.environ.get("UPDATE_PAGES"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
