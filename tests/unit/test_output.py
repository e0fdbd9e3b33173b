"""frontend.commands.output: tables and units."""

from __future__ import annotations

import pytest

from onestor_lib.frontend.commands import output


def test_a_table_piped_is_whole() -> None:
    text = output.table(("A", "LONG", "B"), [["1", "x", "y " * 100]], right=("LONG",))
    assert text.splitlines()[0] == "A  LONG  B"
    assert text.splitlines()[1] == "1     x  " + ("y " * 100).strip()
    assert output.table(("A", "B"), []) == "A  B"


def test_names_do_not_command_the_terminal() -> None:
    text = output.table(("A", "B"), [["\x1b[2J", "a\x07\r\nb"]])
    assert text.splitlines()[1] == "?[2J  a???b"


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0 MB"), (5 << 20, "5 MB"), (9 << 30, "9216 MB"), (20 << 30, "20.0 GB")],
)
def test_sizes(size: int | None, text: str) -> None:
    assert output.megabytes(size) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [(None, "-"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_times(age: float | None, text: str) -> None:
    assert output.seconds(age) == text
