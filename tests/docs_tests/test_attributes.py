"""docs/attributes.md has every attribute with the default that it has in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from onestor_lib.frontend import config
from onestor_lib.frontend.config import DATASTORE_ATTRIBUTES, TM_ATTRIBUTES, Attribute
from tests.docs_tests import pages

PAGE = pages.ROOT / "docs" / "attributes.md"
TEMPLATES = {"disk": "disk", "image": "image datastore", "system": "system datastore"}
FILES = (("`onestorrc`", TM_ATTRIBUTES), ("`onestor.conf`", DATASTORE_ATTRIBUTES))
# Places that the tables of config.py do not know of.
MORE_PLACES = {"QCOW2_OPTIONS": {"environment", "`/etc/one/tmrc`"}}
# What templates have by OpenNebula's own doing.
OPENNEBULAS = {"CONTEXT", "DISK", "SHARED", "SIZE"}


def rows() -> dict[str, list[str]]:
    (table,) = [table for table in pages.tables(PAGE) if table[0][0] == "attribute"]
    assert table[0] == ["attribute", "where", "default", "meaning"]
    names = [row[0] for row in table[1:]]
    assert names == sorted(names) and len(names) == len(set(names))
    assert all(len(row) == 4 and row[3] for row in table[1:])
    return {row[0]: row for row in table[1:]}


def attributes() -> dict[str, list[tuple[str, Attribute]]]:
    found: dict[str, list[tuple[str, Attribute]]] = {}
    for file, table in FILES:
        for attribute in table:
            found.setdefault(attribute.name, []).append((file, attribute))
    return found


def strings() -> Iterator[str]:
    for file in (pages.ROOT / "onestor_lib" / "frontend").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_attribute_with_its_places_and_its_default() -> None:
    table = rows()
    for name, known in attributes().items():
        assert name in table, f"{name} is missing"
        _, where, default, _ = table[name]
        places = {file for file, _ in known} | MORE_PLACES.get(name, set())
        for _, attribute in known:
            places |= {TEMPLATES[each] for each in attribute.templates}
            written = f"`{attribute.default}`" if attribute.default else ""
            assert default == written, name
        assert set(where.split(", ")) == places, name


def test_the_files_are_those_that_are_read() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for file, _ in config.FILES.values():
        assert f"`/var/lib/one/remotes/{file}`" in text


def test_what_is_read_elsewhere_is_in_the_code_and_in_the_table() -> None:
    words = set(re.findall(r"[A-Z][A-Z0-9_]+", "\n".join(strings())))
    for name in rows().keys() - attributes().keys():
        assert name.replace("<FS>", "") in words, f"nothing reads {name}"
    read = {
        match
        for text in strings()
        for match in re.findall(r"^(?:(?:IMAGE|DATASTORE)/)?TEMPLATE/([A-Z][A-Z0-9_]+)", text)
    }
    assert read - OPENNEBULAS <= rows().keys()


def test_attributes_in_other_pages_exist() -> None:
    """Words that look like ours, anywhere in the docs for users."""
    ours = re.compile(r"\b(?:REPLICA|HOST_CACHE|RECOVERY|CACHE|QCOW2)_[A-Z0-9_]+\b")
    known = {*rows(), "CACHE_PATH", "CACHE_"}
    for name in ("README.md", *(f"docs/{each}.md" for each in USERS_PAGES)):
        text = (pages.ROOT / name).read_text(encoding="utf-8")
        assert set(ours.findall(text)) <= known, name


USERS_PAGES = (
    "installing", "concepts", "attributes", "layout", "operations", "troubleshooting", "comparison",
)  # fmt: skip
