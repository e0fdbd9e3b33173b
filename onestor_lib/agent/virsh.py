"""libvirt through virsh: the state of a domain, and block jobs on its disks.

Every call has a deadline. Disks are named by what the domain calls them ("vda"): paths are written
one way by oned and another by libvirt (contract section 8, trap 11).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from onestor_lib.agent import process, publish, signals
from onestor_lib.agent.errors import CommandFailed, Missing, OnestorError, Terminated

QUICK = 30.0  # seconds for a question
_FREEZE = 10.0  # seconds for the guest agent to freeze or thaw (known failure F11)
_TRIES = 3  # to thaw or resume a guest that was stopped
_PAUSE = 0.1  # seconds between two looks at a block job, growing up to the next
_LONGEST_PAUSE = 1.0
_GONE = ("domain not found", "failed to get domain", "no domain with matching")
_COUNTERS = ("wr.reqs", "wr.bytes", "wr.times", "capacity")
_CONFINED = "likely AppArmor keeps qemu from the file: see its messages in the kernel's log"


class Stuck(CommandFailed):
    """What was begun does not end: nothing else may be tried."""


class StillFrozen(Stuck):
    """The guest's file systems were frozen and do not thaw."""


class StillCopying(Stuck):
    """A block job goes on that writes a file of ours."""


class Disk(NamedTuple):
    """A disk of a running domain."""

    target: str  # "vda"
    path: str  # as libvirt has it
    is_ready: bool  # a block job mirrors it, and has caught up
    has_job: bool
    copy: str  # what the job writes; "" when it is no file


class Domain:
    """The domain ``name`` of the hypervisor at ``uri``, a libvirt URI."""

    def __init__(self, name: str, uri: str) -> None:
        self.name = name
        self._uri = uri

    def state(self) -> str:
        """ "running", "paused" and so on (virsh(1), domstate); "" when there is no such domain.

        Raises :class:`CommandFailed` when the hypervisor does not tell.
        """
        step = "ask for the domain"
        result = self._virsh("domstate", self.name)
        if not result.ok and any(said in result.stderr.decode().lower() for said in _GONE):
            return ""
        result.check(step)
        return result.stdout.decode("utf-8", "replace").strip()

    def disk(self, file: Path) -> Disk:
        """The disk whose file is ``file``, however it is called; raises :class:`Missing`."""
        wanted = os.path.realpath(file)
        for disk in self.disks():
            if os.path.realpath(disk.path) == wanted:
                return disk
        raise Missing("find the disk", f"{self.name} has no such disk", path=str(file))

    def disks(self) -> list[Disk]:
        """The disks that are files."""
        result = self._virsh("dumpxml", self.name).check("ask for the disks")
        found = []
        try:
            for disk in ElementTree.fromstring(result.stdout).findall("devices/disk"):
                source, target = disk.find("source"), disk.find("target")
                if source is None or target is None or not source.get("file"):
                    continue
                mirror = disk.find("mirror")
                has_job = mirror is not None
                ready = mirror is not None and mirror.get("ready") == "yes"
                copy = (mirror.get("file") or "") if mirror is not None else ""
                name, path = str(target.get("dev")), str(source.get("file"))
                found.append(Disk(name, path, ready, has_job, copy))
        except ElementTree.ParseError as error:
            raise CommandFailed("ask for the disks", f"virsh dumpxml: {error}") from None
        return found

    def copy_disk(
        self,
        file: Path,
        target: Path,
        image_format: str,
        *,
        shallow: bool,
        stall: float,
        bytes_per_second: int,
        on_progress: Callable[[int, int], None],
        at_end: contextlib.AbstractContextManager[bool],
        at_most: float,
    ) -> None:
        """Copy a disk, its whole chain or with ``shallow`` its topmost file, to ``target``.

        That file exists, and of a ``shallow`` copy it names the same backing file; the domain and
        its bitmaps stay as they are. The guest goes on meanwhile; the copy is the state at one
        moment, at the end, around which ``at_end`` is entered, for ``at_most`` seconds if that says
        that the guest is frozen. When for
        ``stall`` seconds what is left to copy becomes no less it fails. However this ends there is
        no job left.
        """
        step = "copy the running disk"
        disk = self.disk(file)
        argv = ["blockcopy", self.name, disk.target, "--dest", str(target)]
        argv += ["--format", image_format, "--reuse-external", "--transient-job"]
        if shallow:
            argv += ["--shallow"]
        if bytes_per_second:
            argv += ["--bytes", "--bandwidth", str(bytes_per_second)]
        try:
            result = self._virsh(*argv)
            if not result.ok and b"permission denied" in result.stderr.lower():
                # Known failure F14: the kernel's words alone have sent many people searching.
                raise CommandFailed(step, f"{result.reason}; {_CONFINED}", path=str(file))
            result.check(step, path=str(file))
            self._wait_ready(file, disk.target, step, stall, on_progress)
            with at_end as froze:
                self.end_job(disk.target, step, timeout=at_most if froze else QUICK)
        except OnestorError as error:
            self._abandon(file, target, error)
            raise
        except BaseException:
            with contextlib.suppress(OnestorError):
                self._abandon(file, target, Terminated())
            raise

    def _abandon(self, file: Path, target: Path, cause: BaseException) -> None:
        """See that nothing writes ``target`` any more, also if that was only just begun.

        Another action's job is left alone. Raises :class:`StillCopying`.
        """
        deadline = time.monotonic() + QUICK
        for pause in _pauses():
            try:
                disk = self.disk(file)
                if not (disk.has_job and disk.copy == str(target)):
                    return
                self.end_job(disk.target, "end the copy")
            except OnestorError:
                with contextlib.suppress(OnestorError):
                    if not self.state():
                        return  # the VM is gone, and its jobs with it
            if time.monotonic() > deadline:
                why = f"{cause}; and the copy of {self.name} does not end"
                raise StillCopying("end the copy", why, path=str(target)) from cause
            time.sleep(pause)

    def end_job(self, target: str, step: str, *, timeout: float = QUICK) -> None:
        """End a block job; what it has mirrored, if it has caught up, is complete."""
        self._virsh("blockjob", self.name, target, "--abort", timeout=timeout).check(step)

    def settle(self, file: Path, *, patience: float, step: str) -> None:
        """Wait for a block job on the disk to end, then cancel it (known failure E10).

        One that writes a temporary of ours is cancelled at once: its action is dead, since the
        caller has the disk's lock.
        """
        deadline = time.monotonic() + patience
        for pause in _pauses():
            disk = self.disk(file)
            if not disk.has_job and not self._job(disk.target):
                return
            is_ours = publish.is_temporary(os.path.basename(disk.copy))
            if is_ours or time.monotonic() > deadline:
                self.end_job(disk.target, step)
                return
            time.sleep(pause)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[bool]:
        """Freeze the guest's file systems for the block, if its agent answers; whether it does.

        The guest thaws whatever happens, also when freezing failed half-way. Raises
        :class:`StillFrozen` when it does not (known failure F10).
        """
        may_be_frozen = True  # until it is known that nothing has been frozen
        try:
            result = self._virsh("domfsfreeze", self.name, timeout=_FREEZE)
            # One that takes too long is not undone by our leaving: it may be done any moment.
            may_be_frozen = result.ok or result.timed_out
            yield result.ok
        finally:
            with signals.postponed():
                self._thaw(tries=_TRIES if may_be_frozen else 1, must=may_be_frozen)

    def _thaw(self, *, tries: int, must: bool) -> None:
        for _ in range(tries):
            result = self._virsh("domfsthaw", self.name, timeout=_FREEZE)
            if result.ok:
                return
        if must:
            raise StillFrozen("thaw the guest", f"{result.reason}, tried {tries} times")

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the guest stand still for the block."""
        if self.state() != "running":
            yield
            return
        try:
            self._virsh("suspend", self.name).check("suspend the domain")
            yield
        finally:
            with signals.postponed():
                self.resume()

    def resume(self) -> None:
        """Let the guest go on; raises :class:`CommandFailed` when it does not."""
        for _ in range(_TRIES):
            result = self._virsh("resume", self.name)
            if result.ok or self.state() == "running":
                return
        result.check("resume the domain")

    def _job(self, target: str) -> bool:
        """Whether a block job works on the disk, whatever kind it is."""
        result = self._virsh("blockjob", self.name, target, "--info", "--raw")
        return result.ok and b"type=" in result.stdout

    def _progress(self, target: str) -> tuple[int, int] | None:
        result = self._virsh("blockjob", self.name, target, "--info", "--raw")
        words = dict(
            word.strip().split("=", 1) for word in result.stdout.decode().split("\n") if "=" in word
        )
        try:
            return int(words["cur"]), int(words["end"])
        except (KeyError, ValueError):
            return None

    def _wait_ready(
        self,
        file: Path,
        target: str,
        step: str,
        stall: float,
        on_progress: Callable[[int, int], None],
    ) -> None:
        least: int | None = None  # bytes left: a guest may write faster than the copy goes
        moved = time.monotonic()
        for pause in _pauses():
            disk = self.disk(file)
            if disk.is_ready:
                return
            if not disk.has_job:
                raise CommandFailed(step, "the block job has ended by itself", path=str(file))
            now = self._progress(target)
            # Before it has begun libvirt says 0 of 1.
            if now and now[1] > 1 and (least is None or now[1] - now[0] < least):
                least, moved = now[1] - now[0], time.monotonic()
                on_progress(*now)
            if time.monotonic() - moved > stall:
                raise CommandFailed(step, f"nothing moved for {stall:.0f} s", path=str(file))
            time.sleep(pause)

    def _virsh(self, *arguments: str, timeout: float = QUICK) -> process.Result:
        argv = ["virsh", "-q", "-c", self._uri, *arguments]
        return process.run(argv, timeout=timeout, step="ask libvirt")


def written(uri: str) -> dict[str, dict[str, list[int]]]:
    """How much each domain has written: by domain, by file, the counters of virsh(1), domstats.

    They start anew with the domain. The size is among them: it may change without a write.
    """
    argv = ["virsh", "-q", "-c", uri, "domstats", "--block", "--list-active"]
    result = process.run(argv, timeout=QUICK, step="ask libvirt").check("ask for the disks")
    found: dict[str, dict[str, list[int]]] = {}
    facts: dict[str, str] = {}
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("Domain: "):
            facts = {}
            disks = found.setdefault(line.partition("'")[2].rstrip("'"), {})
        elif "=" in line:
            name, value = line.strip().split("=", 1)
            facts[name] = value
            number, _, counter = name.removeprefix("block.").partition(".")
            if counter == "physical" and (path := facts.get(f"block.{number}.path")):
                counters = [facts.get(f"block.{number}.{each}", "0") for each in _COUNTERS]
                disks[path] = [int(each) for each in counters if each.isdigit()]
    return found


def _pauses() -> Iterator[float]:
    pause = _PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, _LONGEST_PAUSE)
