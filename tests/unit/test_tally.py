"""frontend.tally: what an action counts."""

from __future__ import annotations

import threading
from pathlib import Path

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
    found.counted(
        [
            [counters.EVICTIONS, "host01", "to make room", 2],
            ["actions_total", "host01", "", 1],
            [counters.EVICTIONS, "host01", "x" * 1000, 1],
            [counters.EVICTIONS, "host01", "", -5],
            [counters.EVICTIONS, "host01", "", "nan"],
            ["short"],
        ]
    )
    found.keep()
    kept = tally.totals()
    assert kept.pop('onestor_evictions_total{host="host01",reason="to make room"}') == 2
    (long,) = kept
    assert len(long) < 200


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
