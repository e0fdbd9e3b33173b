"""packaging/takeover.py, and what install.sh makes of the ssh driver's sshrc."""

from __future__ import annotations

import importlib.util
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.frontend import config
from tests.install_tests.conftest import (
    ROOT,
    USER,
    FrontEnd,
    Installation,
    Installations,
    configurable_tree,
    new_front_end,
)

RC = "etc/tm/onestor/onestorrc"
SSHRC = "etc/tm/ssh/sshrc"
PACKAGED = (ROOT / "remotes" / RC).read_bytes()

# What OpenNebula ships: the values are our defaults.
STOCK = """\
# Timeout to expire lock operations
REPLICA_COPY_LOCK_TIMEOUT=600
REPLICA_RECOVERY_SNAPS_DIR="/var/lib/one/datastores/replica_snaps"
REPLICA_SSH_OPTS="-c aes128-gcm@openssh.com -m umac-64@openssh.com"
REPLICA_SSH_FE_OPTS=""
# Maximum size of cached images on replica in MB, if not specified
REPLICA_MAX_SIZE_MB=""
REPLICA_MAX_USED_PERC=90
"""


def load() -> ModuleType:
    # By its path: as a package, `packaging` is somebody else's.
    path = ROOT / "packaging" / "takeover.py"
    spec = importlib.util.spec_from_file_location("onestor_takeover", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


takeover = load()


def taken(text: str) -> dict[str, str]:
    """What the drivers read from onestorrc after a take-over; nothing may be refused."""
    plan = takeover.plan(Path("sshrc"), text)
    assert plan.warnings == []
    return config.parse(takeover.activate(PACKAGED, plan.lines).decode(), RC)


def refused(text: str) -> list[str]:
    """The warnings about a file from which no value may be taken."""
    plan = takeover.plan(Path("sshrc"), text)
    assert plan.lines == {}
    return list(plan.warnings)


# -- the shell file ---------------------------------------------------------------------------


def test_every_name_is_a_setting_with_a_reader_and_a_place_in_onestorrc() -> None:
    attributes = {each.name: each for each in config.TM_ATTRIBUTES}
    for name in takeover.NAMES:
        assert attributes[name].kind in takeover.READERS
        assert PACKAGED.count(f'\n#{name}="'.encode()) == 1


def test_the_stock_file_has_nothing_to_take_over() -> None:
    assert taken(STOCK) == {}
    assert takeover.activate(PACKAGED, {}) == PACKAGED


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("REPLICA_MAX_USED_PERC=80", "REPLICA_MAX_USED_PERC", "80"),
        ('REPLICA_MAX_USED_PERC="80"', "REPLICA_MAX_USED_PERC", "80"),
        ("REPLICA_MAX_USED_PERC='8'\"0\"", "REPLICA_MAX_USED_PERC", "80"),
        ("export REPLICA_MAX_USED_PERC=80", "REPLICA_MAX_USED_PERC", "80"),
        ("REPLICA_MAX_USED_PERC=80\nexport REPLICA_MAX_USED_PERC", "REPLICA_MAX_USED_PERC", "80"),
        ("  REPLICA_MAX_USED_PERC=80;  # fuller", "REPLICA_MAX_USED_PERC", "80"),
        ("REPLICA_MAX_USED_PERC=70\nREPLICA_MAX_USED_PERC=80", "REPLICA_MAX_USED_PERC", "80"),
        ("REPLICA_MAX_USED_PERC=$X\nREPLICA_MAX_USED_PERC=80", "REPLICA_MAX_USED_PERC", "80"),
        ("# caf\udce9\nREPLICA_MAX_USED_PERC=80", "REPLICA_MAX_USED_PERC", "80"),
        ("REPLICA_COPY_LOCK_TIMEOUT=1800", "REPLICA_COPY_LOCK_TIMEOUT", "1800"),
        ("REPLICA_MAX_SIZE_MB=500000", "REPLICA_MAX_SIZE_MB", "500000"),
        ("REPLICA_RECOVERY_SNAPS_DIR=/a#b", "REPLICA_RECOVERY_SNAPS_DIR", "/a#b"),
        ('REPLICA_RECOVERY_SNAPS_DIR="/a #b"', "REPLICA_RECOVERY_SNAPS_DIR", "/a #b"),
        ("REPLICA_RECOVERY_SNAPS_DIR=/a\\ b", "REPLICA_RECOVERY_SNAPS_DIR", "/a b"),
        ("REPLICA_RECOVERY_SNAPS_DIR='/a$b'", "REPLICA_RECOVERY_SNAPS_DIR", "/a$b"),
        ('REPLICA_RECOVERY_SNAPS_DIR="/a\\$b"', "REPLICA_RECOVERY_SNAPS_DIR", "/a$b"),
        ('REPLICA_SSH_FE_OPTS="-C -o X=y"', "REPLICA_SSH_FE_OPTS", "-C -o X=y"),
        ('REPLICA_SSH_FE_OPTS="-C \\\n  -4"', "REPLICA_SSH_FE_OPTS", "-C   -4"),
        ("REPLICA_SSH_FE_OPTS=\"-o 'A b'\"", "REPLICA_SSH_FE_OPTS", "-o 'A b'"),
    ],
)
def test_an_assignment_is_read_as_a_shell_does(text: str, name: str, value: str) -> None:
    assert taken(text) == {name: value}


def test_several_assignments_in_one_line_all_count() -> None:
    text = "export REPLICA_MAX_SIZE_MB=5 OTHER=1; REPLICA_MAX_USED_PERC=80 # both"
    assert taken(text) == {"REPLICA_MAX_SIZE_MB": "5", "REPLICA_MAX_USED_PERC": "80"}


@pytest.mark.parametrize(
    "text",
    [
        "", "#REPLICA_MAX_SIZE_MB=5", "OTHER=$(date)", "MY_REPLICA_MAX_SIZE_MB=$X",
        "if a; then B=1; fi", "OTHER=$X # REPLICA_MAX_SIZE_MB=5",
    ],
)  # fmt: skip
def test_what_is_not_about_our_names_is_no_matter(text: str) -> None:
    assert taken(text) == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("REPLICA_MAX_SIZE_MB=$SIZE", 1),
        ('\nREPLICA_MAX_SIZE_MB="${SIZE:-5}"', 2),
        ("REPLICA_MAX_SIZE_MB=$(echo 5)", 1),
        ("REPLICA_MAX_SIZE_MB=`echo 5`", 1),
        ('REPLICA_MAX_SIZE_MB="`echo 5`"', 1),
        ("REPLICA_MAX_SIZE_MB=$((5 * 1024))", 1),
        ("REPLICA_MAX_SIZE_MB=$'5'", 1),
        ("REPLICA_MAX_SIZE_MB=~/5", 1),
        (": ${REPLICA_MAX_SIZE_MB:=5}", 1),
        ("REPLICA_MAX_SIZE_MB=5 ssh-add", 1),
        ("REPLICA_MAX_SIZE_MB+=5", 1),
        ("REPLICA_MAX_SIZE_MB=(5)", 1),
        ("REPLICA_MAX_SIZE_MB=5 &", 1),
        ("[ -d /x ] && REPLICA_MAX_SIZE_MB=5", 1),
        ("[ -d /x ] ||\n\n  REPLICA_MAX_SIZE_MB=5", 3),
        ("if [ -d /x ]; then # fi\n  REPLICA_MAX_SIZE_MB=5\nfi", 2),
        ("if a\nthen\n  if b; then\n    c\n  fi\n  REPLICA_MAX_SIZE_MB=5\nfi", 6),
        ("case $HOSTNAME in\n  a) REPLICA_MAX_SIZE_MB=5 ;;\n  (b) ;;\nesac", 2),
        ("while read x; do\n  REPLICA_MAX_SIZE_MB=5\ndone < /x", 2),
        ("for x in 1 2\ndo\n  REPLICA_MAX_SIZE_MB=5\ndone", 3),
        ("set_it() {\n  REPLICA_MAX_SIZE_MB=5\n}", 2),
        ("(\nREPLICA_MAX_SIZE_MB=5\n)", 2),
        ("cat << END\nREPLICA_MAX_SIZE_MB=5\nEND", 2),
        ("OTHER='\nREPLICA_MAX_SIZE_MB=5", 2),
        ("REPLICA_MAX_SIZE_MB=5\nunset REPLICA_MAX_SIZE_MB", 2),
        ("REPLICA_MAX_SIZE_MB=5\nREPLICA_MAX_SIZE_MB=$X", 2),
    ],
)
def test_what_only_a_shell_can_tell_is_not_taken_over(text: str, line: int) -> None:
    (warning,) = refused(text)
    expected = "not taken over: REPLICA_MAX_SIZE_MB needs a shell to be understood"
    assert warning == f"sshrc: line {line}: {expected}"


@pytest.mark.parametrize(
    "block",
    [
        "if a; then b; elif c; then d; else e; fi", "case x in a) b ;; esac", "f() {\n  a\n}",
        "while a; do b; done", "[[ a && b ]]", "( a; b )", "echo 'if' \"{\" # ' {", "x=$(a)",
        "if a; then\n  for b in c; do d; done\nfi", "echo a > b", "echo if; echo b",
    ],
)  # fmt: skip
def test_after_a_construct_lines_count_again(block: str) -> None:
    assert taken(f"{block}\nREPLICA_MAX_SIZE_MB=5") == {"REPLICA_MAX_SIZE_MB": "5"}


@pytest.mark.parametrize("call", [". /etc/x", "source /etc/x", "[ -f /x ] && . /x", "eval $X"])
def test_a_file_that_runs_another_is_taken_with_a_warning(call: str) -> None:
    plan = takeover.plan(Path("sshrc"), f"REPLICA_MAX_SIZE_MB=5\n{call}")
    assert plan.lines == {"REPLICA_MAX_SIZE_MB": 'REPLICA_MAX_SIZE_MB="5"'}
    assert plan.warnings == ["sshrc: line 2: runs or reads something else, not looked at"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("REPLICA_MAX_USED_PERC=abc", "is 'abc', not a number (percent), 1 to 100"),
        ("REPLICA_MAX_USED_PERC=101", "is '101', not a number (percent), 1 to 100"),
        ("REPLICA_MAX_SIZE_MB=5G", "is '5G', not a number (MB), 1 or more"),
        ("REPLICA_COPY_LOCK_TIMEOUT=0", "is '0', not a number (seconds), 1 or more"),
        ("REPLICA_RECOVERY_SNAPS_DIR=snaps", "is 'snaps', not an absolute path"),
        ("REPLICA_SSH_OPTS='-o \"x'", "is '-o \"x', not options (No closing quotation)"),
        ("REPLICA_MAX_SIZE_MB=5\r\n", "is '5\\r', with characters that no setting has"),
        ("REPLICA_SSH_OPTS='-4\n-C'", "is '-4\\n-C', with characters that no setting has"),
        ("REPLICA_SSH_OPTS='\udce9'", "is '\\udce9', with characters that no setting has"),
    ],
)
def test_what_our_settings_refuse_is_not_taken_over(text: str, reason: str) -> None:
    (warning,) = refused(text)
    name = text.partition("=")[0]
    assert warning == f"sshrc: line 1: not taken over: {name} {reason}"


def test_an_empty_value_cannot_replace_a_default() -> None:
    """In our files it sets nothing, so taking it over would tell of an effect that it has not."""
    (warning,) = refused('REPLICA_MAX_USED_PERC=" "')
    assert 'REPLICA_MAX_USED_PERC is empty, which here stands for the default, "90"' in warning


def test_no_options_at_all_is_a_value() -> None:
    assert takeover.judge("REPLICA_SSH_OPTS", "") == 'REPLICA_SSH_OPTS=""'


@given(st.text(st.characters(min_codepoint=32, blacklist_categories=("Cs", "Cc"))))
def test_a_line_reads_back_as_the_value(value: str) -> None:
    if value.isprintable():
        line = f"REPLICA_SSH_OPTS={takeover.quoted(value)}"
        assert config.parse(line, RC) == {"REPLICA_SSH_OPTS": value}


@given(st.text("REPLICA_MAX_SIZE_MB=5 \n'\"\\$`(){};&|<#") | st.text())
def test_no_text_stops_the_reading(text: str) -> None:
    takeover.find(text)


def test_a_value_keeps_its_line_when_a_version_does_not_know_it() -> None:
    lines = {"REPLICA_MAX_SIZE_MB": 'REPLICA_MAX_SIZE_MB="5"'}
    old = takeover.activate(PACKAGED, lines)
    assert takeover.carry(old, b"#OTHER=1\n") == b'#OTHER=1\nREPLICA_MAX_SIZE_MB="5"\n'


# -- install.sh -------------------------------------------------------------------------------


def tune(site: FrontEnd) -> None:
    """The administrator has set two of the ssh driver's values."""
    write(site, STOCK.replace("=600", "=1800") + "export REPLICA_MAX_SIZE_MB='500'\n")


def install_tuned(site: FrontEnd) -> subprocess.CompletedProcess[str]:
    tune(site)
    return site.run()


@pytest.fixture
def configurable_front_end() -> Iterator[FrontEnd]:
    with new_front_end(configurable_tree) as site:
        yield site


@pytest.fixture
def site(configurable_front_end: FrontEnd) -> FrontEnd:
    tune(configurable_front_end)
    return configurable_front_end


@pytest.fixture
def installation(installations: Installations) -> Installation:
    """With the values taken over."""
    found = installations("configurable", install_tuned)
    found.restored()
    return found


def write(site: FrontEnd, text: str) -> Path:
    path = site.remotes / SSHRC
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    entry = pwd.getpwnam(USER)
    for each in (path, path.parent):
        os.chown(each, entry.pw_uid, entry.pw_gid)
    return path


def values(site: FrontEnd) -> dict[str, str]:
    return config.parse((site.remotes / RC).read_text(), RC)


TAKEN = {"REPLICA_COPY_LOCK_TIMEOUT": "1800", "REPLICA_MAX_SIZE_MB": "500"}


def test_first_installation_takes_over_and_tells(installation: Installation) -> None:
    site, (done,) = installation.site, installation.runs
    assert [line for line in done.stdout.splitlines() if "taken over" in line] == [
        'taken over from sshrc: REPLICA_COPY_LOCK_TIMEOUT="1800"',
        'taken over from sshrc: REPLICA_MAX_SIZE_MB="500"',
    ]
    assert done.stderr == ""
    assert values(site) == TAKEN
    settings = config.load("tm", site.remotes)
    assert settings.seconds("REPLICA_COPY_LOCK_TIMEOUT") == 1800
    installed = (site.remotes / RC).read_text().splitlines()
    both = [*zip(PACKAGED.decode().splitlines(), installed)]
    assert len(both) == len(installed)
    assert [pair for pair in both if pair[0] != pair[1]] == [
        ('#REPLICA_COPY_LOCK_TIMEOUT="600"', 'REPLICA_COPY_LOCK_TIMEOUT="1800"'),
        ('#REPLICA_MAX_SIZE_MB=""', 'REPLICA_MAX_SIZE_MB="500"'),
    ]
    assert not (site.remotes / f"{RC}.new").exists()


def test_a_second_run_touches_nothing_and_does_not_ask_sshrc(installed: FrontEnd) -> None:
    write(installed, "REPLICA_MAX_SIZE_MB=900\nREPLICA_MAX_USED_PERC=abc\n")
    before = installed.state()
    done = installed.run()
    assert "nothing to change" in done.stdout
    assert "taken over" not in done.stdout + done.stderr
    assert installed.state() == before


def test_a_newer_packaged_file_keeps_what_was_taken_over(installed: FrontEnd) -> None:
    with (installed.source / "remotes" / RC).open("a") as stream:
        stream.write('\n# new in this version\n#LATER="1"\n')
    write(installed, "REPLICA_MAX_SIZE_MB=900\n")
    assert f"updated: {installed.remotes / RC}" in installed.run().stdout
    assert "# new in this version" in (installed.remotes / RC).read_text()
    assert values(installed) == TAKEN
    assert not (installed.remotes / f"{RC}.new").exists()


def test_an_edited_file_is_left_alone_with_the_packaged_one_beside(installed: FrontEnd) -> None:
    edited = (installed.remotes / RC).read_text() + 'SPARSE="NO"\n'
    (installed.remotes / RC).write_text(edited)
    done = installed.run()
    assert f"edited, left alone: {installed.remotes / RC}" in done.stdout
    assert "taken over" not in done.stdout
    assert (installed.remotes / RC).read_text() == edited
    assert (installed.remotes / f"{RC}.new").read_bytes() == PACKAGED


@pytest.mark.parametrize("text", ["MINE=1\n", PACKAGED.decode()], ids=["own", "as packaged"])
def test_a_file_from_before_the_first_installation_is_left_alone(site: FrontEnd, text: str) -> None:
    path = site.remotes / RC
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert "taken over" not in site.run().stdout
    assert path.read_text() == text


def test_an_upgrade_of_an_unedited_file_takes_nothing_over(
    configurable_front_end: FrontEnd,
) -> None:
    configurable_front_end.run()
    write(configurable_front_end, "REPLICA_MAX_SIZE_MB=500\n")
    with (configurable_front_end.source / "remotes" / RC).open("a") as stream:
        stream.write("# newer\n")
    assert "taken over" not in configurable_front_end.run().stdout
    assert values(configurable_front_end) == {}


def test_a_file_that_was_removed_is_installed_without_a_second_take_over(
    installed: FrontEnd,
) -> None:
    (installed.remotes / RC).unlink()
    assert "taken over" not in installed.run().stdout
    assert (installed.remotes / RC).read_bytes() == PACKAGED


def test_an_interrupted_first_run_is_finished_by_the_next(site: FrontEnd) -> None:
    (site.remotes / "tm/onestor/clone").mkdir(parents=True)
    assert "is a directory" in site.run(status=1).stderr
    assert values(site) == TAKEN
    (site.remotes / "tm/onestor/clone").rmdir()
    assert "edited" not in site.run().stdout
    assert values(site) == TAKEN
    assert not (site.remotes / f"{RC}.new").exists()
    before = site.state()
    site.run()
    assert site.state() == before


def test_warnings_do_not_keep_other_values(site: FrontEnd) -> None:
    path = write(
        site,
        "REPLICA_MAX_USED_PERC=abc\nREPLICA_MAX_SIZE_MB=$(df)\nREPLICA_SSH_FE_OPTS='-4 -C'\n",
    )
    done = site.run()
    assert done.stderr.splitlines() == [
        f"install.sh: warning: {path}: line 1: not taken over: REPLICA_MAX_USED_PERC is 'abc', not"
        " a number (percent), 1 to 100",
        f"install.sh: warning: {path}: line 2: not taken over: REPLICA_MAX_SIZE_MB needs a shell to"
        " be understood",
    ]
    assert values(site) == {"REPLICA_SSH_FE_OPTS": "-4 -C"}


def test_sshrc_is_never_executed(site: FrontEnd) -> None:
    trace = site.base / "executed"
    write(site, f"touch '{trace}'\nREPLICA_MAX_SIZE_MB=$(touch '{trace}')\n")
    site.run()
    assert not trace.exists()


def test_sshrc_that_the_drivers_user_cannot_read_is_a_warning(site: FrontEnd) -> None:
    path = site.remotes / SSHRC
    path.chmod(0o000)
    done = site.run()
    expected = f"{path}: Permission denied; nothing was taken over from it"
    assert done.stderr == f"install.sh: warning: {expected}\n"
    assert (site.remotes / RC).read_bytes() == PACKAGED


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_sshrc_that_is_no_file_is_a_warning(site: FrontEnd, make: object) -> None:
    path = site.remotes / SSHRC
    path.unlink()
    assert callable(make)
    make(path)
    assert f"warning: {path}: not a regular file; nothing was taken" in site.run().stderr
    assert (site.remotes / RC).read_bytes() == PACKAGED


def test_no_sshrc_is_silence(site: FrontEnd) -> None:
    (site.remotes / SSHRC).unlink()
    done = site.run()
    assert "sshrc" not in done.stdout + done.stderr
    assert (site.remotes / RC).read_bytes() == PACKAGED


def test_dry_run_shows_it_and_changes_nothing(site: FrontEnd) -> None:
    with (site.remotes / SSHRC).open("a") as stream:
        stream.write("REPLICA_MAX_USED_PERC=abc\n")
    before = site.state()
    done = site.run("--dry-run")
    assert 'would be taken over from sshrc: REPLICA_MAX_SIZE_MB="500"\n' in done.stdout
    assert "REPLICA_MAX_USED_PERC is 'abc'" in done.stderr
    assert site.state() == before


def test_check_is_content_with_values_taken_over(installed: FrontEnd) -> None:
    installed.run("--configure")
    assert "problem" not in installed.run("--check").stdout


def test_check_finds_an_outdated_file_with_values_taken_over(installed: FrontEnd) -> None:
    installed.run("--configure")
    with (installed.source / "remotes" / RC).open("a") as stream:
        stream.write("# newer\n")
    assert (
        f"problem: {installed.remotes / RC}: differs" in installed.run("--check", status=1).stdout
    )
    installed.run()
    assert "problem" not in installed.run("--check").stdout


def test_uninstall_removes_the_file_and_leaves_sshrc(installation: Installation) -> None:
    site = installation.site
    assert "kept, " not in site.run("--uninstall").stdout
    assert site.installed() == installation.names | {SSHRC}


def test_uninstall_keeps_the_file_when_it_was_edited(installed: FrontEnd) -> None:
    with (installed.remotes / RC).open("a") as stream:
        stream.write("MINE=1\n")
    assert f"kept, edited: {installed.remotes / RC}" in installed.run("--uninstall").stdout
    assert values(installed) == {**TAKEN, "MINE": "1"}
