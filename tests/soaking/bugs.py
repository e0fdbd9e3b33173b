"""Bugs to seed: each is a change of a line or two, of the kind a soak is there to find."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from tests.testbed import Testbed


class Bug(NamedTuple):
    """In `file` of onestor_lib what is `right` becomes `wrong`; `found_as` is what a soak says."""

    file: str
    right: str
    wrong: str
    found_as: str


BUGS = {
    # A disk has its final name before its base has one.
    "publish order": Bug(
        "agent/new_disk.py",
        """\
        if self._base:
            undo.callback(vm_directory.forget_base, self._disk)
            self._publish_base(self._base)
            crashpoints.reach("place.based")
        self._file.publish(mode=0o660, replace=replace and os.path.lexists(self._disk))
""",
        """\
        self._file.publish(mode=0o660, replace=replace and os.path.lexists(self._disk))
        if self._base:
            undo.callback(vm_directory.forget_base, self._disk)
            self._publish_base(self._base)
            crashpoints.reach("place.based")
""",
        r"disk\.\d+(\.base)?'.*No such file",
    ),
    # Whoever wants a lock has it.
    "lock": Bug(
        "agent/locks.py",
        "        yield fd\n",
        "        fcntl.flock(fd, fcntl.LOCK_UN)\n        yield fd\n",
        r"is not used:|goes past the cache|times from|has more than",
    ),
    # What is to come is not counted.
    "eviction": Bug(
        "agent/cache/room.py",
        "return max(short, kept + size - limits.max_bytes)",
        "return max(short, kept - limits.max_bytes)",
        r"the cache of \w+ has more than",
    ),
    # A block that the older copy has elsewhere stays where it was.
    "delta": Bug(
        "agent/delta.py",
        "extents.write_chunk(fd, index * BLOCK, block)\n                    continue",
        "extents.write_chunk(fd, there * BLOCK, block)\n                    continue",
        r"copy of VM \d+ disk \d+|replica_snaps/",
    ),
}


def seeded(bed: Testbed, name: str) -> contextlib.AbstractContextManager[None]:
    """Have a bug in what is installed on the front-end; hosts get it with their next agent."""
    bug = BUGS[name]
    return bed.changed_source(bug.file, (bug.right, bug.wrong), prepare=True)
