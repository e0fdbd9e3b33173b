"""What OpenNebula's oned.conf and vmm_execrc must say of onestor, and what they do say.

oned.conf is not read by pattern: a small scanner knows comments, quotes and brackets, so a
commented-out copy of a section, a list that spans lines or an admin's extra option is no special
case. What the scanner does not recognise is told, never guessed at.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DRIVER = "onestor"
LIVE_SNAPSHOTS = ("kvm-onestor", "qemu-onestor")
ADD_LIVE_SNAPSHOTS = f"LIVE_DISK_SNAPSHOTS: add {' '.join(LIVE_SNAPSHOTS)} to the list"

# The values that fit the layout of onestor's disks: another one makes oned decide wrongly about
# snapshots or capacity. The rest of a section is the admin's to change.
BEHAVIOUR = {"LN_TARGET": "SYSTEM", "CLONE_TARGET": "SYSTEM", "SHARED": "NO"}
TM_CONF = {**BEHAVIOUR, "DS_MIGRATE": "YES", "ALLOW_ORPHANS": "YES"}
TM_CONF_SINCE_7_2 = {"DS_LIVE_MIGRATE": "YES", "DS_MIGRATE_SNAP": "YES"}
DS_CONF = {"REQUIRED_ATTRS": "", "PERSISTENT_ONLY": "NO", "MARKETPLACE_ACTIONS": "export"}
ESSENTIAL = {*BEHAVIOUR, "ALLOW_ORPHANS"}


class Unrecognised(Exception):
    """A file, or a part of it, does not look like OpenNebula's."""


class Attribute(NamedTuple):
    """A value inside a section; start and end enclose it without its quotes."""

    value: str
    start: int
    end: int
    after: int


class Section(NamedTuple):
    """NAME = [ ... ] in oned.conf."""

    name: str
    start: int
    end: int
    attributes: dict[str, Attribute]


class Edit(NamedTuple):
    start: int
    end: int
    text: str


@dataclass
class Item:
    """One thing that has to be in a configuration file."""

    file: str
    what: str
    paste: str
    present: bool = False
    edits: list[Edit] = field(default_factory=list)
    unrecognised: str = ""
    warnings: list[str] = field(default_factory=list)


BLANK = re.compile(r"(?:\s+|#[^\n]*)+")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
BARE = re.compile(r'[^\s,\[\]#"](?:[^,\[\]#"\n]*[^\s,\[\]#"])?')
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class Scanner:
    """Reads oned.conf's grammar: NAME = value, NAME = [ NAME = value, ... ], # comments."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def sections(self) -> list[Section]:
        found = []
        self.skip_blank()
        while self.at < len(self.text):
            start = self.at
            name = self.name()
            if self.next_is("["):
                found.append(Section(name, start, self.at, {}))
                attributes = self.vector()
                found[-1] = Section(name, start, self.at, attributes)
            else:
                self.value()
            self.skip_blank()
        return found

    def vector(self) -> dict[str, Attribute]:
        opened = self.at
        self.at += 1
        attributes: dict[str, Attribute] = {}
        while True:
            self.skip_blank()
            if self.next_is("]"):
                self.at += 1
                return attributes
            if self.at >= len(self.text):
                self.at = opened
                raise self.unexpected("a [ without its ]")
            name = self.name()
            attributes[name] = self.value()
            self.skip_blank()
            if self.next_is(","):
                self.at += 1

    def name(self) -> str:
        match = NAME.match(self.text, self.at)
        if not match:
            raise self.unexpected("neither a name nor a comment")
        self.at = match.end()
        self.skip_blank()
        if not self.next_is("="):
            raise self.unexpected(f"no = behind {match.group()}")
        self.at += 1
        self.skip_blank()
        return match.group().upper()

    def value(self) -> Attribute:
        quoted = QUOTED.match(self.text, self.at)
        bare = BARE.match(self.text, self.at)
        match = quoted or bare
        if not match:
            raise self.unexpected("no value, or a quote that is not closed")
        self.at = match.end()
        group = 1 if quoted else 0
        return Attribute(match.group(group), *match.span(group), match.end())

    def skip_blank(self) -> None:
        match = BLANK.match(self.text, self.at)
        if match:
            self.at = match.end()

    def next_is(self, char: str) -> bool:
        return self.text.startswith(char, self.at)

    def unexpected(self, what: str) -> Unrecognised:
        line = self.text.count("\n", 0, self.at) + 1
        return Unrecognised(f"line {line}: {what}")


def driver_list(sections: list[Section], name: str, program: str, option: str) -> tuple[Edit, bool]:
    """The list behind `option` in the ARGUMENTS of section `name`, and whether it has onestor.

    The edit puts onestor in or takes it out, whichever changes something.
    """
    of_name = [section for section in sections if section.name == name]
    ours = [
        section
        for section in of_name
        if "EXECUTABLE" in section.attributes
        and section.attributes["EXECUTABLE"].value.rpartition("/")[2] == program
    ]
    if len(ours) != 1 or len(of_name) != 1:
        raise Unrecognised(f"{len(of_name)} sections {name}, where one for {program} is expected")
    arguments = ours[0].attributes.get("ARGUMENTS")
    if arguments is None:
        raise Unrecognised(f"{name} has no ARGUMENTS")
    matches = list(re.finditer(rf"(?<!\S){option}\s+(\w\S*)", arguments.value))
    if len(matches) != 1 or matches[0].group(1).endswith(","):
        raise Unrecognised(f"no plain list behind {option} in the ARGUMENTS of {name}")
    words = matches[0].group(1).split(",")
    present = DRIVER in words
    words = [word for word in words if word != DRIVER] if present else [*words, DRIVER]
    start, end = (arguments.start + offset for offset in matches[0].span(1))
    return Edit(start, end, ",".join(words)), present


def conf_text(name: str, values: dict[str, str], eol: str = "\n") -> str:
    pairs = [f'{key} = "{value}"' for key, value in {"NAME": DRIVER, **values}.items()]
    lines = [", ".join(pairs[start : start + 4]) for start in range(0, len(pairs), 4)]
    return f"{name} = [{eol}    {(',' + eol + '    ').join(lines)}{eol}]"


def named_conf(text: str, sections: list[Section], name: str, values: dict[str, str]) -> Item:
    """The section `name` whose NAME is onestor: appended behind the last of its kind."""
    item = Item("oned.conf", name, conf_text(name, values))
    of_name = [section for section in sections if section.name == name]
    mine = [
        section
        for section in of_name
        if "NAME" in section.attributes and section.attributes["NAME"].value == DRIVER
    ]
    if not of_name:
        raise Unrecognised(f"there is no section {name}")
    if not mine:
        eol = "\r\n" if "\r\n" in text else "\n"
        at = end_of_line(text, of_name[-1].end)
        item.edits.append(Edit(at, at, eol + eol + conf_text(name, values, eol)))
        return item
    attributes = mine[-1].attributes
    missing = {key: value for key, value in values.items() if key not in attributes}
    item.present = not missing
    if missing:
        at = max(attribute.after for attribute in attributes.values())
        more = "".join(f', {key} = "{value}"' for key, value in missing.items())
        item.edits.append(Edit(at, at, more))
    item.warnings = [
        f'{name} of {DRIVER}: {key} is "{attributes[key].value}", the drivers need "{value}"'
        for key, value in values.items()
        if key in ESSENTIAL and key in attributes and attributes[key].value.upper() != value
    ]
    return item


def end_of_line(text: str, at: int) -> int:
    """The end of the line at `at`, when only blanks or a comment follow there; else `at`."""
    match = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?=\r?\n|\Z)").match(text, at)
    return match.end() if match else at


def live_snapshots(text: str, remove: bool) -> Item:
    """LIVE_DISK_SNAPSHOTS in vmm_execrc; the last assignment counts, as in a shell."""
    item = Item("vmm_execrc", "LIVE_DISK_SNAPSHOTS", ADD_LIVE_SNAPSHOTS)
    assignment = re.compile(
        r"^[ \t]*(?:export[ \t]+)?LIVE_DISK_SNAPSHOTS="
        r"(?:(?P<quote>[\"'])(?P<quoted>[^\"'`$]*)(?P=quote)|(?P<bare>[\w.-]*))[ \t]*(?:#.*)?\r?$",
        re.MULTILINE,
    )
    matches = list(assignment.finditer(text))
    if not matches:
        raise Unrecognised('no LIVE_DISK_SNAPSHOTS="..." is there')
    quoted = matches[-1].group("quoted") is not None
    group = "quoted" if quoted else "bare"
    value, (start, end) = matches[-1].group(group), matches[-1].span(group)
    words = value.split()
    missing = [word for word in LIVE_SNAPSHOTS if word not in words]
    item.present = not missing
    if remove:
        for word in LIVE_SNAPSHOTS:
            value = re.sub(rf"(?<!\S){word}(?!\S)[ \t]*", "", value)
        new = value.rstrip() if any(word in words for word in LIVE_SNAPSHOTS) else value
        item.present = len(missing) < len(LIVE_SNAPSHOTS)
    else:
        new = " ".join([value.rstrip(), *missing]).lstrip() if missing else value
    if new != matches[-1].group(group):
        item.edits.append(Edit(start, end, new if quoted else f'"{new}"'))
    return item


@dataclass
class Configuration:
    """Both files, and what they hold of onestor."""

    texts: dict[str, str]
    version: tuple[int, ...]
    unreadable: dict[str, str] = field(default_factory=dict)

    def items(self, remove: bool = False) -> list[Item]:
        return [*self.oned_items(remove), self.snapshot_item(remove)]

    def oned_items(self, remove: bool) -> Iterator[Item]:
        text = self.texts["oned.conf"]
        problem = ""
        sections: list[Section] = []
        try:
            sections = Scanner(text).sections()
        except Unrecognised as err:
            problem = str(err)
        lists = (("TM_MAD", "one_tm", "-d"), ("DATASTORE_MAD", "one_datastore", "-d"))
        for name, program, option in (*lists, ("DATASTORE_MAD", "one_datastore", "-s")):
            what = f"{name}, ARGUMENTS, {option}"
            item = Item(
                "oned.conf", what, f"{what}: add ,{DRIVER} to the list", unrecognised=problem
            )
            if not problem:
                try:
                    edit, item.present = driver_list(sections, name, program, option)
                    item.edits = [edit] if item.present is remove else []
                except Unrecognised as err:
                    item.unrecognised = str(err)
            yield item
        for name, values in (("TM_MAD_CONF", self.tm_conf(sections)), ("DS_MAD_CONF", DS_CONF)):
            item = Item("oned.conf", name, conf_text(name, values), unrecognised=problem)
            if not problem:
                try:
                    item = named_conf(text, sections, name, values)
                    if remove:
                        item.edits = [*removals(text, sections, name)]
                        item.present = bool(item.edits)
                except Unrecognised as err:
                    item.unrecognised = str(err)
            yield item

    def tm_conf(self, sections: list[Section]) -> dict[str, str]:
        """TM_MAD_CONF's values; two exist since 7.2. Without a VERSION file, look at ssh's."""
        modern = (
            self.version >= (7, 2)
            if self.version
            else any(
                section.name == "TM_MAD_CONF" and "DS_LIVE_MIGRATE" in section.attributes
                for section in sections
            )
        )
        return {**TM_CONF, **TM_CONF_SINCE_7_2} if modern else TM_CONF

    def snapshot_item(self, remove: bool) -> Item:
        try:
            return live_snapshots(self.texts["vmm_execrc"], remove)
        except Unrecognised as err:
            what = "LIVE_DISK_SNAPSHOTS"
            return Item("vmm_execrc", what, ADD_LIVE_SNAPSHOTS, unrecognised=str(err))


def removals(text: str, sections: list[Section], name: str) -> Iterator[Edit]:
    for section in sections:
        named = section.attributes.get("NAME")
        if section.name == name and named is not None and named.value == DRIVER:
            before = re.compile(r"(?:\r?\n[ \t]*){1,2}\Z").search(text, 0, section.start)
            start = before.start() if before else section.start
            yield Edit(start, end_of_line(text, section.end), "")


def apply_edits(text: str, edits: list[Edit]) -> str:
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


class Finding(NamedTuple):
    """One thing that was looked at: ``problem`` is "" when it is as it should be."""

    path: Path
    what: str
    problem: str
    mend: str


def check(etc: Path, configuration: Configuration, mend: str) -> Iterator[Finding]:
    """What is registered and what not; ``mend`` is the command that registers it."""
    for name, reason in configuration.unreadable.items():
        yield Finding(paths(etc)[name], "", reason, "give the right directory: --etc DIR")
    for item in configuration.items():
        path = paths(etc)[item.file]
        if item.file in configuration.unreadable:
            continue
        if item.unrecognised:
            by_hand = f"enter by hand: {' '.join(item.paste.split())}"
            yield Finding(path, item.what, item.unrecognised, by_hand)
        elif not item.present:
            yield Finding(path, item.what, f"{DRIVER} is not registered", mend)
        elif item.warnings:
            edit = f"edit {shlex.quote(str(path))}"
            yield Finding(path, item.what, "; ".join(item.warnings), edit)
        else:
            yield Finding(path, item.what, "", "")


def paths(etc: Path) -> dict[str, Path]:
    return {"oned.conf": etc / "oned.conf", "vmm_execrc": etc / "vmm_exec" / "vmm_execrc"}


def read(path: Path) -> str:
    """The text as it is: line ends untouched, and bytes that are not UTF-8 kept."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def load(etc: Path, version: tuple[int, ...]) -> Configuration:
    """Both files as they are; what cannot be read is told in ``unreadable``."""
    texts: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for name, path in paths(etc).items():
        try:
            texts[name] = read(path)
        except OSError as error:
            texts[name], unreadable[name] = "", error.strerror or str(error)
    return Configuration(texts, version, unreadable)
