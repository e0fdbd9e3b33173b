"""Settings: one table of attributes with type, default and meaning, and where values come from.

A value is looked for, in this order: in the disk's template, in the datastore's template, in the
configuration file, in the table below. Which of the first two apply is the action's knowledge.
The files have shell syntax and are read, never sourced: nothing in them is executed or expanded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onestor_lib.agent.errors import InvalidInput

_STEP = "read the configuration"


@dataclass(frozen=True)
class Attribute:
    """One setting: ``kind`` is yes/no, seconds, words, options, program or path.

    ``in_templates``: may the template of a datastore or disk set it? Only what its owner may
    decide; options of ssh or a program's name would be commands of the drivers' user.
    """

    name: str
    kind: str
    default: str
    meaning: str
    in_templates: bool = False


TM_ATTRIBUTES = (
    Attribute(
        "SPARSE",
        "yes/no",
        "YES",
        "NO: every disk gets all its blocks when it is made",
        in_templates=True,
    ),
    Attribute(
        "CHECK_FREE_SPACE",
        "yes/no",
        "YES",
        "fail before a transfer when there is no room for it",
        in_templates=True,
    ),
    Attribute(
        "REPLICA_COPY_LOCK_TIMEOUT", "seconds", "600", "longest wait for a lock somebody else holds"
    ),
    Attribute("CONNECT_TIMEOUT", "seconds", "10", "longest wait for a host to accept a connection"),
    Attribute("STALL_TIMEOUT", "seconds", "60", "longest time a transfer may stand still"),
    Attribute("CONVERT_TIMEOUT", "seconds", "7200", "longest time qemu-img may convert one image"),
    Attribute("SSH_OPTS", "options", "", "options for the ssh client that carries image data"),
    Attribute("HOST_PYTHON", "program", "python3", "the Python (3.9 or newer) of the hosts"),
    Attribute("LOG_FILE", "path", "/var/log/one/onestor.log", "onestor's own log"),
)

DATASTORE_ATTRIBUTES = (
    Attribute(
        "SPARSE", "yes/no", "YES", "NO: images in the datastore have no holes", in_templates=True
    ),
    Attribute(
        "CONVERT", "yes/no", "YES", "convert images to the datastore's DRIVER", in_templates=True
    ),
    Attribute(
        "RESTRICTED_DIRS",
        "words",
        "/",
        "directories that images may not be taken from",
        in_templates=True,
    ),
    Attribute(
        "SAFE_DIRS", "words", "/var/tmp", "the exceptions from RESTRICTED_DIRS", in_templates=True
    ),
    Attribute(
        "CHECK_FREE_SPACE",
        "yes/no",
        "YES",
        "fail before a copy when there is no room",
        in_templates=True,
    ),
    Attribute("CONVERT_TIMEOUT", "seconds", "7200", "longest time qemu-img may convert one image"),
    Attribute("CONNECT_TIMEOUT", "seconds", "10", "longest wait for a host to accept a connection"),
    Attribute("HOST_PYTHON", "program", "python3", "the Python (3.9 or newer) of the hosts"),
    Attribute("LOG_FILE", "path", "/var/log/one/onestor.log", "onestor's own log"),
)

FILES = {
    "tm": ("etc/tm/onestor/onestorrc", TM_ATTRIBUTES),
    "datastore": ("etc/datastore/onestor/onestor.conf", DATASTORE_ATTRIBUTES),
}


class Settings:
    """The values in force for one action; a bad value is an error that names the attribute."""

    def __init__(
        self,
        attributes: tuple[Attribute, ...],
        values: Mapping[str, str],
        origin: str = "the configuration",
    ) -> None:
        self._attributes = {each.name: each for each in attributes}
        self._values = {name: value for name, value in values.items() if value.strip()}
        self._origins = dict.fromkeys(self._values, origin)

    def over(self, values: Mapping[str, str], origin: str) -> Settings:
        """These settings with the non-empty ``values`` of a template taking precedence."""
        merged = Settings(tuple(self._attributes.values()), self._values)
        merged._origins = dict(self._origins)
        for name, value in values.items():
            if value.strip() and name in self.template_names():
                merged._values[name] = value
                merged._origins[name] = origin
        return merged

    def template_names(self) -> list[str]:
        """The attributes that a template may set."""
        return [name for name, each in self._attributes.items() if each.in_templates]

    def yes(self, name: str) -> bool:
        value = self._text(name).upper()
        if value not in ("YES", "NO"):
            raise self._bad(name, "YES or NO")
        return value == "YES"

    def seconds(self, name: str) -> float:
        value = self._text(name)
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
            raise self._bad(name, "a number of seconds, 1 or more")
        return float(value)

    def words(self, name: str) -> list[str]:
        return self._text(name).split()

    def options(self, name: str) -> list[str]:
        """Command line options; quotes group words as in a shell, nothing else has a meaning."""
        try:
            return shlex.split(self._text(name))
        except ValueError as error:
            raise self._bad(name, f"options ({error})") from None

    def program(self, name: str) -> str:
        value = self._text(name)
        if not re.fullmatch(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*", value):
            raise self._bad(name, "the name or path of a program")
        return value

    def path(self, name: str) -> Path:
        value = self._text(name)
        if not value.startswith("/"):
            raise self._bad(name, "an absolute path")
        return Path(value)

    def _text(self, name: str) -> str:
        return self._values.get(name, self._attributes[name].default).strip()

    def _bad(self, name: str, expected: str) -> InvalidInput:
        origin = self._origins.get(name, "the defaults")
        return InvalidInput(
            "read the settings", f"{name} of {origin} is {self._text(name)!r}, not {expected}"
        )


def load(kind: str, remotes: Path) -> Settings:
    """The settings of "tm" or "datastore" actions from the file below ``remotes``."""
    file, attributes = FILES[kind]
    path = remotes / file
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings(attributes, {})
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(_STEP, str(error), path=str(path)) from None
    return Settings(attributes, parse(text, str(path)), str(path))


def parse(text: str, path: str) -> dict[str, str]:
    """The assignments of a file in shell syntax; raises :class:`InvalidInput` with the line."""
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InvalidInput(_STEP, f"line {number}: {error}", path=path) from None
        if words[:1] == ["export"]:
            words = words[1:]
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if len(words) > 1 or not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidInput(_STEP, f"line {number} is no assignment", path=path)
        values[name] = value
    return values
