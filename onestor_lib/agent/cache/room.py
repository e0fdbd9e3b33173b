"""Room in the cache: what its entries take, and which go to make place for another one.

Everything is decided under one lock for the machine's whole cache, and a fill reserves its space
before that lock is let go: so two fills cannot both count on the same room (known failure B10).
Only what helps is evicted, least recently used first, and nothing at all when what nobody uses
would not be enough (B6). Never evicted are entries in use, which are locked, those whose data VMs
hold by hard link, which would free nothing (B5), and files that are not ours.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent import counters, crashpoints, locks, publish
from onestor_lib.agent.cache import entry as entries
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.errors import CacheFailed
from onestor_lib.agent.space import MB

_STEP = "make room in the cache"
_LOCK = ".onestor-cache.lock"

Say = Callable[[str, str], None]  # severity and text of a line for the log


class Limits(NamedTuple):
    """What a machine's cache may take: sizes in bytes, times in seconds since the last use."""

    max_bytes: int | None
    max_used_percent: int
    min_age: float
    orphan_age: float
    counted: str  # a directory whose files count as cached, though they are never evicted (B8)


class Stored(NamedTuple):
    """What an image has in the cache: its entry, and what a fill has brought so far."""

    entry: Entry
    bytes: int
    linked: bool
    used: float
    part_bytes: int
    reserved: int  # by a fill that is under way

    @property
    def outstanding(self) -> int:
        """What that fill will still need of the file system."""
        return max(0, self.reserved - self.part_bytes)

    @property
    def size(self) -> int:
        return self.bytes + max(self.part_bytes, self.reserved)


def reserve(
    entry: Entry,
    size: int,
    limits: Limits,
    *,
    headroom: int,
    timeout: float,
    say: Say,
) -> None:
    """Make room for a fill of ``size`` bytes and reserve it; the caller holds the entry's lock.

    ``headroom`` more bytes must be free then. Raises :class:`CacheFailed` when there is not enough
    room to be had.
    """
    root = entry.path.parent.parent
    purpose = f"make room for {entry.path.name}"
    with locks.exclusive(root / _LOCK, purpose=purpose, timeout=timeout):
        stored = list(survey(root))
        stored = _sweep(stored, entry, limits, say)
        _make_room(stored, root, limits, say, entry=entry, size=size, headroom=headroom)
        crashpoints.reach("room.made")
        entry.reserve(size)


def trim(root: Path, limits: Limits, *, timeout: float, say: Say) -> None:
    """Evict until the cache below ``root`` keeps its limits, as far as that is possible.

    What processes that died have left goes, too, where no fill will ever come to sweep it.
    """
    for directory in _datastores(root):
        publish.sweep(directory)
    with locks.exclusive(root / _LOCK, purpose="trim the cache", timeout=timeout):
        stored = _sweep(list(survey(root)), None, limits, say)
        with contextlib.suppress(CacheFailed):
            _make_room(stored, root, limits, say)


def used(root: Path) -> int:
    """Bytes that the cache below ``root`` takes, with what running fills have reserved."""
    return sum(each.size for each in survey(root))


def orphan_candidates(directory: Path, age: float) -> list[str]:
    """Names of entries in ``directory`` that were not used for ``age`` seconds."""
    return [
        name
        for name in sorted(entries.names_in(directory))
        if _idle(entries.last_used(Entry(directory / name).sidecar)) > age
    ]


def drop_idle(path: Path, reason: str, say: Say) -> None:
    """Remove the entry ``path`` unless somebody uses it just now.

    ``reason`` is one of ``counters.REASONS``.
    """
    with locks.exclusive_now(Entry(path).lock, purpose="evict") as free:
        if free:
            entry = Entry(path)
            entry.drop()
            say("INFO", f"{entry.image} left the cache: {reason}")
            counters.add(counters.EVICTIONS, 1, reason)


def survey(root: Path) -> Iterator[Stored]:
    """Everything in the cache; what vanishes meanwhile is left out."""
    for directory in _datastores(root):
        for name in sorted(entries.names_in(directory)):
            with contextlib.suppress(OSError):
                yield _measure(Entry(directory / name))


def _datastores(root: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(root) as found:
        for each in found:
            if each.name.isdecimal() and each.is_dir():
                yield Path(each.path)


def _measure(entry: Entry) -> Stored:
    linked, size = False, 0
    for path in (entry.image, entry.sidecar):
        with contextlib.suppress(FileNotFoundError):
            facts = path.lstat()
            linked |= facts.st_nlink > 1
            size += facts.st_blocks * 512
    part_bytes = 0
    for part in entries.leftovers(entry.path.parent, entry.path.name):
        with contextlib.suppress(FileNotFoundError):
            part_bytes += part.lstat().st_blocks * 512
    reserved = entry.read_journal().get("reserved", 0) if locks.is_held(entry.lock) else 0
    stamp = entry.sidecar if entry.sidecar.exists() else entry.journal
    return Stored(
        entry, size, linked, entries.last_used(stamp), part_bytes,
        reserved if isinstance(reserved, int) else 0,
    )  # fmt: skip


def _sweep(stored: list[Stored], own: Entry | None, limits: Limits, say: Say) -> list[Stored]:
    """Remove what fills that nobody repeats have left (known failure B15); the others.

    And at once what an interrupted eviction has left (B13).
    """
    kept = []
    for each in stored:
        if each.entry.is_remainder():
            with locks.exclusive_now(each.entry.lock, purpose="sweep") as free:
                if free and each.entry.is_remainder():
                    each.entry.drop()
                    continue
        journal = each.entry.journal if each.entry.journal.exists() else each.entry.sidecar
        idle = _idle(entries.last_used(journal))
        is_own = own is not None and own.path == each.entry.path
        if is_own or not each.part_bytes or each.reserved or idle < limits.orphan_age:
            kept.append(each)
            continue
        with locks.exclusive_now(each.entry.lock, purpose="sweep") as free:
            if free:
                each.entry.give_up()
                say("INFO", f"what an interrupted fill of {each.entry.path} had left is gone")
        kept.append(_measure(each.entry))
    return kept


def _make_room(
    stored: list[Stored],
    root: Path,
    limits: Limits,
    say: Say,
    *,
    entry: Entry | None = None,
    size: int = 0,
    headroom: int = 0,
) -> None:
    """Evict until ``size`` more bytes fit; ``entry`` is the one that will take them."""
    own = next((each for each in stored if entry and each.entry.path == entry.path), None)
    others = [each for each in stored if each is not own]
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise _no_room(root, size, limits.max_bytes, "the limit is")
    place = entry.path.parent if entry else root  # a datastore may have a file system of its own
    short = _shortage(others, own, place, limits, size, headroom)
    if short <= 0:
        return
    victims = [each for each in _by_use(others) if _can_go(each, limits)]
    available = sum(_freed(each) for each in victims)
    spare = own.bytes if own and not own.linked else 0
    if entry and available + spare < short:
        raise _no_room(root, size, size - short + available + spare, "there can be")
    with contextlib.ExitStack() as stack:
        chosen = _lock_idle(victims, short, stack)
        available = sum(_freed(each) for each in chosen)
        if entry and available + spare < short:
            raise _no_room(
                root, size, size - short + available + spare, "others are in use, there is"
            )
        for each in chosen:
            short -= _evict(each, say)
    if short > 0 and spare and entry:
        # The image's older version: without it the new one cannot come as a difference.
        publish.remove(entry.image)
        publish.remove(entry.sidecar)


def _shortage(
    others: list[Stored],
    own: Stored | None,
    place: Path,
    limits: Limits,
    size: int,
    headroom: int,
) -> int:
    """How many bytes have to go before ``size`` more may come; 0 or less when they fit."""
    figures = os.statvfs(place)
    unit = figures.f_frsize
    outstanding = sum(each.outstanding for each in others)
    coming = max(0, size - (own.part_bytes if own else 0))
    free = figures.f_bavail * unit - outstanding
    short = coming + headroom - free
    if limits.max_bytes is not None:
        counted = _counted(limits.counted)
        kept = sum(each.size for each in others) + (own.bytes if own else 0) + counted
        return max(short, kept + size - limits.max_bytes)
    in_use = (figures.f_blocks - figures.f_bfree) * unit + outstanding
    allowed = figures.f_blocks * unit * limits.max_used_percent // 100
    return max(short, in_use + coming - allowed)


def _counted(directory: str) -> int:
    """Bytes of all files below ``directory``, each once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(directory) if directory else ():
        for name in names:
            with contextlib.suppress(OSError):
                facts = os.lstat(os.path.join(folder, name))
                seen[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
    return sum(seen.values())


def _by_use(stored: list[Stored]) -> list[Stored]:
    """What to evict first: parts without an entry, then what was not used for longest.

    What was used "in the future" was used before the clock was set back: whatever has been used
    since then is younger.
    """
    now = time.time()
    return sorted(stored, key=lambda each: (each.bytes > 0, each.used <= now, each.used))


def _idle(used: float) -> float:
    """For how many seconds something was not used, also after the clock was set back.

    A stamp of tomorrow would keep things for a day longer; one of the next second, when a clock is
    set right, still protects what has just come.
    """
    return abs(time.time() - used)


def _can_go(each: Stored, limits: Limits) -> bool:
    is_old = _idle(each.used) >= limits.min_age
    return _freed(each) > 0 and not each.reserved and (is_old or not each.bytes)


def _freed(each: Stored) -> int:
    return each.part_bytes + (0 if each.linked else each.bytes)


def _lock_idle(victims: list[Stored], short: int, stack: contextlib.ExitStack) -> list[Stored]:
    """As many of ``victims`` as free ``short`` bytes, locked until ``stack`` ends.

    Who is in use is known only now: so all are locked before the first one goes.
    """
    chosen = []
    for each in victims:
        if short <= 0:
            break
        if stack.enter_context(locks.exclusive_now(each.entry.lock, purpose="evict")):
            chosen.append(_measure(Entry(each.entry.path)))  # nobody changes it any more
            short -= _freed(chosen[-1])
    return chosen


def _evict(each: Stored, say: Say) -> int:
    """Evict one entry, whose lock we hold; how many bytes that has freed."""
    entry = each.entry
    if each.part_bytes:
        entry.give_up()
    if each.linked or not each.bytes:
        return each.part_bytes
    entry.drop()
    say("INFO", f"evicted {entry.image} ({_freed(each) // MB} MB) to make room")
    counters.add(counters.EVICTIONS, 1, counters.NO_ROOM)
    return _freed(each)


def _no_room(root: Path, size: int, room: int, words: str) -> CacheFailed:
    cause = f"{-(-size // MB)} MB needed, {words} {max(0, room) // MB} MB"
    return CacheFailed(_STEP, cause, path=str(root))
