"""The pages of the documentation, taken apart: code blocks, commands, links, anchors, tables.

A command is a line of a ```console block that begins with ``# `` (root) or ``$ `` (oneadmin); the
other lines of such a block are what a command prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "DEVELOPMENT.md", ROOT / "CHANGELOG.md"]

_FENCE = re.compile(r"^( *)```(\S*)$")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_USERS = {"#": "root", "$": "oneadmin"}


@dataclass(frozen=True)
class Block:
    """A fenced code block; ``line`` is that of its first line."""

    page: Path
    line: int
    language: str
    lines: tuple[str, ...]


class Command(NamedTuple):
    """One command line, and who runs it."""

    page: str
    line: int
    user: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _split(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The fenced blocks of a page, and the numbered lines outside of them."""
    blocks, prose = [], []
    opened: tuple[int, str, str] | None = None
    content: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, content = (number + 1, fence[1], fence[2]), []
        elif opened is None:
            prose.append((number, line))
        elif fence and not fence[2]:
            blocks.append(Block(page, opened[0], opened[2], tuple(content)))
            opened = None
        else:
            content.append(line.removeprefix(opened[1]))
    assert opened is None, f"{name_of(page)}:{opened}: the block does not end"
    return blocks, prose


def blocks(page: Path) -> list[Block]:
    return _split(page)[0]


def prose(page: Path) -> list[tuple[int, str]]:
    return _split(page)[1]


def commands(*pages: Path) -> list[Command]:
    found = []
    for page in pages or PAGES:
        for block in blocks(page):
            if block.language != "console":
                continue
            for number, line in enumerate(block.lines, block.line):
                if line[:1] in _USERS and line[1:2] == " ":
                    user = _USERS[line[0]]
                    found.append(Command(name_of(page), number, user, line[2:].strip()))
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    for number, line in prose(page):
        for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            yield number, match[1]


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub and others have it."""
    found: set[str] = set()
    for _, line in prose(page):
        if heading := _HEADING.match(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            count = 0
            while name in found:
                count += 1
                name = f"{base}-{count}"
            found.add(name)
    return found


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the titles first."""
    found: list[list[list[str]]] = []
    before = -1
    for number, line in prose(page):
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if number != before + 1:
            found.append([])
        before = number
        if set("".join(cells)) - set("-: "):
            found[-1].append(cells)
    return found


def code_spans(page: Path) -> Iterator[tuple[int, str]]:
    for number, line in prose(page):
        for match in re.finditer(r"`([^`]+)`", line):
            yield number, match[1]
