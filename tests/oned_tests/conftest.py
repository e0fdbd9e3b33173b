"""A machine for drivers: remotes to put scripts into, and a recorder that notes its calls."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oned.cloud import Cloud

RECORDINGS = Path(__file__).parent / "recordings"

RECORDER = """#!/usr/bin/python3 -IS
import json, os, sys
call = {
    "kind": sys.argv[0].split("/")[-3], "action": os.path.basename(sys.argv[0]),
    "argv": sys.argv[1:], "stdin": sys.stdin.read(), "cwd": os.getcwd(), "env": dict(os.environ),
    "nice": os.nice(0), "leads": os.getpgrp() in (os.getpid(), os.getppid()),
}
with open(ROOT + "/calls", "a") as calls:
    calls.write(json.dumps(call) + "\\n")
sys.stdout.write(ANSWER)
"""


class Machine:
    """Remotes below `root`; its drivers are real programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remotes = root / "remotes"
        self.home = root / "home"
        self.home.mkdir()

    def script(self, path: str, text: str) -> Path:
        """Put a program into the remotes, a shell script unless its first line says otherwise."""
        program = self.remotes / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    def recorder(self, path: str, answer: str = "") -> None:
        """Put a program into the remotes that notes how it was called, and prints `answer`."""
        text = RECORDER.replace("ROOT", repr(str(self.root))).replace("ANSWER", repr(answer))
        self.script(path, text)

    def calls(self) -> list[dict[str, Any]]:
        try:
            text = (self.root / "calls").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    yield Cloud(tmp_path / "oned")


def lifecycle(version: str) -> list[dict[str, Any]]:
    """The recorded calls of one OpenNebula, 6.10 or 7.4."""
    text = (RECORDINGS / f"opennebula-{version}-lifecycle.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
