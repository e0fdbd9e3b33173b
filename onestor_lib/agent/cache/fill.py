"""Having an image in the cache: a hit, or one fill however many want it at once.

Whether the entry is there is asked again under the lock that guards the fill, so those who have
waited transfer nothing (known failure A4).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from onestor_lib.agent import (
    counters,
    crashpoints,
    extents,
    locks,
    priority,
    publish,
    transfer,
    vm_directory,
)
from onestor_lib.agent.cache import room
from onestor_lib.agent.cache.entry import Entry, chunks_of, may_be_cached
from onestor_lib.agent.cache.record import Record
from onestor_lib.agent.dialogue import Dialogue
from onestor_lib.agent.errors import CacheFailed, NoSpace, OnestorError, from_os_error
from onestor_lib.agent.version import Version

_ROUNDS = 5
_MORE_THAN_ALL = 110  # percent of an image that something to start from may have on the disk


class Wanted(NamedTuple):
    """The image to have, in which version, and what it may cost.

    ``needed`` bytes it takes in the cache, ``headroom`` bytes must be left for what is made of it;
    ``purpose`` is what others are told who wait; ``is_replica``: this machine serves others, too.
    """

    path: Path
    version: Version
    needed: int
    headroom: int
    is_replica: bool
    limits: room.Limits
    lock_timeout: float
    purpose: str
    bulk: dict[str, Any]  # how work on images gives way, see ``priority.lower``

    @classmethod
    def from_json(cls, facts: dict[str, Any], headroom: int = 0) -> Wanted:
        """What the front-end asks for."""
        return cls(
            Path(facts["path"]),
            Version.from_json(facts["version"]),
            int(facts["needed"]),
            headroom,
            bool(facts["is_replica"]),
            room.Limits(**facts["limits"]),
            float(facts["lock_timeout"]),
            str(facts["purpose"]),
            dict(facts["bulk"]),
        )


class Had(NamedTuple):
    """The entry as it is held."""

    entry: Entry
    record: Record
    is_hit: bool


@contextlib.contextmanager
def held(call: Dialogue, wanted: Wanted, root: Path) -> Iterator[Had]:
    """Hold the entry, filled if need be, for the ``with`` block: it is neither changed nor evicted.

    Raises :class:`CacheFailed`, :class:`LockTimeout` and what the transfer has met.
    """
    if not may_be_cached(wanted.path, root):
        raise CacheFailed("use the cache", "not in an image datastore", path=str(wanted.path))
    with contextlib.ExitStack() as stack:
        with _explained(wanted.path):
            had = _take(call, wanted, stack)
            is_beside_another = had.entry.is_hidden and os.path.lexists(wanted.path)
            if wanted.is_replica and not is_beside_another:
                vm_directory.mark(wanted.path.parent, vm_directory.REPLICA)
        yield had


def _take(call: Dialogue, wanted: Wanted, stack: contextlib.ExitStack) -> Had:
    """Enter the lock of the entry into ``stack`` when the entry is there."""
    wanted.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    publish.sweep(wanted.path.parent)
    was_there = True

    def on_progress() -> None:
        call.progress(0, 0)  # others may wait for us in turn

    for _ in range(_ROUNDS):
        with contextlib.ExitStack() as attempt:
            lock = Entry(wanted.path).lock
            attempt.enter_context(
                locks.shared(
                    lock,
                    purpose=wanted.purpose,
                    timeout=wanted.lock_timeout,
                    on_progress=on_progress,
                )
            )
            if found := _found(wanted):
                stack.push(attempt.pop_all())
                return Had(*found, was_there)
        with contextlib.ExitStack() as attempt:
            mine = attempt.enter_context(
                locks.exclusive(
                    lock,
                    purpose=wanted.purpose,
                    timeout=wanted.lock_timeout,
                    on_progress=on_progress,
                )
            )
            if not _found(wanted):
                was_there = False
                begin = time.monotonic()
                _fill(call, wanted, mine)
                counters.add(counters.FILL_SECONDS, time.monotonic() - begin)
            mine.share(wanted.lock_timeout)
            if found := _found(wanted):  # the lock may have been somebody else's in between
                stack.push(attempt.pop_all())
                return Had(*found, was_there)
    raise CacheFailed("use the cache", "the image is evicted again and again", path=str(lock))


def _found(wanted: Wanted) -> tuple[Entry, Record] | None:
    entry = Entry(wanted.path)
    record = entry.find(wanted.version)
    if record is None:
        return None
    entry.mark_used()
    if os.path.lexists(entry.journal):
        entry.give_up()  # nobody fills while we have the lock: that one was killed
    return entry, record


def _fill(call: Dialogue, wanted: Wanted, lock: locks.Held) -> None:
    """Bring the image into the cache; its lock is held exclusively."""
    priority.lower(**wanted.bulk)
    entry = Entry(wanted.path)
    entry.finish()
    if entry.find(wanted.version):
        return
    useful = entry.useful(wanted.needed * _MORE_THAN_ALL // 100 + extents.PAGE)
    room.reserve(
        entry, max(wanted.needed, useful), wanted.limits, headroom=wanted.headroom,
        timeout=wanted.lock_timeout, say=call.log,
    )  # fmt: skip
    try:
        with lock.working():
            part, reuse = entry.new_part(seed=useful > 0)
        crashpoints.reach("fill.started")
        answer = call.ask(
            "content",
            item="image",
            temporary=str(part),
            manifest=str(chunks_of(part)),
            reuse=reuse,
            meanwhile=lock.progress,
        )
        crashpoints.reach("fill.received")
        with transfer.claimed(part, answer["written"], wanted.lock_timeout), lock.working():
            entry.publish(part, wanted.version, str(answer["digest"]), str(answer["source"]))
    except OnestorError as error:
        if not error.retryable:
            entry.give_up()
        raise
    except OSError:
        entry.give_up()
        raise
    _drop_orphans(call, wanted)


def _drop_orphans(call: Dialogue, wanted: Wanted) -> None:
    """Ask which long unused entries are of images that are no more, and remove those (B15).

    The image that was wanted is there: whatever goes wrong here is only noted (B1).
    """
    directory = wanted.path.parent
    try:
        names = room.orphan_candidates(directory, wanted.limits.orphan_age)
        if names:
            gone = call.ask("gone", directory=str(directory), names=names).get("names", [])
            for name in set(gone) & set(names):
                room.drop_idle(directory / name, counters.NO_IMAGE, call.log)
    except (OnestorError, OSError) as error:
        call.log("DEBUG", f"old entries in {directory} were not looked after: {error}")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An ``OSError`` of the cache's own work as what it means."""
    try:
        yield
    except OSError as error:
        found = from_os_error("use the cache", error, where=path)
        if isinstance(found, NoSpace):
            raise found from error
        raise CacheFailed(found.step, found.cause, path=found.path) from error
