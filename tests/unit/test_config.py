"""frontend.config: the file's syntax, precedence, and bad values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import config
from onestor_lib.frontend.config import Settings


def tm(**values: str) -> Settings:
    return Settings(config.TM_ATTRIBUTES, values, "/etc/onestorrc")


def parse(text: str) -> dict[str, str]:
    return config.parse(text, "/etc/onestorrc")


def test_L12_defaults_need_no_file(tmp_path: Path) -> None:
    for kind in config.FILES:
        settings = config.load(kind, tmp_path)
        assert settings.yes("SPARSE") and settings.yes("CHECK_FREE_SPACE")
        assert settings.path("LOG_FILE") == Path("/var/log/one/onestor.log")
    assert config.load("datastore", tmp_path).words("RESTRICTED_DIRS") == ["/"]
    assert config.load("datastore", tmp_path).words("SAFE_DIRS") == ["/var/tmp"]


def test_both_files_say_how_hosts_are_reached(tmp_path: Path) -> None:
    for kind in config.FILES:
        settings = config.load(kind, tmp_path)
        assert settings.seconds("CONNECT_TIMEOUT") == 10.0
        assert settings.program("HOST_PYTHON") == "python3"


@pytest.mark.parametrize("kind", sorted(config.FILES))
def test_every_default_is_a_legal_value(kind: str) -> None:
    settings = Settings(config.FILES[kind][1], {})
    read = {
        "yes/no": settings.yes, "seconds": settings.seconds, "words": settings.words,
        "options": settings.options, "program": settings.program, "path": settings.path,
    }  # fmt: skip
    for attribute in config.FILES[kind][1]:
        read[attribute.kind](attribute.name)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"), ('export A="1 2" # note', "1 2"), ("A='x\"y'", 'x"y'), ("A=", ""),
        ('A="$(touch x) `id` ${HOME} $A"', "$(touch x) `id` ${HOME} $A"), ("A=a\\ b", "a b"),
        ("# A=2\n\n  A=1\n", "1"), ("A=1\nA=2", "2"), ("A=~/*", "~/*"), ("A=x;y|z&", "x;y|z&"),
    ],
)  # fmt: skip
def test_J1_the_file_is_read_and_never_executed(line: str, value: str) -> None:
    assert parse(line) == {"A": value}


@pytest.mark.parametrize(
    "line", ["A", "A 1", "A = 1", "A=1 B=2", "1A=2", "A=1; rm -rf /", 'A="1', "[tm]", "if true"]
)
def test_a_line_that_is_no_assignment_is_named(line: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape("configuration /etc/onestorrc: line 2")):
        parse("B=1\n" + line)


@given(st.text())
def test_no_text_is_anything_but_read_or_refused(text: str) -> None:
    try:
        assert all(re.fullmatch(r"\w+", name, re.ASCII) for name in parse(text))
    except InvalidInput as error:
        assert error.path == "/etc/onestorrc"


def test_an_unreadable_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / config.FILES["tm"][0]
    file.parent.mkdir(parents=True)
    file.write_bytes(b'SPARSE="\xff"')
    with pytest.raises(InvalidInput, match=re.escape(str(file))):
        config.load("tm", tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(InvalidInput, match="Is a directory"):
        config.load("tm", tmp_path)


def test_precedence_disk_datastore_file_default() -> None:
    file = tm(SPARSE="no", CONNECT_TIMEOUT="3", STALL_TIMEOUT=" ")
    datastore = file.over({"SPARSE": "YES", "CHECK_FREE_SPACE": "", "OTHER": "x"}, "datastore 1")
    disk = datastore.over({"SPARSE": "No"}, "disk.0 of VM 7")
    assert (file.yes("SPARSE"), datastore.yes("SPARSE"), disk.yes("SPARSE")) == (False, True, False)
    assert disk.yes("CHECK_FREE_SPACE"), "an empty value sets nothing"
    assert disk.seconds("CONNECT_TIMEOUT") == 3.0
    assert disk.seconds("STALL_TIMEOUT") == 60.0, "nor does a blank one in the file"


def test_J4_a_template_sets_nothing_that_is_a_command_or_a_limit() -> None:
    """Whoever may edit a datastore is not by that allowed to run programs as the drivers' user."""
    assert tm().template_names() == ["SPARSE", "CHECK_FREE_SPACE"]
    odd = {"SSH_OPTS": "-oProxyCommand=id", "HOST_PYTHON": "id", "LOG_FILE": "/x", "OTHER": "x"}
    settings = tm().over(odd, "datastore 1")
    assert settings.options("SSH_OPTS") == []
    assert settings.program("HOST_PYTHON") == "python3"
    assert str(settings.path("LOG_FILE")) == "/var/log/one/onestor.log"


@pytest.mark.parametrize("value", ["maybe", "1", "YES NO", "ye s", "yes;id"])
def test_J3_SPARSE_is_yes_or_no_in_any_case(value: str) -> None:
    assert tm(SPARSE="yEs").yes("SPARSE") and not tm(SPARSE="nO").yes("SPARSE")
    settings = tm().over({"SPARSE": value}, "disk.0 of VM 7")
    expected = f"read the settings: SPARSE of disk.0 of VM 7 is {value!r}, not YES or NO"
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        settings.yes("SPARSE")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "ten", "9" * 10, "٣", "1 s", "inf"])
def test_A21_bad_seconds_name_attribute_value_origin_and_range(value: str) -> None:
    expected = f"CONNECT_TIMEOUT of /etc/onestorrc is {value!r}, not a number of seconds, 1 or more"
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        tm(CONNECT_TIMEOUT=value).seconds("CONNECT_TIMEOUT")


@pytest.mark.parametrize("value", ["-c", "python3 -c x", "python3;id", "$(id)", "a'b", "p\n"])
def test_J4_a_program_is_a_name_and_nothing_else(value: str) -> None:
    assert tm(HOST_PYTHON="/opt/python-3.9/bin/python3.9").program("HOST_PYTHON")
    if value.strip() == value:
        with pytest.raises(InvalidInput, match="HOST_PYTHON of /etc/onestorrc"):
            tm(HOST_PYTHON=value).program("HOST_PYTHON")


def test_options_are_words_without_a_meaning() -> None:
    options = tm(SSH_OPTS="-c aes -oProxyCommand='nc \"a b\"' $(id) *").options("SSH_OPTS")
    assert options == ["-c", "aes", '-oProxyCommand=nc "a b"', "$(id)", "*"]
    with pytest.raises(InvalidInput, match="SSH_OPTS of /etc/onestorrc"):
        tm(SSH_OPTS="-c 'aes").options("SSH_OPTS")


def test_a_path_is_absolute() -> None:
    with pytest.raises(InvalidInput, match="not an absolute path"):
        tm(LOG_FILE="onestor.log").path("LOG_FILE")
