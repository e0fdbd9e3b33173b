"""The copies of a disk on a replica host, by real local agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onestor_lib.agent import recovery
from onestor_lib.agent.operations import recovery as operations
from tests.tool import writing
from tests.tool.conftest import MB, Agents
from tests.tool.placing import RECEIVER, run_and_die
from tests.tool.writing import Fetched


@pytest.mark.crash
def test_G19_a_new_copy_is_the_youngest_at_once_though_the_clock_was_set_back(
    tmp_path: Path, agents: Agents
) -> None:
    """Its agent dies before it has removed the one "from tomorrow"."""
    fetched = Fetched(tmp_path, agents, RECEIVER)
    fetched.copy(1).parent.rename(fetched.copy(10**13 - 1).parent)
    run_and_die(agents, "recovery.renamed", fetched.run)
    copies = recovery.of_vm(fetched.kept / "7")
    assert [copy.file.read_bytes() for copy in copies] == fetched.contents[::-1]
    assert recovery.newest(fetched.kept / "7", "disk.0") == copies[0]
    with agents.start() as agent:
        agent.call("recovery.forget", root=str(fetched.kept), vm=7, disk="disk.0")
    assert not (fetched.kept / "7").exists()


def test_of_several_copies_from_tomorrow_the_youngest_stays_until_the_new_one_is_there(
    tmp_path: Path,
) -> None:
    for point in (1, 5, 10**13 - 2, 10**13 - 1):
        copy = recovery.new(tmp_path, "disk.0", point)
        copy.directory.mkdir()
        (copy.directory / recovery.RECORD).write_text(json.dumps({"made": point}))
    operations._put_behind(tmp_path, "disk.0", recovery.newest(tmp_path, "disk.0"), 10**13 - 2)
    (left,) = recovery.of_vm(tmp_path)
    assert left.point == 1 and left.record() == {"made": 10**13 - 1}


def test_K9_a_copy_shares_the_rate_of_its_link(
    tmp_path: Path, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note of a link, which all senders share, is made where there is a rate to keep."""
    fetched = Fetched(tmp_path, agents, RECEIVER)
    notes = ".onestor-link-*"
    assert list(tmp_path.rglob(notes)) == []
    monkeypatch.setitem(writing.HOW, "bytes_per_second", 32 * MB)
    with agents.start() as agent:
        fetched.run(agent)
    fetched.assert_done()
    (note,) = tmp_path.rglob(notes)
    assert note.parent == fetched.outgoing.parent
