"""Every command of the README and the docs is run, or is one of those that cannot be.

``onestor`` and plain programs run on the front-end of a test cluster, as the user that the prompt
says, where there is what the commands speak of: image 5, VM 7 with disk 0 on host01, the
datastores 101 and 102, the replica host03. ``install.sh`` runs for a front-end in a directory, or
where it needs more than files in the test cluster, too.

What docs/layout.md says of files is looked up here, too: the tests of one file share a cluster.
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
from tests.docs_tests import pages, test_layout
from tests.docs_tests.conftest import VM, set_up
from tests.docs_tests.pages import Command
from tests.install_tests.conftest import FrontEnd, new_front_end, real_tree
from tests.oned.life import Life
from tests.testbed import AGENT, DATASTORES, LOG, NOTES, REMOTES, Testbed

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
LOOKS = ("grep", "install -d", "printf", "ssh", "tail", "onestor cache list",
         "onestor cache prune", "onestor cache show", "onestor cache verify", "onestor doctor",
         "onestor metrics", "onestor recovery list", "onestor recovery run",
         "onestor vm show")  # fmt: skip
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
    if words(command.text)[:2] == ["onestor", "metrics"]:
        run_before(untouched, command)
    try_out(untouched, command)


def test_the_world_has_what_commands_look_for(untouched: Testbed) -> None:
    frontend = untouched.frontend
    assert frontend.exists(LOG) and "onestor" not in NOT_RUN
    assert run(frontend, Command("", 0, "root", "no-such-program"))[0] == 127
    assert run(frontend, Command("", 0, "root", "onestor no-such-command"))[0] == 2


def test_what_layout_md_names_on_the_front_end_is_there(untouched: Testbed) -> None:
    frontend = untouched.frontend
    done = frontend.run(["onestor", "recovery", "run"], check=False)
    assert done.returncode == 0, done.stderr
    paths = [
        "/usr/bin/onestor", f"{REMOTES}/tm/onestor", f"{REMOTES}/datastore/onestor",
        f"{REMOTES}/onestor_lib/INSTALLED", f"{REMOTES}/etc/tm/onestor/onestorrc",
        f"{REMOTES}/etc/datastore/onestor/onestor.conf", f"{NOTES}/recovery.lock",
    ]  # fmt: skip
    assert [path for path in paths if not frontend.exists(path)] == []
    text = test_layout.PAGE.read_text(encoding="utf-8")
    assert NOTES in text and DATASTORES in text


@pytest.mark.parametrize("command", by("cluster"))
def test_command_runs(bed: Testbed, command: Command) -> None:
    if "--adopt" in command.text:
        bed.system.tm_mad = bed.system.template["TM_MAD"] = "ssh"
        bed.cloud.save(bed.system)
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


def test_layout_md_names_every_file(bed: Testbed) -> None:
    vm = bed.cloud.vms[VM]
    reply = Life(bed.oned).snapshot(vm, vm.disks[0])
    assert reply.success, reply.error
    for node in bed.cluster.nodes:
        assert test_layout.undocumented(iter(bed.files(node))) == [], node.name
    assert f"102/{VM}/disk.0.snap/0" in bed.files(bed.hosts[0])
    assert any(name.endswith(".sidecar") for name in bed.files(bed.hosts[2]))


# -- install.sh ------------------------------------------------------------------------------------


class Installing:
    """A front-end on which one command after the other runs: each finds what it needs."""

    def __init__(self, site: FrontEnd) -> None:
        self._site = site
        self._done: set[tuple[str, ...]] = set()

    def run(self, *options: str) -> str:
        for step in self._needed_by(options):
            if step not in self._done:
                self.run(*step)
        said = self._site.run(*options).stdout
        self._done.add(options)
        if "--uninstall" in options:
            self._done.clear()
        return said

    def _needed_by(self, options: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not options or "--dry-run" in options:
            return []
        return [()] if options == ("--configure",) else [(), ("--configure",)]


@pytest.fixture(scope="module")
def installing() -> Iterator[Installing]:
    with new_front_end(real_tree) as site:
        (site.base / "units").mkdir()
        yield Installing(site)


@pytest.mark.parametrize("command", by("install"))
def test_install_sh_runs(installing: Installing, command: Command) -> None:
    _, *options = words(command.text)
    said = installing.run(*options)
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
