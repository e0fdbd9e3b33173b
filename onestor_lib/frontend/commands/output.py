"""How commands answer: tables and colours for people, plain text or JSON for programs.

Colours are for terminals, and not where NO_COLOR is set (https://no-color.org); text is folded to
the width of a terminal and left whole where a program reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_GAP = "  "
_NARROWEST = 12  # columns that the last column gets at least


def is_terminal() -> bool:
    """Whether a person reads standard output, even where Python's was redirected."""
    return os.isatty(1)


def has_colours() -> bool:
    """Whether words may be coloured."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, level: str) -> str:
    """``text`` in the colour of a level, where there are colours."""
    return click.style(text, fg=COLOURS[level]) if level in COLOURS and has_colours() else text


def lines(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line, for programs."""
    return "\n".join(json.dumps(row) for row in rows)


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    levels: Sequence[str] = (),
) -> str:
    """The rows below their titles; columns ``right`` are aligned right.

    The last column is folded to the width of the terminal. ``levels`` are the rows' colours.
    """
    rows = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles) - 1)]
    begin = sum(widths) + len(_GAP) * len(widths)
    found = [_line(titles, titles, widths, right)]
    for number, row in enumerate(rows):
        first, *more = _folded(row[-1], begin)
        text = _line([*row[:-1], first], titles, widths, right)
        found.append(coloured(text, levels[number]) if levels else text)
        found += [" " * begin + each for each in more]
    return "\n".join(found)


def _printable(text: str) -> str:
    """Names are what users and hosts have made of them: none may command the terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _line(
    cells: Sequence[str], titles: Sequence[str], widths: Sequence[int], right: Sequence[str]
) -> str:
    padded = [
        cell.rjust(width) if title in right else cell.ljust(width)
        for cell, title, width in zip(cells, titles, widths)
    ]
    return _GAP.join([*padded, cells[-1]]).rstrip()


def _folded(text: str, begin: int) -> list[str]:
    if not is_terminal():
        return [text]
    width = max(shutil.get_terminal_size().columns - begin, _NARROWEST)
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def megabytes(size: int | None) -> str:
    """A size in bytes as people read it."""
    if size is None:
        return "-"
    if size < 10 << 30:
        return f"{size / 2**20:.0f} MB"
    return f"{size / 2**30:.1f} GB"


def seconds(age: float | None) -> str:
    """A time in seconds as people read it."""
    if age is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * length:
            return f"{age / length:.0f} {unit}"
    return f"{age:.0f} s"
