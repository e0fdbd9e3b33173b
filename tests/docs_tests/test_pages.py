"""Links and anchors lead somewhere, and no command hides from the test that runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs_tests import pages

LANGUAGES = {"console", "text", "python", "xml", "ini"}
ELSEWHERE = re.compile(r"[a-z]+:")  # a scheme: we do not look at other sites

_ids = [pages.name_of(page) for page in pages.LINKED]


@pytest.mark.parametrize("page", pages.LINKED, ids=_ids)
def test_links_resolve(page: Path) -> None:
    wrong = []
    for number, link in pages.links(page):
        if ELSEWHERE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            wrong.append(f"{number}: {link}: no such file")
        elif anchor and anchor not in pages.anchors(target):
            wrong.append(f"{number}: {link}: no such heading")
    assert wrong == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), [pages.ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for _, link in pages.links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if not ELSEWHERE.match(link) and target.is_file():
                todo.append(target)
    assert [pages.name_of(page) for page in pages.PAGES if page not in reached] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=_ids[: len(pages.PAGES)])
def test_commands_are_in_console_blocks(page: Path) -> None:
    assert {block.language for block in pages.blocks(page)} <= LANGUAGES
    looks_like_one = re.compile(r" {4,}([#$] |sudo |\./|onestor |one[a-z]+ (create|update|show))")
    assert [number for number, line in pages.prose(page) if looks_like_one.match(line)] == []
    for block in pages.blocks(page):
        is_console = block.language == "console"
        has_commands = any(line[:2] in ("$ ", "# ") for line in block.lines)
        assert is_console or not has_commands or block.language in ("text", "python"), block.line
        assert not is_console or has_commands, f"{block.line}: a console without a command"


def test_the_parser() -> None:
    """On this directory's own idea of a page."""
    found = pages.commands(pages.ROOT / "docs" / "installing.md")
    assert ("root", "./install.sh") in [(each.user, each.text) for each in found]
    assert ("oneadmin", "onehost sync -f") in [(each.user, each.text) for each in found]
    nested = [each.text for each in pages.commands(pages.ROOT / "docs" / "operations.md")]
    assert "./install.sh --adopt 102" in nested  # in a list, so the block is indented
    anchors = pages.anchors(pages.ROOT / "docs" / "layout.md")
    assert {"image-datastore", "image-datastore-1", "notes-of-the-front-end"} <= anchors
