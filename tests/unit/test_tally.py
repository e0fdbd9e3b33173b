"""frontend.tally: what an action counts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import counters
from onestor_lib.frontend import tally
from onestor_lib.frontend.tally import Tally


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_summary_has_what_is_known_in_one_order() -> None:
    found = Tally()
    found.read_arguments(["fe:/var/lib/one/x", "host01:/ds/102/7/disk.3", "7", "102"])
    found.fact(image="5", cache="hit", host="host01")
    found.sent("fe", "host01", 10)
    found.sent("fe", "host01", 5)
    text = found.summary("clone", "ok")
    assert text.startswith("action=clone vm=7 disk=disk.3 image=5 host=host01 bytes=15 cache=hit ")
    assert text.endswith(" outcome=ok")


def test_actions_add_up_also_at_the_same_time() -> None:
    def act() -> None:
        mine = Tally()
        mine.add("sent_bytes_total", 1, source="a", target='b"\n')
        mine.summary("clone", "ok")
        mine.keep()

    threads = [threading.Thread(target=act) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = tally.totals()
    assert found['onestor_actions_total{action="clone",outcome="ok"}'] == 20
    assert found['onestor_sent_bytes_total{source="a",target="b\\"\\n"}'] == 20


def test_what_an_agent_says_is_not_trusted() -> None:
    found = Tally()
    one = [counters.LOCK_SECONDS, "", "", 1]
    found.counted(
        "host01",
        [
            [counters.EVICTIONS, "", counters.NO_ROOM, 2],
            [counters.LOCK_SECONDS, "replica", "", 3],
            ["actions_total", "", "", 1],
            [counters.EVICTIONS, "", "another reason", 1],
            [counters.EVICTIONS, "", "", -5],
            [counters.EVICTIONS, "", "", "nan"],
            [counters.EVICTIONS, "x" * 1000, "", 1],
            [counters.EVICTIONS, '\udcff"}', "", 1],
            [["list"], "", "", 1],
            ["short"],
            *[one] * 1000,
        ],
    )
    nonsense: Any
    for nonsense in ({}, 7, None, "text"):
        found.counted("host01", nonsense)
    found.keep()
    assert tally.totals() == {
        'onestor_evictions_total{host="host01",reason="to make room"}': 2,
        'onestor_lock_wait_seconds_total{host="replica"}': 3,
        'onestor_lock_wait_seconds_total{host="host01"}': counters.MOST - 10,
    }


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "b"}'])
def test_a_damaged_file_counts_as_nothing(home: Path, text: str) -> None:
    (home / ".onestor").mkdir()
    (home / ".onestor/counters.json").write_text(text)
    found = Tally()
    found.add("actions_total", 1)
    found.keep()
    assert tally.totals() == {"onestor_actions_total": 1}


def test_where_nothing_can_be_kept_nothing_is_said(home: Path) -> None:
    (home / ".onestor").write_text("a file")
    found = Tally()
    found.add("actions_total", 1)
    found.keep()
    assert tally.totals() == {}


def test_a_file_that_cannot_be_read_is_not_begun_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tally()
    first.add("actions_total", 5)
    first.keep()

    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    later = Tally()
    later.add("actions_total", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        later.keep()
    assert tally.totals() == {"onestor_actions_total": 5}


def test_there_is_an_end_to_names(home: Path) -> None:
    found = Tally()
    for number in range(10_100):
        found.add("sent_bytes_total", 1, target=f"h{number}")
    found.keep()
    assert len(tally.totals()) == 10_000
