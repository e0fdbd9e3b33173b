"""frontend.xml: hostile documents, and how texts are looked up."""

from __future__ import annotations

import time
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
        '<!DOCTYPE a [<!ENTITY e "text">]><a b="&e;"/>',
        "\ufeff<!DOCTYPE a><a/>",
        " \n<!DOCTYPE a><a/>",
        '<?xml version="1.0"?><!DOCTYPE a><a/>',
        '\ufeff<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<!DOCTYPE a><a/>',
        "<!-- one --><?two ?>\n<!-- three\n--><!DOCTYPE a><a/>",
        "<!-- > <a> ?> --><?x <!-- ?><!DOCTYPE a><a/>",
        "<!-- <!DOCTYPE b> --><!DOCTYPE a><a/>",
    ],
)
def test_entities_and_document_types_are_refused(text: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    with pytest.raises(InvalidInput, match=r"^read the message: ") as refusal:
        parse(text.replace("FILE", str(secret)))
    assert "do not tell" not in str(refusal.value)


@pytest.mark.parametrize("declared", ["UTF-16", "UTF-16LE", "UTF-7", "UCS-4", "EBCDIC-US", "UTF-8"])
@pytest.mark.parametrize(
    "written", ["utf-16", "utf-16-le", "utf-16-be", "utf-7", "utf-32", "cp037"]
)
def test_no_other_encoding_hides_a_document_type(declared: str, written: str) -> None:
    """What looks for a document type reads bytes: the parser must read the same."""
    for declaration in (f'<?xml version="1.0" encoding="{declared}"?>', ""):
        document = f'{declaration}<!DOCTYPE a [<!ENTITY e "text">]><a b="&e;">&e;</a>'
        with pytest.raises(InvalidInput, match=r"^read the message: "):
            xml.parse(document.encode(written), "the message")
        # Half and half: the declaration is read as it says, what follows is in the other encoding.
        behind = document[len(declaration) :].replace("<!", "+ADwAIQ-")
        with pytest.raises(InvalidInput, match=r"^read the message: "):
            xml.parse(declaration.encode() + behind.encode(), "the message")


def test_a_declared_encoding_does_not_change_what_is_read() -> None:
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><a><b>ä</b></a>'
    assert parse(text).text("b") == "ä"


@pytest.mark.parametrize(
    "text",
    [
        "<a><b>&lt;!DOCTYPE a></b></a>",
        "<a><b><![CDATA[<!DOCTYPE a>]]></b></a>",
        "<a><!-- <!DOCTYPE a> --><b/></a>",
        '<a b="&lt;!DOCTYPE a>"/>',
        "<!-- <!DOCTYPE a> --><a/>",
        "<?x <!DOCTYPE a> ?><a/>",
    ],
)
def test_a_document_type_in_text_is_text(text: str) -> None:
    found = parse(text)
    assert found.tag == "a"
    if "<b>" in text:
        assert found.text("b") == "<!DOCTYPE a>"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ('<?xml version="1.0"?>', "-->"),
        ("<!-- one -->", "?>"),
        ('<?xml version="1.0"?>', "?>"),
        ("<?one ?>", "?>"),
        ("<!-- one -->", "-->"),
    ],
)
def test_the_prolog_ends_where_the_document_begins(start: str, end: str) -> None:
    text = f"{start}<a><b><![CDATA[{end}<!DOCTYPE a>]]></b></a>"
    assert parse(text).text("b") == f"{end}<!DOCTYPE a>"


@pytest.mark.parametrize(
    "prolog",
    [
        " " * 100_000,
        "<!---->" * 22,
        "<!-- -->\n<?x ?>" * 16,
    ],
    ids=["space", "comments", "mixed"],
)
def test_a_long_prolog_takes_no_time(prolog: str) -> None:
    begin = time.process_time()
    assert parse(prolog + "<a/>").tag == "a"
    assert time.process_time() - begin < 0.1


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
