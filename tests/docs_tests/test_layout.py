"""docs/layout.md names every file that there is: test_commands.py looks, it has a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.docs_tests import pages

PAGE = pages.ROOT / "docs" / "layout.md"
# What stands between < and >, in regular expressions.
VARIES = {
    "name": "[-0-9a-f]+", "id": "[0-9]+", "hash": "[0-9a-f]+", "random": "[0-9a-f]+",
    "time": "[0-9TZ]+", "pid": "[0-9]+", "n": "[0-9]+", "moment": "[0-9]{13}",
}  # fmt: skip
_NAME = re.compile(r"^ {4,}(\S+(?:, \S+)*|\S+ {2}\S+/)(?: {2,}|$)")


def names() -> set[str]:
    """The names in the indented blocks: each is a whole path component."""
    found = set()
    for _, line in pages.prose(PAGE):
        if match := _NAME.match(line):
            for path in re.split(r",? +", match[1]):
                found |= set(path.strip("/").split("/"))
    return found


def pattern(name: str) -> str:
    parts = re.split(r"<([a-z]+)>", name)
    text = "".join(VARIES[part] if index % 2 else re.escape(part)
                   for index, part in enumerate(parts))  # fmt: skip
    text = re.sub(r"disk\\\.[01]", r"disk\\.[0-9]+", text)
    return re.sub(r"^(7|10[12])$", "[0-9]+", text).replace(r"\*", ".+")


def undocumented(paths: Iterator[str]) -> list[str]:
    known = re.compile("|".join(map(pattern, names())))
    return [path for path in paths if not all(map(known.fullmatch, path.split("/")))]


def test_the_patterns() -> None:
    """On names that are not made there."""
    good = [
        "102/7/.disk.0.20240102T030405Z-17.unknown/disk.0.base", "102/7/.onestor-kept",
        "101/.0f3a.0123456789abcdef.part", "replica_snaps/7/disk.1.1700000000000/digests",
        "101/.0f3a.image.sidecar", "tombstones/host01_a.json",
    ]  # fmt: skip
    assert undocumented(iter(good)) == []
    assert undocumented(iter(["101/.0f3a.surprise"])) != []
