"""One pass over all disks that ask for recovery copies: the timer's ``onestor recovery run``.

Whatever is due is copied, whatever is no use any more goes. A host or replica that is slow or dead
holds up only what needs it: everything that talks with one has a thread of its own, and as long as
anything is at work the pass goes on looking for disks that become due.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from onestor_lib.agent.errors import InvalidInput, LockTimeout, OnestorError, Superseded
from onestor_lib.agent.space import MB
from onestor_lib.frontend import oned, qcow2_options, state
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import domains, recovery, tombstones, vms
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.recovery import Cloud, Wanted

_AT_ONCE = 2  # copies from one host to one replica
_TO_ONE_REPLICA = 4
_THREADS = 32  # hosts and replicas that are asked at once
_LOOK = 10.0  # seconds for their answers
_AGAIN = 10.0  # seconds until a pass that is still at work looks for disks that have become due
_NONSENSE = "what it says is no answer"
_OVERHEAD = 64 * MB  # of a qcow2 file, beside an eighth of the disk's size


@dataclass
class Known:
    """What one look at the cloud has found."""

    wanted: dict[tuple[int, str], Wanted] = field(default_factory=dict)
    # By replica, VM and disk: the youngest copy there, as ``recovery.copies`` says.
    copies: dict[tuple[str, int, str], dict[str, Any]] = field(default_factory=dict)
    # By host, domain and file: what was written so far.
    written: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    # Hosts and replicas that do not answer, and why: a machine that is both is not asked twice.
    failed: dict[str, str] = field(default_factory=dict)

    def youngest(self, wanted: Wanted, now: float) -> tuple[str, dict[str, Any]] | None:
        """The youngest copy that is one of this disk's image, and where it lies."""
        vm, disk = wanted.key
        found = [
            (replica, copied)
            for replica in wanted.replicas
            if (copied := self.copies.get((replica, vm, disk)))
            and copied["record"].get("image") == wanted.disk.image_id
        ]
        return max(found, key=lambda each: recovery.youth(int(each[1]["point"]), now), default=None)

    def activity(self, wanted: Wanted) -> list[Any]:
        """What tells whether the disk has been written to; nothing when that is not known."""
        for domain, disks in self.written.get(wanted.place.host, {}).items():
            for path, counters in disks.items():
                if os.path.normpath(path) == wanted.place.path:
                    return [wanted.place.host, domain, *counters]
        return []


class Pass:
    """One pass; :meth:`run` is all of it."""

    def __init__(self, request: Request) -> None:
        self._request, self._log = request, request.log
        self._changing = threading.Lock()  # held by whoever changes what follows
        # Disks, and talks with one machine, by name: what is going on is not begun once more.
        self._at_work: dict[tuple[Any, ...], Future[Any]] = {}
        self._turns: dict[str, threading.Semaphore] = {}
        self._told: set[tuple[int, str]] = set()  # the disks that have failed in this pass
        self.done: dict[str, int] = {"copied": 0, "unchanged": 0, "failed": 0}
        self._talking = ThreadPoolExecutor(_THREADS)
        # By host and replica, so that a slow one of either holds up only what needs it.
        self._lanes: dict[tuple[str, str], ThreadPoolExecutor] = {}

    def run(self) -> dict[str, int]:
        """Do it; how many disks were ``copied``, were ``unchanged``, and have ``failed``."""
        with self._talking:
            try:
                self._plan()
                while not self._finish(time.monotonic() + _AGAIN):
                    try:
                        self._plan()
                    except OnestorError as error:  # oned restarts, for one: what is at work goes on
                        self._log.warn(f"no look for other disks: {error}")
            finally:
                for lane in self._lanes.values():
                    lane.shutdown(wait=True, cancel_futures=True)
        return self.done

    def _begin(
        self,
        pool: ThreadPoolExecutor,
        name: tuple[Any, ...],
        work: Callable[..., Any],
        *arguments: Any,
    ) -> Future[Any] | None:
        """Have work done, unless the same is going on still."""
        with self._changing:
            if name in self._at_work:
                return None
            begun = self._at_work[name] = pool.submit(work, *arguments)
        return begun

    def _finish(self, deadline: float) -> bool:
        """Wait for what is at work; whether that is all done before the deadline."""
        while time.monotonic() < deadline:
            with self._changing:
                for name in [name for name, work in self._at_work.items() if work.done()]:
                    if error := self._at_work.pop(name).exception():
                        self._log.warn(f"{' '.join(map(str, name))}: {error!r}")
                left = list(self._at_work.values())
            if not left:
                return True
            wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
        return False

    def _plan(self) -> None:
        request = replace(self._request, log=self._own_log())
        self._begin(self._talking, ("tombstones",), tombstones.sweep, request)
        now = time.time()  # before anybody is asked: what is written behind that comes next time
        cloud = Cloud(self._request)
        known = self._look(cloud)
        self._clean(cloud, known)
        unchanged: dict[str, list[Wanted]] = {}
        for wanted in known.wanted.values():
            if not wanted.replicas or wanted.key in self._at_work or wanted.key in self._told:
                continue
            found = known.youngest(wanted, now)
            if found and _is_recent(int(found[1]["point"]), wanted.frequency, now):
                continue
            activity = known.activity(wanted)
            silent = [known.failed[name] for name in wanted.replicas if name in known.failed]
            if len(silent) == len(wanted.replicas):  # nobody to have a copy, or to know of one
                self._failed(wanted, "; ".join(silent))
            elif wanted.place.host in known.failed:
                self._failed(wanted, known.failed[wanted.place.host])
            elif found and activity and found[1]["record"].get("activity") == activity:
                unchanged.setdefault(found[0], []).append(wanted)
            else:
                self._begin_copy(wanted, known, activity)
        for replica, disks in unchanged.items():
            name, point = ("renew", replica), int(now * 1000)
            self._begin(self._talking, name, self._renew, replica, disks, known, point)

    def _begin_copy(self, wanted: Wanted, known: Known, activity: list[Any]) -> None:
        """Have a disk copied to the first replica that answers."""
        replicas = sorted(wanted.replicas, key=lambda name: name in known.failed)
        lane = (wanted.place.host, replicas[0])
        if lane not in self._lanes:
            self._lanes[lane] = ThreadPoolExecutor(_AT_ONCE)
        self._begin(self._lanes[lane], wanted.key, self._copy, wanted, replicas, activity)

    def _look(self, cloud: Cloud) -> Known:
        """Ask all hosts and replicas at once; those that take long count as not answering."""
        known = Known({wanted.key: wanted for wanted in cloud.wanted()})
        begun: dict[tuple[str, str], Future[Any] | None] = {}
        for replica, settings in cloud.replicas().items():
            name = ("copies", replica)
            begun[name] = self._begin(self._talking, name, self._copies_on, replica, settings)
        for host, wanted in {each.place.host: each for each in known.wanted.values()}.items():
            name = ("written", host)
            begun[name] = self._begin(self._talking, name, self._written_on, host, wanted)
        wait([work for work in begun.values() if work], timeout=_LOOK)
        doomed = tombstones.of_copies()
        for (what, host), work in begun.items():
            found = work.result() if work and work.done() else f"no answer for {_LOOK:.0f} s"
            if what == "written" and work and not work.done():
                continue  # libvirt is slow: then it counts as written to
            if isinstance(found, str):
                known.failed[host] = found if host in found else f"{host}: {found}"
            elif what == "written":
                known.written[host] = found
            else:
                for each in found:
                    key = host, int(each["vm"]), str(each["disk"])
                    if key not in doomed:
                        known.copies[key] = each
        return known

    def _copies_on(self, replica: str, settings: Settings) -> list[dict[str, Any]] | str:
        """What a replica has, or why it does not say so."""
        try:
            found = recovery.copies_on(replica, settings, self._own_log())
            for each in found:
                int(each["vm"]), str(each["disk"])
                if each["disk"]:
                    int(each["point"]), each["record"].get("image")
            return found
        except OnestorError as error:
            return str(error)
        except (AttributeError, KeyError, TypeError, ValueError):
            return _NONSENSE

    def _written_on(self, host: str, wanted: Wanted) -> dict[str, dict[str, list[int]]] | str:
        """What the domains on a host have written, or why it does not say so."""
        try:
            uri = domains.of(wanted.vm, wanted.settings)["uri"]
            with self._hosts(wanted.settings).agent(host) as agent:
                found = agent.call("recovery.look", uri=uri)
            return {
                str(domain): {
                    str(path): [int(each) for each in counters] for path, counters in disks.items()
                }
                for domain, disks in found.items()
            }
        except OnestorError as error:
            return str(error)
        except (AttributeError, TypeError, ValueError):
            return _NONSENSE

    def _clean(self, cloud: Cloud, known: Known) -> None:
        """Let replicas forget what is no use to anybody."""
        now = time.time()
        with self._changing:
            busy = {name[0] for name in self._at_work}
        asking = {vm_id for vm_id, _ in known.wanted}
        youths = {
            key: recovery.youth(int(copied["point"]), now)
            for key, copied in known.copies.items()
            if key[2]  # else it is a directory without copies
        }
        youngest: dict[tuple[int, str], tuple[bool, int]] = {}
        for (_, vm_id, disk), youth in youths.items():
            youngest[vm_id, disk] = max(youth, youngest.get((vm_id, disk), youth))
        useless: dict[str, list[tuple[int, str]]] = {}
        for (replica, vm_id, disk), copied in known.copies.items():
            if vm_id in busy or (not disk and vm_id in asking):
                continue  # its directory may be empty because the first copy is on its way
            try:
                # An older copy than another replica's must not be taken for the state of the disk.
                is_older = disk and youths[replica, vm_id, disk] < youngest[vm_id, disk]
                if is_older or not disk or not cloud.still_asks(vm_id, disk, copied["record"]):
                    useless.setdefault(replica, []).append((vm_id, disk))
            except OnestorError as error:
                self._log.warn(f"recovery copy of VM {vm_id} {disk} on {replica} is kept: {error}")
        replicas = cloud.replicas()
        for replica, disks in useless.items():
            name, settings = ("clean", replica), replicas[replica]
            self._begin(self._talking, name, self._forget, replica, settings, disks)
        for vm_id, disk in state.errors():
            if vm_id not in cloud.vms:
                state.forget_error((vm_id, disk))
        for replica in state.replicas():
            if replica not in known.failed and not any(key[0] == replica for key in known.copies):
                state.forget_replica(replica)

    def _forget(self, replica: str, settings: Settings, disks: list[tuple[int, str]]) -> None:
        try:
            with self._hosts(settings).agent(replica) as agent:
                for vm_id, disk in disks:
                    root = recovery.root(settings)
                    if not disk:
                        agent.call("recovery.tidy", root=root, vm=vm_id)
                        continue
                    agent.call("recovery.forget", root=root, vm=vm_id, disk=disk)
                    self._log.info(f"recovery copy of VM {vm_id} {disk} on {replica} removed")
        except OnestorError as error:
            self._log.warn(f"recovery copies on {replica} are kept: {error}")

    def _renew(self, replica: str, disks: list[Wanted], known: Known, point: int) -> None:
        """Nothing was written: the copies show the present, too."""
        settings = disks[0].settings
        turns = [
            [*each.key, int(known.copies[(replica, *each.key)]["point"]), point] for each in disks
        ]
        try:
            with self._hosts(settings).agent(replica) as agent:
                root = recovery.root(settings)
                failed = agent.call("recovery.renew", root=root, disks=turns)
        except OnestorError as error:
            self._log.warn(f"recovery copies on {replica}: {error}")
            return
        lost = {(int(each[0]), str(each[1])) for each in failed}
        good = [each for each in disks if each.key not in lost]
        with self._changing:
            self.done["unchanged"] += len(good)
        for each in good:
            state.forget_error(each.key)
        for host in {each.place.host for each in good}:
            paths = [each.place.path for each in good if each.place.host == host]
            self._begin(self._talking, ("note", host), self._note, host, settings, paths, point)

    def _note(self, host: str, settings: Settings, paths: list[str], point: int) -> None:
        try:
            with self._hosts(settings).agent(host) as agent:
                agent.call("recovery.note", points=dict.fromkeys(paths, point // 1000))
        except OnestorError as error:
            self._log.warn(f"recovery copies: their time is not shown: {error}")

    def _copy(self, wanted: Wanted, replicas: list[str], activity: list[Any]) -> None:
        """One disk; whatever happens is told and hinders no other."""
        try:
            self._copy_to_first(wanted, replicas, activity)
        except Superseded as error:  # the VM is elsewhere by now, and copied from there
            self._log.info(f"VM {wanted.key[0]} {wanted.key[1]}: {error}")
        except OnestorError as error:
            self._failed(wanted, str(error))

    def _copy_to_first(self, wanted: Wanted, replicas: list[str], activity: list[Any]) -> None:
        begin, since = time.monotonic(), time.time()
        vm_id, disk = wanted.key
        settings, hosts = wanted.settings, self._hosts(wanted.settings)
        client = oned.Client()
        vm = client.vm(vm_id)
        if not recovery.can_be_copied(vm, wanted.place.host):
            return  # it was waiting for its turn: the VM is moved, saved or backed up by now
        with hosts.agent(wanted.place.host) as host:
            is_qcow2 = wanted.disk.image_format == "qcow2"
            made = host.call(
                "recovery.copy",
                path=wanted.place.path,
                image_format=wanted.disk.image_format,
                live=domains.live(wanted.vm, settings, step="make the recovery copy"),
                qcow2_options=qcow2_options.effective(settings) if is_qcow2 else [],
                check_space=settings.yes("CHECK_FREE_SPACE"),
                timeout=settings.seconds("CONVERT_TIMEOUT"),
                lock_timeout=settings.seconds("BLOCK_JOB_TIMEOUT"),
                bulk=hosts.bulk_priority(),
            )
            point = int(time.time() * 1000)
            _require_size(wanted, int(made["size"]))

            def still(question: dict[str, Any]) -> dict[str, Any]:
                """What a host has that was given up meanwhile is not the state of the disk."""
                step = "keep the recovery copy"
                vms.require_wanted(client, vm_id, vms.sequence(vm), hosts.log, step=step)
                return {}

            failures = []
            for replica in replicas:
                try:
                    received = self._fetch(
                        hosts, wanted, replica, made, point, since, activity, still
                    )
                    break
                except Superseded:
                    raise
                except OnestorError as error:
                    failures.append(str(error))
            else:
                raise OnestorError("keep the recovery copy", "; ".join(failures))
            for failure in failures:
                self._log.warn(failure)
            with contextlib.suppress(OnestorError):  # the copy is there all the same
                host.call("recovery.note", points={wanted.place.path: point // 1000})
        state.forget_error(wanted.key)
        with self._changing:
            self.done["copied"] += 1
        self._log.info(
            f"VM {vm_id} {disk} on {wanted.place.host}: recovery copy on {replica}, "
            f"{received / MB:.1f} MB sent, {time.monotonic() - begin:.2f} s"
        )

    def _fetch(
        self,
        hosts: Hosts,
        wanted: Wanted,
        replica: str,
        made: dict[str, Any],
        point: int,
        since: float,
        activity: list[Any],
        still: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> int:
        vm_id, disk = wanted.key
        settings, root = wanted.settings, recovery.root(wanted.settings)
        with self._turn(replica, settings), hosts.agent(replica, sends=True) as agent:
            state.note_replica(replica)
            done = agent.call(
                "recovery.fetch",
                on_ask=still,
                root=root,
                vm=vm_id,
                disk=disk,
                made=made,
                point=point,
                record={
                    "image": wanted.disk.image_id,
                    "format": wanted.disk.image_format,
                    "host": wanted.place.host,
                    "activity": activity,
                },
                argv=hosts.bulk_argv(wanted.place.host, "REPLICA_SSH_OPTS"),
                host=wanted.place.host,
                stall=settings.seconds("STALL_TIMEOUT"),
                bytes_per_second=settings.megabytes("REPLICA_BWLIMIT_MB_S") or 0,
                check_space=settings.yes("CHECK_FREE_SPACE"),
                lock_timeout=settings.seconds("BLOCK_JOB_TIMEOUT"),
                bulk=hosts.bulk_priority(),
            )
            # The older ones are gone by now; so is this one, if the disk is not wanted any more.
            if not tombstones.drop_copies(replica, root, vm_id, disk, before=since):
                agent.call("recovery.forget", root=root, vm=vm_id, disk=disk)
        self._log.tally.sent(wanted.place.host, replica, int(done["received"]))
        return int(done["received"])

    def _failed(self, wanted: Wanted, cause: str) -> None:
        vm_id, disk = wanted.key
        state.note_error(wanted.key, cause)
        with self._changing:
            is_new = wanted.key not in self._told
            self._told.add(wanted.key)
            self.done["failed"] += is_new
        if is_new:
            self._log.warn(f"VM {vm_id} {disk} has no new recovery copy: {cause}")

    def _hosts(self, settings: Settings) -> Hosts:
        """One for each thread: its connections are nobody else's."""
        return Hosts(settings, self._own_log())

    def _own_log(self) -> Log:
        return copy.copy(self._log)

    @contextlib.contextmanager
    def _turn(self, replica: str, settings: Settings) -> Iterator[None]:
        """One of the few that a replica fetches at once."""
        with self._changing:
            turn = self._turns.setdefault(replica, threading.Semaphore(_TO_ONE_REPLICA))
        if not turn.acquire(timeout=settings.seconds("CONVERT_TIMEOUT")):
            cause = "it has not come to this disk"
            raise LockTimeout("wait for the replica", cause, host=replica)
        try:
            yield
        finally:
            turn.release()


def _is_recent(point: int, frequency: int, now: float) -> bool:
    """Whether a copy of that moment is as young as is asked for."""
    return now - point / 1000 < frequency and not recovery.is_ahead(point, now)


def _require_size(wanted: Wanted, size: int) -> None:
    """Raise :class:`InvalidInput` for a copy that is larger than its disk can be."""
    template = wanted.disk.template
    told = int(template.text("SIZE", "0")) * MB if template else 0
    if told and size > told + told // 8 + _OVERHEAD:
        cause = f"it has {size} bytes, the disk {told}"
        raise InvalidInput("make the recovery copy", cause, host=wanted.place.host)
