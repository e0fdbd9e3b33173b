"""frontend.xml: hostile documents, and how texts are looked up."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import xml

LAUGHS = '<!DOCTYPE a [<!ENTITY l0 "ha">' + "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10)
)


def parse(text: str) -> xml.Element:
    return xml.parse(text.encode(), "the message")


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a><a/>",
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a/>',
        '<!DOCTYPE a [<!ENTITY e "text">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "FILE">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY % e SYSTEM "FILE"> %e;]><a/>',
        "<a>&e;</a>",
        LAUGHS + "]><a>&l9;</a>",
        LAUGHS + ']><a b="&l9;"/>',
    ],
)
def test_entities_and_document_types_are_refused(text: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    with pytest.raises(InvalidInput, match=r"^read the message: ") as refusal:
        parse(text.replace("FILE", str(secret)))
    assert "do not tell" not in str(refusal.value)


def test_predefined_entities_are_text() -> None:
    assert parse("<a><b>&lt;&amp;&#65;</b></a>").text("b") == "<&A"


def test_J5_quotes_newlines_and_markup_in_values_are_text() -> None:
    value = 'it\'s "quoted" <b>\n$(x)'
    assert parse(f"<a><b><![CDATA[ {value} ]]></b></a>").text("b") == value


def test_lookup() -> None:
    root = parse("<a><b>1</b><!-- no --><b> 2 </b><c/><d><e>3</e></d></a>")
    assert root.tag == "a"
    assert root.text("b") == "2", "the last counts, as for OpenNebula"
    assert (root.text("c"), root.text("c", "x"), root.text("d/e")) == ("", "x", "3")
    assert [each.text(".") for each in root.all("b")] == ["1", "2"]
    assert root.has("d/e") and not root.has("e")


def test_deep_and_long_documents_are_read_or_refused() -> None:
    assert len(parse(f"<a><b>{'x' * (11 << 20)}</b></a>").text("b")) == 11 << 20
    depth = 100_000
    with pytest.raises(InvalidInput):
        parse("<a>" * depth + "</a>" * depth)
