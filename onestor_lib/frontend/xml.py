"""Reading XML that came from outside: no entities, no document types, no network; writing some.

The only module that imports lxml, and it does so when the first document is read: start-up time
is part of every action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onestor_lib.agent.errors import InvalidInput

if TYPE_CHECKING:
    from lxml.etree import _Element


class Element:
    """A node of a document; texts are looked up by path and never None."""

    def __init__(self, node: _Element) -> None:
        self._node = node

    @property
    def tag(self) -> str:
        return str(self._node.tag)

    def text(self, path: str, default: str = "") -> str:
        """The text at ``path`` ("TEMPLATE/SPARSE"), stripped; ``default`` when empty or missing.

        When it is there more than once the last counts, as it does for OpenNebula.
        """
        found = self._node.findall(path)
        return ((found[-1].text or "").strip() if found else "") or default

    def all(self, path: str) -> list[Element]:
        """The elements at ``path``."""
        return [Element(node) for node in self._node.findall(path)]

    def set_text(self, path: str, text: str) -> None:
        """Change the texts at ``path``."""
        for found in self._node.findall(path):
            found.text = text

    def to_text(self) -> str:
        """The element as a document."""
        from lxml import etree

        return str(etree.tostring(self._node, encoding="unicode"))

    def tags(self, path: str) -> list[str]:
        """The names of the elements in the element at ``path``."""
        found = self._node.find(path)
        return [] if found is None else [str(child.tag) for child in found]

    def has(self, path: str) -> bool:
        return self._node.find(path) is not None


def parse(text: bytes, what: str) -> Element:
    """Parse a document; raises :class:`InvalidInput` saying ``what`` could not be read."""
    from lxml import etree

    step = f"read {what}"
    # Before anything is parsed: entities in attributes are expanded whatever one asks for.
    if _has_doctype(text):
        raise InvalidInput(step, "document types and entities are refused")
    parser = etree.XMLParser(
        encoding="utf-8",  # whatever the document says of itself, or the check could be deceived
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=True,
        remove_comments=True,
    )
    try:
        return Element(etree.fromstring(text, parser))
    except (etree.XMLSyntaxError, ValueError) as error:
        raise InvalidInput(step, f"it is not XML: {error}") from None


def document(root: str, texts: Sequence[tuple[str, str]]) -> str:
    """A document with one element for each (tag, text), the texts as CDATA sections.

    Raises :class:`InvalidInput` for a text that cannot be written that way.
    """
    from lxml import etree

    top = etree.Element(root)
    for tag, text in texts:
        step = f"write {tag}"
        if "]]>" in text:
            raise InvalidInput(step, f"{text!r} would end a CDATA section")
        try:
            etree.SubElement(top, tag).text = etree.CDATA(text)
        except ValueError:
            raise InvalidInput(step, f"{text!r} has characters that XML cannot carry") from None
    return str(etree.tostring(top, encoding="unicode"))


def _has_doctype(text: bytes) -> bool:
    """Whether a document type stands before the root element, behind declarations and comments."""
    position = 3 if text.startswith(b"\xef\xbb\xbf") else 0  # byte order mark
    while True:
        while text[position : position + 1] in (b" ", b"\t", b"\r", b"\n"):
            position += 1
        for start, end in ((b"<?", b"?>"), (b"<!--", b"-->")):
            if text.startswith(start, position):
                found = text.find(end, position + len(start))
                if found < 0:
                    return False  # no XML at all, as the parser will say
                position = found + len(end)
                break
        else:
            return text.startswith(b"<!DOCTYPE", position)
