"""What a mad makes of a finished script, and oned of the mad's line (contract 1.3 to 1.5)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import NamedTuple

from tests.oned.version import at_least

MARKED = re.compile(
    r"^ERROR MESSAGE --8<------\n(.*?)ERROR MESSAGE ------>8--$", re.MULTILINE | re.DOTALL
)
LOG_LINE = re.compile(r"^(ERROR|INFO|WARN|DEBUG):\s+(\d+)?\s*(.*)$")
SEVERITY = re.compile(r"^(ERROR|DEBUG|INFO):(.*)$")


class LogLine(NamedTuple):
    """A line for oned's log. `id` is the VM or image whose log it is; -1 means none."""

    severity: str
    id: int
    text: str


class UnusableReply(Exception):
    """What a script printed is not what oned expects of its action."""


@dataclass(frozen=True)
class Result:
    """How a script ended: killed or timed out is code 255; a pipe left open gave nothing."""

    command: str
    code: int
    stdout: str
    stderr: str
    problem: str = ""


@dataclass(frozen=True)
class Reply:
    """One answer of a mad: its first line, and what else went to oned beside it."""

    action: str
    id: int
    success: bool
    info: str
    undefined: tuple[str, ...]
    log: tuple[LogLine, ...]
    result: Result

    @property
    def error(self) -> str:
        """The message oned shows: empty where the info begins with '-' (contract 1.5)."""
        return "" if self.success or self.info.startswith("-") else self.info

    def failure(self, prefix: str) -> str:
        """oned's text for a failed action: its own words, and the script's where it has some."""
        return f"{prefix}: {self.error}" if self.error else prefix


def read(version: str, action: str, number: int, result: Result, encode: bool = False) -> Reply:
    """Turn the end of a script into the mad's answer.

    With `encode` (monitor) the whole stdout travels as base64; for all other actions oned reads
    the first line, and takes the rest for messages it does not know.
    """
    success = result.code == 0
    info = (result.stdout if success else error_message(version, result)) or "-"
    if encode and success:
        info = base64.b64encode(info.encode()).decode()
    first, _, rest = info.partition("\n")
    return Reply(
        action=action,
        id=number,
        success=success,
        info=first.lstrip(),
        undefined=tuple(line for line in rest.splitlines() if line),
        log=tuple(log_lines(version, number, result)),
        result=result,
    )


def refuse(action: str, number: int, info: str) -> Reply:
    """The answer of a mad that found nothing to run."""
    return Reply(action, number, False, info, (), (), Result("", 255, "", "", info))


def nothing(action: str) -> Reply:
    """The answer of a mad that was given nothing to run."""
    return Reply(action, -1, True, "-", (), (), Result("", 0, "", ""))


def error_message(version: str, result: Result) -> str:
    """The error text in stderr, by version (contract 1.5)."""
    if result.problem:
        return result.problem
    if not at_least(version, "6.2"):
        marked = MARKED.search(result.stderr)
        return marked.group(1).strip() if marked else "-"
    if not at_least(version, "7.0"):
        return result.stderr.replace("\n", " ").strip()
    lines = result.stderr.splitlines()
    return "".join(line.strip() for line in lines if not LOG_LINE.match(line))


def log_lines(version: str, number: int, result: Result) -> list[LogLine]:
    """The log lines a script leads to, by version (contract 1.5).

    From 7.0 on a severity with digits behind it names the VM whose log it goes to.
    """
    lines = []
    if result.code:
        failed = f"Command execution failed (exit code: {result.code}): {result.command}"
        lines.append(LogLine("I", number, failed))
        lines += _failed_lines(number, result.stderr)
    if at_least(version, "7.0"):
        for line in result.stderr.splitlines():
            logged = LOG_LINE.match(line)
            if logged:
                severity, digits, text = logged.groups()
                lines.append(LogLine(severity[0], int(digits or -1), text))
    return lines


def _failed_lines(number: int, stderr: str) -> list[LogLine]:
    """Each line of a failed script: I, unless a severity leads it or the error markers hold it."""
    lines = []
    marked = False
    for line in stderr.strip().splitlines():
        if line.strip() in ("ERROR MESSAGE --8<------", "ERROR MESSAGE ------>8--"):
            marked = line.strip().endswith("--8<------")
            continue
        severity, text = "I", line
        leading = SEVERITY.match(line)
        if marked:
            severity = "E"
        elif leading:
            severity, text = leading.group(1)[0], leading.group(2)
        lines.append(LogLine(severity, number, text.strip()))
    return lines


def source_and_format(version: str, reply: Reply) -> tuple[str, str]:
    """oned's reading of cp: SOURCE FORMAT, up to 5.12 SOURCE (the format is then empty)."""
    words = reply.info.split()
    if not at_least(version, "6.0"):
        return words[0] if words else "", ""
    if len(words) < 2:
        raise UnusableReply("CP operation succeeded but image FORMAT was not returned.")
    return words[0], words[1]


def made_source(version: str, reply: Reply) -> str:
    """oned's reading of mkfs: from 6.0 on the whole payload is SOURCE, blanks and all."""
    return reply.info if at_least(version, "6.0") else _first_word(reply)


def cloned_source(version: str, reply: Reply) -> str:
    """oned's reading of clone: from 6.0 to 6.4 the whole line is SOURCE, else the first word."""
    whole = at_least(version, "6.0") and not at_least(version, "6.6")
    return reply.info if whole else _first_word(reply)


def cloned_format(version: str, reply: Reply) -> str:
    """oned's reading of clone: from 6.6 on the second word, if there is one, is FORMAT."""
    words = reply.info.split()
    return words[1] if at_least(version, "6.6") and len(words) > 1 else ""


def size_mb(reply: Reply) -> int:
    """oned's reading of stat: the first word is a number of MB."""
    word = _first_word(reply)
    if not re.fullmatch(r"\d+", word):
        raise UnusableReply(f"Cannot parse image SIZE: {reply.info}")
    return int(word)


def monitored(reply: Reply) -> dict[str, int]:
    """oned's reading of monitor: KEY=VALUE lines, the values in MB."""
    figures = {}
    for line in base64.b64decode(reply.info).decode().splitlines():
        pair = re.fullmatch(r"\s*([A-Z_]+)\s*=\s*\"?(\d+)\"?\s*", line)
        if pair:
            figures[pair.group(1)] = int(pair.group(2))
        elif re.fullmatch(r"\s*VM\s*=\s*\[.*\]\s*", line):
            continue  # a shared system datastore's VMs: probe.py reads their grammar
        elif line.strip():
            raise UnusableReply(f"Error parsing datastore information: {line}")
    return figures


def _first_word(reply: Reply) -> str:
    return reply.info.split()[0] if reply.info.split() else ""
