"""The two ways in which oned writes values into XML, and its templates.

The fields of an object are plain text, the attributes of a template are CDATA, sorted by name;
both as in the recordings (contract section 1.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Union
from xml.sax.saxutils import escape

Value = Union[str, int, "Template", Sequence["Template"]]
Template = Mapping[str, Value]


def text(name: str, value: object) -> str:
    """An element whose text is escaped: <ID>7</ID>."""
    return f"<{name}>{escape(str(value))}</{name}>"


def cdata(name: str, value: object) -> str:
    """An element whose text is CDATA; a ]]> inside is divided between two sections."""
    content = str(value).replace("]]>", "]]]]><![CDATA[>")
    return f"<{name}><![CDATA[{content}]]></{name}>"


def ids(name: str, values: Iterable[int]) -> str:
    """A set of ids, the empty one written out: <VMS></VMS>."""
    return f"<{name}>{''.join(text('ID', value) for value in values)}</{name}>"


def template(name: str, attributes: Template, empty: str = "<{}></{}>") -> str:
    """A template: attributes by name, vectors nested, a sequence as one element per member."""
    if not attributes:
        return empty.format(name, name)
    inner = "".join(_attribute(key, attributes[key]) for key in sorted(attributes))
    return f"<{name}>{inner}</{name}>"


def collapsed(name: str, attributes: Template) -> str:
    """A template whose empty form is <NAME/>, as inside a VM."""
    return template(name, attributes, empty="<{}/>")


def _attribute(name: str, value: Value) -> str:
    if isinstance(value, (str, int)):
        return cdata(name, value)
    if isinstance(value, Mapping):
        return collapsed(name, value)
    return "".join(collapsed(name, member) for member in value)
