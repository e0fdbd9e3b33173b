"""frontend.qcow2_options: where the options come from, and which are taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import config, qcow2_options

NAME = "QCOW2_OPTIONS"


@pytest.fixture
def tmrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tmrc of a self-contained OpenNebula, not there yet."""
    monkeypatch.setenv("ONE_LOCATION", str(tmp_path))
    monkeypatch.delenv(NAME, raising=False)
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "tmrc"


def effective(onestorrc: str = "") -> list[str]:
    return qcow2_options.effective(config.Settings(config.TM_ATTRIBUTES, {NAME: onestorrc}))


def test_no_options_by_default(tmrc: Path) -> None:
    assert effective() == []


def test_C5_environment_goes_before_onestorrc_and_that_before_tmrc(
    tmrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmrc.write_text('QCOW2_OPTIONS="-o cluster_size=1M"\n')
    assert effective() == ["cluster_size=1M"]
    assert effective("-o cluster_size=2M") == ["cluster_size=2M"]
    monkeypatch.setenv(NAME, "-o cluster_size=512k")
    assert effective("-o cluster_size=2M") == ["cluster_size=512k"]
    monkeypatch.setenv(NAME, " ")
    assert effective("-o cluster_size=2M") == ["cluster_size=2M"], "a blank one sets nothing"


def test_without_ONE_LOCATION_it_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONE_LOCATION", raising=False)
    assert qcow2_options._tmrc() == Path("/etc/one/tmrc")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-o cluster_size=2M", ["cluster_size=2M"]),
        ("-ocluster_size=2M", ["cluster_size=2M"]),
        ("cluster_size=2M,compat=1.1", ["cluster_size=2M", "compat=1.1"]),
        ("-o cluster_size=2M -o lazy_refcounts=on", ["cluster_size=2M", "lazy_refcounts=on"]),
        ("  -o   cluster_size=2M,  ", ["cluster_size=2M"]),
        ("-o 'cluster_size=2M'", ["cluster_size=2M"]),
        ("-o", []),
    ],
)
def test_C5_ways_to_write_them(tmrc: Path, value: str, expected: list[str]) -> None:
    assert effective(value) == expected


@pytest.mark.parametrize(
    "option",
    [
        "backing_file=/etc/passwd", "data_file=/etc/passwd", "data_file_raw=on", "backing_fmt=raw",
        "encryption=on", "encrypt.format=luks", "size=1G", "cluster_size", "cluster_size=",
        "cluster_size=2M;id", "cluster_size=$(id)", "compat=../x", "CLUSTER_SIZE=2M", "=2M", "-f",
        "raw", "cluster_size==2M",
    ],
)  # fmt: skip
def test_C5_J3_J4_anything_else_is_refused_by_name(tmrc: Path, option: str) -> None:
    value = f"-o compat=1.1,{option}"
    expected = rf"QCOW2_OPTIONS of onestorrc is {re.escape(repr(value))}: .* is no option"
    with pytest.raises(InvalidInput, match=expected):
        effective(value)


@pytest.mark.parametrize("value", ["-o 'cluster_size=2M", '"', "a\\"])
def test_J3_quotes_without_an_end_are_refused(tmrc: Path, value: str) -> None:
    with pytest.raises(InvalidInput, match=r"QCOW2_OPTIONS of onestorrc is .*: No "):
        effective(value)


def test_A21_the_place_of_a_bad_value_is_named(tmrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmrc.write_text("QCOW2_OPTIONS='-o size=1'\n")
    with pytest.raises(InvalidInput, match=re.escape(f"QCOW2_OPTIONS of {tmrc} is '-o size=1'")):
        effective()
    monkeypatch.setenv(NAME, "bad")
    with pytest.raises(InvalidInput, match="QCOW2_OPTIONS of the environment is 'bad'"):
        effective()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('QCOW2_OPTIONS="-o cluster_size=2M"\n', ["cluster_size=2M"]),
        ("export QCOW2_OPTIONS='-o cluster_size=2M' # why\n", ["cluster_size=2M"]),
        ("  QCOW2_OPTIONS=cluster_size=2M", ["cluster_size=2M"]),
        ("QCOW2_OPTIONS=cluster_size=1M\nQCOW2_OPTIONS=cluster_size=2M\n", ["cluster_size=2M"]),
        ("# QCOW2_OPTIONS=cluster_size=2M\n", []),
        ("MY_QCOW2_OPTIONS=cluster_size=2M\nQCOW2_OPTIONS_X=cluster_size=2M\n", []),
        ("if [ -f x ]; then\n  exit 1\nfi\nQCOW2_OPTIONS=\n", []),
        ("QCOW2_OPTIONS='broken\nrm -rf /\n", []),
        ("QCOW2_OPTIONS=cluster_size=2M\nQCOW2_OPTIONS='broken\n", ["cluster_size=2M"]),
    ],
)
def test_C5_J1_what_a_tmrc_says_is_read_and_never_executed(
    tmrc: Path, text: str, expected: list[str]
) -> None:
    tmrc.write_text(text)
    assert effective() == expected


def test_an_unreadable_tmrc_says_nothing(tmrc: Path) -> None:
    tmrc.mkdir()
    assert effective() == []
    tmrc.rmdir()
    tmrc.write_bytes(b"\xff\xfe\nQCOW2_OPTIONS=cluster_size=2M\n")
    assert effective() == ["cluster_size=2M"]
