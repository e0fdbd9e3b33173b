"""The copies of a disk on a replica host, by real local agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestor_lib.agent import recovery
from tests.tool.conftest import Agents
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
    newest = recovery.newest(fetched.kept / "7", "disk.0")
    assert newest == copies[0]
