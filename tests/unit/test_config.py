"""frontend.config: the file's syntax, precedence, and bad values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import config
from onestor_lib.frontend.config import Settings


def tm(**values: str) -> Settings:
    return Settings(config.TM_ATTRIBUTES, values, "/etc/onestorrc")


def reader(values: Mapping[str, str]) -> Callable[[str], str]:
    """What looks into a template that has these values."""
    return lambda name: values.get(name, "")


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
    read: dict[str, Callable[[str], object]] = {
        "yes/no": settings.yes, "seconds": lambda name: settings.seconds(name, least=0),
        "words": settings.words, "options": settings.options, "program": settings.program,
        "path": lambda name: settings.text(name, "(/.*)?", "a path"), "MB": settings.megabytes,
        "percent": lambda name: settings.number(name, 1, 100),
        "niceness": lambda name: settings.number(name, 0, 19),
        "qcow2 options": settings.options,
        "search path": settings.search_path,
        "libvirt URI": lambda name: settings.text(name, "[a-z+]+://.*", "a URI"),
        "bytes": lambda name: settings.size(name, 1, 1 << 60),
        "file system": lambda name: settings.text(name, "[a-z0-9]*", "a file system"),
        "I/O class": lambda name: settings.text(name, "idle|none|best-effort:[0-7]", "a class"),
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
    template = {"SPARSE": "YES", "CHECK_FREE_SPACE": "", "OTHER": "x"}
    datastore = file.over("image", reader(template), "datastore 1")
    disk = datastore.over("disk", reader({"SPARSE": "No"}), "disk.0 of VM 7")
    assert (file.yes("SPARSE"), datastore.yes("SPARSE"), disk.yes("SPARSE")) == (False, True, False)
    assert disk.yes("CHECK_FREE_SPACE"), "an empty value sets nothing"
    assert disk.seconds("CONNECT_TIMEOUT") == 3.0
    assert disk.seconds("STALL_TIMEOUT") == 60.0, "nor does a blank one in the file"


SCOPES = {
    "disk": {"SPARSE", "QCOW2_STANDALONE"},
    "image": {
        "SPARSE", "QCOW2_STANDALONE", "CHECK_FREE_SPACE", "CACHE_ENABLE", "CACHE_MAX_SIZE",
        "CACHE_UPSTREAMS",
    },
    "system": {
        "CHECK_FREE_SPACE", "REPLICA_HOST", "REPLICA_MAX_SIZE_MB", "REPLICA_MAX_USED_PERC",
        "HOST_CACHE_MAX_SIZE_MB", "HOST_CACHE_MAX_USED_PERC", "CACHE_MIN_AGE", "CACHE_ORPHAN_AGE",
        "KEEP_ON_HOST", "CACHE_ENABLE", "CACHE_MAX_SIZE", "CACHE_UPSTREAMS",
        "REPLICA_BWLIMIT_MB_S", "FREEZE_TIMEOUT", "SUSPEND_TIMEOUT", "MONITOR_ALLOCATED",
    },
}  # fmt: skip


@pytest.mark.parametrize("whose", sorted(SCOPES))
def test_J4_a_template_sets_what_its_owner_may_decide_and_nothing_else(whose: str) -> None:
    """Whoever may edit a datastore is not by that allowed to run programs as the drivers' user."""
    asked: list[str] = []

    def read(name: str) -> str:
        asked.append(name)
        return "planted"

    settings = tm().over(whose, read, "datastore 1")
    assert set(asked) == SCOPES[whose]
    for attribute in config.TM_ATTRIBUTES:
        expected = "planted" if attribute.name in asked else attribute.default
        assert settings.text(attribute.name, ".*", "text") == expected


def test_over_leaves_the_settings_it_is_made_from_alone() -> None:
    file = tm(SPARSE="YES")
    file.over("disk", reader({"SPARSE": "maybe"}), "disk.0 of VM 7")
    assert file.yes("SPARSE")


@pytest.mark.parametrize("value", ["maybe", "1", "YES NO", "ye s", "yes;id"])
def test_J3_SPARSE_is_yes_or_no_in_any_case(value: str) -> None:
    assert tm(SPARSE="yEs").yes("SPARSE") and not tm(SPARSE="nO").yes("SPARSE")
    settings = tm().over("disk", reader({"SPARSE": value}), "disk.0 of VM 7")
    expected = f"read the settings: SPARSE of disk.0 of VM 7 is {value!r}, not YES or NO"
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        settings.yes("SPARSE")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "ten", "9" * 10, "٣", "1 s", "inf"])
def test_A21_bad_seconds_name_attribute_value_origin_and_range(value: str) -> None:
    allowed = "a number (seconds), 1 or more"
    expected = f"CONNECT_TIMEOUT of /etc/onestorrc is {value!r}, not {allowed}"
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        tm(CONNECT_TIMEOUT=value).seconds("CONNECT_TIMEOUT")


@pytest.mark.parametrize("value", ["-c", "python3 -c x", "python3;id", "$(id)", "a'b", "p\n"])
def test_J4_a_program_is_a_name_and_nothing_else(value: str) -> None:
    assert tm(HOST_PYTHON="/opt/python-3.9/bin/python3.9").program("HOST_PYTHON")
    if value.strip() == value:
        with pytest.raises(InvalidInput, match="HOST_PYTHON of /etc/onestorrc"):
            tm(HOST_PYTHON=value).program("HOST_PYTHON")


def test_options_are_words_without_a_meaning() -> None:
    options = tm(REPLICA_SSH_OPTS="-c aes -oProxyCommand='nc \"a b\"' $(id) *").options(
        "REPLICA_SSH_OPTS"
    )
    assert options == ["-c", "aes", '-oProxyCommand=nc "a b"', "$(id)", "*"]
    with pytest.raises(InvalidInput, match="REPLICA_SSH_OPTS of /etc/onestorrc"):
        tm(REPLICA_SSH_OPTS="-c 'aes").options("REPLICA_SSH_OPTS")


def test_a_path_is_absolute() -> None:
    with pytest.raises(InvalidInput, match="not an absolute path"):
        tm(LOG_FILE="onestor.log").path("LOG_FILE")


@pytest.mark.parametrize(("value", "expected"), [("", None), ("1", 1 << 20), ("100", 100 << 20)])
def test_B7_sizes_are_given_in_MB_and_may_be_left_out(value: str, expected: int | None) -> None:
    assert tm(REPLICA_MAX_SIZE_MB=value).megabytes("REPLICA_MAX_SIZE_MB") == expected


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "1T", "1 K", "9" * 16, "9999G"])
def test_a_number_of_bytes_is_within_its_range(value: str) -> None:
    limit = reader({"LIMIT_TRANSFER_BW": value})
    settings = Settings(config.DATASTORE_ATTRIBUTES, {}).over("image", limit, "datastore 1")
    with pytest.raises(InvalidInput, match=r"LIMIT_TRANSFER_BW of datastore 1 is .*, not a number"):
        settings.size("LIMIT_TRANSFER_BW", 1, 1 << 40)


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "100 MB", "1G", "9" * 14])
def test_A21_bad_sizes_name_attribute_value_and_origin(value: str) -> None:
    settings = tm().over("system", reader({"REPLICA_MAX_SIZE_MB": value}), "datastore 100")
    expected = f"REPLICA_MAX_SIZE_MB of datastore 100 is {value!r}, not a number (MB), 1 or more"
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        settings.megabytes("REPLICA_MAX_SIZE_MB")


@pytest.mark.parametrize("value", ["0", "101", "-1", "90%", "ninety"])
def test_A21_bad_percentages_name_attribute_value_and_range(value: str) -> None:
    expected = f"REPLICA_MAX_USED_PERC of /etc/onestorrc is {value!r}, not a number (percent)"
    with pytest.raises(InvalidInput, match=re.escape(expected) + ", 1 to 100"):
        tm(REPLICA_MAX_USED_PERC=value).number("REPLICA_MAX_USED_PERC", 1, 100)
    assert tm(REPLICA_MAX_USED_PERC="100").number("REPLICA_MAX_USED_PERC", 1, 100) == 100


def test_A21_an_age_may_be_zero_where_that_means_something() -> None:
    assert tm(CACHE_MIN_AGE="0").seconds("CACHE_MIN_AGE", least=0) == 0.0
    with pytest.raises(InvalidInput, match="CACHE_ORPHAN_AGE of /etc/onestorrc is '0'"):
        tm(CACHE_ORPHAN_AGE="0").seconds("CACHE_ORPHAN_AGE")


@pytest.mark.parametrize("value", ["-1", "20", "low"])
def test_A21_a_bad_niceness_names_the_range(value: str) -> None:
    assert tm(BULK_NICE="19").number("BULK_NICE", 0, 19) == 19
    with pytest.raises(InvalidInput, match=f"BULK_NICE .* is '{value}', .*, 0 to 19"):
        tm(BULK_NICE=value).number("BULK_NICE", 0, 19)
