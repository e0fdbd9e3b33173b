"""The messages in docs/troubleshooting.md are in the code, word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs_tests import pages

PAGE = pages.ROOT / "docs" / "troubleshooting.md"
SOURCES = ("onestor_lib", "packaging", "remotes")
VARIES = "…"  # in a message, what differs each time
LEAST = 8  # letters by which a message is known


def messages() -> list[str]:
    found = []
    for table in pages.tables(PAGE):
        if table[0][0] == "message":
            for row in table[1:]:
                match = re.fullmatch(r"`([^`]+)`", row[0])
                assert match and len(row) == 3 and all(row), row
                found.append(match[1])
    return found


def _texts() -> Iterator[str]:
    """Every text of the code as it is said, with :data:`VARIES` for what is filled in."""
    for directory in SOURCES:
        for file in (pages.ROOT / directory).rglob("*"):
            if not _is_python(file):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(_part(value) for value in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[rsd]", VARIES, node.value)


def _is_python(file: Path) -> bool:
    """By its name, or its first line: entry scripts have the names of actions."""
    if not file.is_file():
        return False
    return file.suffix == ".py" or b"python" in file.read_bytes().partition(b"\n")[0]


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else VARIES


TEXTS = {re.sub(rf"{VARIES}+", VARIES, text) for text in _texts()}


def fixed(message: str) -> str:
    """A message without what varies at its ends."""
    return re.sub(rf"^(?:{VARIES}[:;]? ?)+|(?:[:;]? ?{VARIES})+$", "", message)


def occurs(message: str) -> bool:
    text = fixed(message)
    return sum(map(str.isalpha, text)) >= LEAST and any(text in each for each in TEXTS)


@pytest.mark.parametrize("message", messages())
def test_message_is_in_the_code(message: str) -> None:
    assert occurs(message), f"nothing says {message!r}"


def test_messages_are_there_once() -> None:
    assert len(messages()) > 50
    assert len(messages()) == len(set(messages()))


def test_the_test_finds_what_is_wrong() -> None:
    assert occurs("replica … is not used: …")
    assert not occurs("replica … is not used today: …")
    assert not occurs("…: …")
