"""Every command of the README and the docs is run, or is one of those that cannot be.

``onestor`` and plain programs run on the front-end of a test cluster, as the user that the prompt
says, where there is what the commands speak of: image 5, VM 7 with disk 0 on host01, the
datastores 101 and 102, the replica host03. ``install.sh`` runs for a front-end in a directory, or
where it needs more than files in the test cluster, too.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import pytest

from onestor_lib.frontend.commands.onestor import main as onestor
from tests.cluster import Node
from tests.docs_tests import pages
from tests.docs_tests.conftest import set_up
from tests.docs_tests.pages import Command
from tests.install_tests.conftest import FrontEnd, new_front_end, real_tree
from tests.testbed import AGENT, LOG, Testbed

pytestmark = pytest.mark.cluster


class Absent(NamedTuple):
    """Why a program cannot run here, and the words that may follow its name."""

    why: str
    words: tuple[str, ...]


_TOOL = "OpenNebula's own: there is a stand-in for oned only"
NOT_RUN = {
    "onedatastore": Absent(_TOOL, ("create", "update")),
    "onehost": Absent(_TOOL, ("sync",)),
    "oneimage": Absent(_TOOL, ("create",)),
    "onetemplate": Absent(_TOOL, ("create", "instantiate")),
    "onevm": Absent(_TOOL, ("list", "recover")),
    "systemctl": Absent("no systemd in the test cluster", ("restart", "enable", "disable")),
}
ELSEWHERE = {
    "tests/run": "runs this test, and is what CI runs",
    "tests/bench": "takes ten minutes; one of its figures is run",
    "tests/coverage": "takes longer than the tests that it runs, this one among them",
}
# They change nothing that another one of them finds.
LOOKS = ("grep", "printf", "ssh", "tail", "onestor cache list", "onestor cache prune",
         "onestor cache show", "onestor cache verify", "onestor doctor", "onestor recovery list",
         "onestor recovery run", "onestor vm show")  # fmt: skip
# Exit statuses other than 0 that are an answer.
ANSWERS = {"grep": {1}, "onestor doctor": {1}}

COMMANDS = pages.commands()
# What stands there twice is run once.
DISTINCT = list({(each.user, each.text): each for each in COMMANDS}.values())
KINDS = ("look", "cluster", "demo", "install", "checkout", "absent")


def words(text: str) -> list[str]:
    return text.removeprefix("sudo ").split()


def programs(text: str) -> list[list[str]]:
    """The words of each program of a command line."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def is_here(command: Command) -> bool:
    """Whether it is a file of the checkout."""
    return (pages.ROOT / words(command.text)[0]).is_file()


def by(what: str) -> list[Any]:
    """The commands that are run in one way."""

    def way(command: Command) -> str:
        first = words(command.text)
        if first[0] == "./install.sh":
            return "cluster" if "--adopt" in first else "demo" if "--demo" in first else "install"
        if is_here(command):
            return "checkout"
        if any(each[0] in NOT_RUN for each in programs(command.text)):
            return "absent"
        return "look" if command.text.startswith(LOOKS) else "cluster"

    assert what in KINDS
    found = [each for each in DISTINCT if way(each) == what]
    return [pytest.param(each, id=str(each)) for each in found]


# -- on the test cluster ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untouched(running_bed: Testbed) -> Testbed:
    """As ``bed``, until a test takes that; they come first."""
    set_up(running_bed)
    return running_bed


@pytest.mark.parametrize("command", by("look"))
def test_command_that_looks_runs(untouched: Testbed, command: Command) -> None:
    try_out(untouched, command)


@pytest.mark.parametrize("command", by("cluster"))
def test_command_runs(bed: Testbed, command: Command) -> None:
    if "--adopt" in command.text:
        bed.system.tm_mad = bed.system.template["TM_MAD"] = "ssh"
        bed.cloud.save(bed.system)
    if words(command.text)[:2] == ["onestor", "metrics"]:
        run_before(bed, command)
    try:
        try_out(bed, command)
    finally:
        bed.system.tm_mad = "onestor"


def try_out(bed: Testbed, command: Command) -> None:
    status, said = run(bed.frontend, command)
    name = next((each for each in ANSWERS if command.text.startswith(each)), "")
    assert status in {0} | ANSWERS.get(name, set()), said
    assert "Traceback" not in said


def run(frontend: Node, command: Command) -> tuple[int, str]:
    """Run it as it stands there; a pipe fails with any of its programs."""
    done = frontend.run(
        ["/bin/bash", "-o", "pipefail", "-c", command.text],
        user=command.user,
        env=AGENT,
        cwd="/src" if command.text.startswith("./") else "/var/lib/one",
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def run_before(bed: Testbed, command: Command) -> None:
    """Run what stands before it in its block."""
    for each in COMMANDS:
        if each.page == command.page and command.line - 3 < each.line < command.line:
            assert run(bed.frontend, each)[0] == 0


def test_the_world_has_what_commands_look_for(bed: Testbed) -> None:
    assert bed.frontend.exists(LOG) and "onestor" not in NOT_RUN
    assert run(bed.frontend, Command("", 0, "root", "no-such-program"))[0] == 127
    assert run(bed.frontend, Command("", 0, "root", "onestor no-such-command"))[0] == 2


# -- install.sh ------------------------------------------------------------------------------------


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    with new_front_end(real_tree) as site:
        (site.base / "units").mkdir()
        yield site


@pytest.mark.parametrize("command", by("install"))
def test_install_sh_runs(front_end: FrontEnd, command: Command) -> None:
    _, *options = words(command.text)
    if options and options[0] != "--dry-run":
        front_end.run()
    if "--check" in options or "--uninstall" in options:
        front_end.run("--configure")
    said = front_end.run(*options).stdout
    assert said.strip()
    assert "problem: " not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("command", by("demo") + by("checkout"))
def test_command_of_the_checkout_runs(command: Command) -> None:
    argv = words(command.text)
    if argv == [argv[0]] and argv[0] in ELSEWHERE:
        assert os.access(pages.ROOT / argv[0], os.X_OK)
        return
    done = subprocess.run(argv, cwd=pages.ROOT, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout + done.stderr


# -- what cannot run -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", by("absent"))
def test_command_of_opennebula_is_one_of_a_list(command: Command) -> None:
    for name, *more in programs(command.text):
        assert name in NOT_RUN, f"{name}: it would run, but for the others of its line"
        assert more and more[0] in NOT_RUN[name].words, command.text


def test_the_list_has_no_more_than_is_used() -> None:
    used = {(each[0], each[1]) for command in COMMANDS for each in programs(command.text)[:1]
            if len(each) > 1}  # fmt: skip
    for name, absent in NOT_RUN.items():
        assert absent.why
        for word in absent.words:
            assert (name, word) in used, f"{name} {word}"
    told = {command.text.removeprefix("sudo ") for command in COMMANDS}
    assert set(ELSEWHERE) <= told


def test_there_are_commands_of_every_kind() -> None:
    assert all(by(kind) for kind in KINDS)
    assert sum(len(by(kind)) for kind in KINDS) == len(DISTINCT)


# -- onestor in running text -----------------------------------------------------------------------


def in_text() -> list[Any]:
    """Code spans that are a command line of onestor."""
    found = []
    for page in pages.PAGES:
        for number, text in pages.code_spans(page):
            if re.fullmatch(r"onestor( [a-z]+)+( --[a-z]+)*( [A-Z|]+)*", text):
                found.append(Command(pages.name_of(page), number, "root", text))
    return [pytest.param(each, id=str(each)) for each in found]


@pytest.mark.parametrize("command", in_text())
def test_onestor_in_the_text_exists(command: Command) -> None:
    here: click.Command = onestor
    for word in words(command.text)[1:]:
        if word.startswith("--"):
            options = {name for each in here.params for name in each.opts}
            assert word in options, f"{here.name} has no {word}"
        elif word.islower() and isinstance(here, click.Group):
            assert word in here.commands, f"onestor has no {word}"
            here = here.commands[word]
