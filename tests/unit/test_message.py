"""frontend.message: both dialects, and what is no message."""

from __future__ import annotations

import base64
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import message
from onestor_lib.frontend.message import Message

XML = """<DS_DRIVER_ACTION_DATA><IMAGE><ID>4</ID><PATH>/a'b;$(c)</PATH></IMAGE><DATASTORE>
<BASE_PATH><![CDATA[/var/lib/one//datastores/1]]></BASE_PATH></DATASTORE></DS_DRIVER_ACTION_DATA>"""


def encode(text: str | bytes) -> bytes:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode())


def read(stdin: bytes) -> Message:
    return message.read(["7"], io.BytesIO(stdin))


@pytest.mark.parametrize("dialect", ["6.6", "6.8"])
def test_both_dialects(dialect: str) -> None:
    argv, stdin = ([encode(XML).decode(), "7"], b"") if dialect == "6.6" else (["7"], encode(XML))
    found = message.read(argv, io.BytesIO(stdin))
    assert (found.request_id, found.required("IMAGE/ID")) == (7, "4")
    assert found.required("IMAGE/PATH") == "/a'b;$(c)"
    assert found.base_path == "/var/lib/one//datastores/1", "as oned writes it"


def test_trap6_stdin_is_not_read_when_the_message_is_an_argument() -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("read")

    message.read([encode(XML).decode(), "7"], Unread())


def test_line_breaks_in_base64_do_not_matter() -> None:
    read(base64.encodebytes(XML.encode()))


@pytest.mark.parametrize(
    ("stdin", "cause"),
    [
        (b"", "it is empty"),
        (b" \n", "it is not XML"),
        (b"<VM/>", "it is not base64"),
        (b"\xff\xfe", "it is not base64"),
        (encode(XML)[:-3], "it is not base64"),
        (encode(""), "it is empty"),
        (encode("plain"), "it is not XML"),
        (encode(XML[:-5]), "it is not XML"),
        (encode("<VM/>"), "it is a VM, not a DS_DRIVER_ACTION_DATA"),
    ],
)
def test_what_is_no_message(stdin: bytes, cause: str) -> None:
    with pytest.raises(InvalidInput, match="read the (message|arguments): " + cause):
        read(stdin)


@pytest.mark.parametrize("argv", [[], ["a", "b", "c"], ["-7"], ["x"], ["7" * 30], [""]])
def test_wrong_words(argv: list[str]) -> None:
    with pytest.raises(InvalidInput, match="read the arguments"):
        message.read(argv, io.BytesIO(encode(XML)))


@pytest.mark.parametrize("path", ["IMAGE/SOURCE", "DATASTORE", "IMAGE/TEMPLATE/MD5"])
def test_missing_elements_are_named(path: str) -> None:
    with pytest.raises(InvalidInput, match=f"{path} is missing"):
        read(encode(XML)).required(path)
    assert read(encode(XML)).text(path, "default") == "default"


def test_a_base_path_that_is_no_path_is_refused() -> None:
    with pytest.raises(InvalidInput):
        _ = read(encode(XML.replace("/var/lib/one/", "../one"))).base_path


def test_K3_four_mebibytes_are_read_and_more_than_sixteen_refused() -> None:
    ids = "".join(f"<ID>{number}</ID>" for number in range(10_000))
    filler = f"<IMAGES>{ids}</IMAGES><X>{'x' * (4 << 20)}</X></DATASTORE>"
    assert read(encode(XML.replace("</DATASTORE>", filler))).required("IMAGE/ID") == "4"
    with pytest.raises(InvalidInput, match="larger than 16 MiB"):
        read(b"A" * (message.MAX_SIZE + 1))


@given(st.one_of(st.binary(), st.binary().map(base64.b64encode)))
def test_no_bytes_are_anything_but_a_message_or_refused(stdin: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(stdin)
