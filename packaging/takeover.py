"""Values of OpenNebula's ssh driver that go on counting: from its sshrc into our onestorrc.

An administrator who has tuned the ssh driver's replica should not lose that by changing drivers.
sshrc is a shell script that the ssh driver sources. Here it is only read, because install.sh runs
as root and the file belongs to the drivers' user: plain assignments count, and of everything else
we only find out where it ends. A value that just a shell could tell is not guessed.
"""

from __future__ import annotations

import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onestor_lib.frontend.config import Settings

ROOT = str(Path(__file__).resolve().parent.parent)
SSHRC = "etc/tm/ssh/sshrc"
ONESTORRC = "etc/tm/onestor/onestorrc"

NAMES = (
    "REPLICA_COPY_LOCK_TIMEOUT",
    "REPLICA_RECOVERY_SNAPS_DIR",
    "REPLICA_SSH_OPTS",
    "REPLICA_SSH_FE_OPTS",
    "REPLICA_MAX_SIZE_MB",
    "REPLICA_MAX_USED_PERC",
)

# How the actions read an attribute of each kind, so that what they would refuse shows here.
READERS: dict[str, Callable[[Settings, str], object]] = {
    "seconds": lambda settings, name: settings.seconds(name),
    "path": lambda settings, name: settings.path(name),
    "options": lambda settings, name: settings.options(name),
    "MB": lambda settings, name: settings.megabytes(name),
    "percent": lambda settings, name: settings.number(name, 1, 100),
}


class Found(NamedTuple):
    """The last word of a file about a name; ``value`` is None when only a shell can tell it."""

    line: int
    value: str | None


class Plan(NamedTuple):
    """The lines that onestorrc gets, by name, and what the administrator has to look at."""

    lines: dict[str, str]
    warnings: list[str]


# -- reading sshrc ----------------------------------------------------------------------------

QUOTED = r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\."""
TOKEN = re.compile(
    rf"""(?P<blank>(?:[ \t]|\\\n)+)|(?P<comment>\#[^\n]*)
    |(?P<operator>\n|;;?|&&?|\|\|?|<<?<?|[>()])
    |(?P<word>(?:{QUOTED}|[^ \t\n'"\\;&|<>()])+)""",
    re.DOTALL | re.VERBOSE,
)
# Without expansions of any kind. Some of these characters expand only in other places than an
# assignment, or only for some shells; none of them belongs into one of our values.
LITERAL = r"""(?:'[^']*'|"(?:[^"\\$`]|\\.)*"|\\.|[^'"\\$`~{}*?\[\]])*"""
ASSIGNMENT = re.compile(rf"([A-Za-z_][A-Za-z0-9_]*)=({LITERAL})", re.DOTALL)
PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^'"\\]+)""", re.DOTALL)
ELSEWHERE = re.compile(r"(?<![^\s;&|({])(?:\.|source|eval)(?=\s)")

CLOSED_BY = {
    "if": "fi",
    "case": "esac",
    "for": "done",
    "select": "done",
    "while": "done",
    "until": "done",
    "{": "}",
    "(": ")",
}
# After these words comes a command, so a keyword is a keyword there.
BEFORE_A_COMMAND = {"if", "then", "else", "elif", "while", "until", "do", "{", "!", "time"}


class Statement(NamedTuple):
    """A command with all that it encloses; ``words`` is None when it is more than words."""

    line: int
    text: str  # without comments
    words: list[str] | None


def statements(text: str) -> Iterator[Statement]:
    """The commands of a shell script, a conditional, loop or function as one.

    Only as exact as needed never to take the inside of one for a command of its own: where this
    loses its way (here-documents, quotes without an end), the rest of the text is one statement.
    """
    at, line, found, words = 0, 1, "", list[str]()
    simple = command = True  # nothing but words so far; a command's first word comes next
    enclosing: list[str] = []  # what ends each of the enclosing constructs
    previous = ""
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match["operator"] == "<<":
            yield Statement(line, found + text[at:], None)
            return
        at, token = match.end(), match[0]
        joined = token == "\n" and previous in ("&&", "||", "|")
        if token in ("\n", ";") and not enclosing and not joined:
            if found:
                yield Statement(line, found, words if simple else None)
            line += (found + token).count("\n")
            found, words, simple, command, previous = "", [], True, True, token
            continue
        if match["comment"]:
            continue
        found += token
        if match["blank"]:
            continue
        keyword = token
        if match["word"]:
            words.append(token)
            keyword = token if command or token == "{" else ""
        if enclosing and keyword == enclosing[-1]:
            enclosing.pop()
        elif keyword in CLOSED_BY:
            enclosing.append(CLOSED_BY[keyword])
        simple = simple and match["word"] is not None and not enclosing
        command = match["word"] is None or keyword in BEFORE_A_COMMAND
        previous = previous if joined else token
    if found:
        yield Statement(line, found, words if simple else None)


def assignments(words: list[str]) -> dict[str, str] | None:
    """What a command sets that does nothing else; None when it is another one."""
    exported = words[:1] == ["export"]
    values = {}
    for word in words[exported:]:
        match = ASSIGNMENT.fullmatch(word)
        if match:
            values[match[1]] = unquoted(match[2])
        elif not (exported and word.isidentifier()):  # `export NAME` sets no value
            return None
    return values


def unquoted(text: str) -> str:
    """The value of a word without expansions, as a shell has it."""

    def piece(match: re.Match[str]) -> str:
        single, double, escaped, plain = match.groups()
        if double is not None:
            return re.sub(r'\\(\n|["\\$`])', lambda found: found[1].strip("\n"), double)
        if escaped is not None:
            return str(escaped).strip("\n")
        return str(single if single is not None else plain)

    return PIECE.sub(piece, text)


def find(text: str) -> tuple[dict[str, Found], list[int]]:
    """What a shell script says about our names, and the lines where it runs another one."""
    found: dict[str, Found] = {}
    elsewhere = []
    for line, raw, words in statements(text):
        values = assignments(words) if words is not None else None
        if values is not None:
            found.update((name, Found(line, values[name])) for name in NAMES if name in values)
            continue
        for name in NAMES:
            mention = re.search(rf"(?<!\w){name}(?!\w)", raw)
            if mention:  # an earlier value may hold no longer
                found[name] = Found(line + raw.count("\n", 0, mention.start()), None)
        for call in ELSEWHERE.finditer(raw):
            elsewhere.append(line + raw.count("\n", 0, call.start()))
    return found, elsewhere


def read(path: Path) -> str | None:
    """The text of sshrc, None when there is none; anything else is an OSError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would keep us waiting
            raise OSError(0, "not a regular file", str(path))
        # What is not UTF-8 may be in a comment; in a value, `plan` refuses it.
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


# -- writing onestorrc ------------------------------------------------------------------------


def plan(path: Path, text: str) -> Plan:
    """Which values of sshrc become lines of onestorrc. What is as our default becomes none."""
    found, elsewhere = find(text)
    lines: dict[str, str] = {}
    problems = [(number, "runs or reads something else, not looked at") for number in elsewhere]
    for name in NAMES:
        if name in found:
            number, value = found[name]
            try:
                if line := judge(name, value):
                    lines[name] = line
            except ValueError as reason:
                problems.append((number, f"not taken over: {name} {reason}"))
    return Plan(lines, [f"{path}: line {number}: {text}" for number, text in sorted(problems)])


def judge(name: str, value: str | None) -> str:
    """The line for onestorrc, "" when our default says the same; ValueError says what is wrong."""
    if value is None:
        raise ValueError("needs a shell to be understood")
    # Here, because most runs need no library, and uninstalling has to do with a damaged one.
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    from onestor_lib.agent.errors import InvalidInput
    from onestor_lib.frontend.config import TM_ATTRIBUTES, Settings

    (attribute,) = (each for each in TM_ATTRIBUTES if each.name == name)
    if value.strip() == attribute.default:
        return ""
    if not value.strip() and attribute.kind != "options":
        raise ValueError(f'is empty, which here stands for the default, "{attribute.default}"')
    if not value.replace("\t", " ").isprintable():
        raise ValueError(f"is {value!r}, with characters that no setting has")
    try:
        READERS[attribute.kind](Settings(TM_ATTRIBUTES, {name: value}, "sshrc"), name)
    except InvalidInput as error:
        raise ValueError(error.cause.replace(f"{name} of sshrc ", "", 1)) from None
    return f"{name}={quoted(value)}"


def quoted(value: str) -> str:
    """In double quotes, as the other lines have it, unless a shell would read more into that."""
    return shlex.quote(value) if re.search(r'["\\$`!]', value) else f'"{value}"'


def activate(packaged: bytes, lines: Mapping[str, str]) -> bytes:
    """onestorrc with these lines in the places of the commented-out defaults."""
    text = packaged.decode("utf-8")
    for name, line in lines.items():
        place = re.search(rf"^#{name}=.*$", text, re.MULTILINE)
        if place:
            text = text[: place.start()] + line + text[place.end() :]
        else:  # this version knows no such setting and ignores it, the next one may not
            text += line + "\n"
    return text.encode("utf-8")


def carry(old: bytes, new: bytes) -> bytes:
    """A newer onestorrc with the values that were taken over into an older one.

    sshrc is not asked again: since then, onestorrc is where these values are kept.
    """
    active = re.compile(rf"^({'|'.join(NAMES)})=.*$", re.MULTILINE)
    return activate(new, {match[1]: match[0] for match in active.finditer(old.decode("utf-8"))})
