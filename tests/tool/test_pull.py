"""transfer.pull between real agents: a host fetches from a replica, which fills from the origin."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import channel, companions, crashpoints, locks, origin, transfer
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    CacheFailed,
    HostUnreachable,
    LockTimeout,
    Missing,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.operations import cache as operations
from onestor_lib.agent.version import Version
from onestor_lib.frontend import bundle, config
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services.hosts import Hosts
from tests.tool.conftest import (
    Agents,
    allocated,
    changed_bundle,
    draw,
    temporaries,
)
from tests.tool.placing import BULK, RECEIVER, LocalCall, limits, send, wanted
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("payload")


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentClient]:
    """One for all tests that do not look at what it logs: each starts enough others."""
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    with Hosts(settings, Log("test", stderr=io.StringIO())).local_agent() as started:
        yield started


class Pulling:
    """A host, a replica and an origin, each a directory and agents of its own."""

    def __init__(self, root: Path) -> None:
        self.origin = draw(root / "origin" / "0a1b", "ABCDE", b"tail")
        self.entry = root / "replica" / "datastores" / "1" / "0a1b"
        self.part = root / "host" / "part"
        self.part.parent.mkdir()
        self.part.touch()
        self.marker = root / "host" / "marker of the host alone"
        self.changed: dict[str, Any] = {"is_replica": True}
        self.questions: list[dict[str, Any]] = []

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The front-end's part: bring the image from the origin to the replica."""
        self.questions.append(question)
        found = send(
            self.origin, Path(question["temporary"]), reuse=question["reuse"],
            manifest=question["manifest"],
        )  # fmt: skip
        return {**found, "source": "fe"}

    def image(self) -> dict[str, Any]:
        facts = origin.describe(self.origin, "raw", snapshots=False)
        return wanted(self.entry, facts) | self.changed

    def pull(self, agent: AgentClient, *, reuse: bool = False, stall: float = 10.0) -> Any:
        return agent.call(
            "transfer.pull", on_ask=self.answer, argv=RECEIVER, host="r1", image=self.image(),
            marker=str(self.marker), temporary=str(self.part), manifest=f"{self.part}.chunks",
            reuse=reuse, stall=stall, bytes_per_second=0, bulk=BULK,
        )  # fmt: skip

    def assert_complete(self) -> None:
        assert self.part.read_bytes() == self.origin.read_bytes()


@pytest.fixture
def pulling(tmp_path: Path) -> Pulling:
    return Pulling(tmp_path)


def spoil(path: Path, offset: int) -> None:
    """Change one byte so that size, time and inode stay as they were."""
    facts = path.stat()
    mode = facts.st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_A1_the_replica_is_filled_once_and_serves_then(
    agent: AgentClient, pulling: Pulling
) -> None:
    first = pulling.pull(agent)
    pulling.assert_complete()
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()
    (question,) = pulling.questions
    assert (question["item"], question["host"]) == ("image", "r1")
    assert (pulling.entry.parent / ".monitor").read_text() == "replica\n", "L2"
    pulling.part.unlink()
    pulling.part.touch()
    second = pulling.pull(agent)
    pulling.assert_complete()
    assert len(pulling.questions) == 1
    assert {**first, "written": None} == {**second, "written": None}
    assert second["written"] == Version.of(pulling.part.stat()).to_json()
    assert first["sent"] == 5 * CHUNK + 4
    kept = Path(f"{pulling.part}.chunks").read_bytes()
    found = record.read(Entry(pulling.entry).sidecar)
    assert found and found.digest == first["digest"]
    manifest = record.read_manifest(Entry(pulling.entry).sidecar, found)
    assert manifest and manifest.to_bytes() == kept


def test_A1_the_host_follows_while_the_replica_is_filled(
    agent: AgentClient, pulling: Pulling
) -> None:
    """Cut-through: all is here before the fill of the replica is answered."""
    answer = pulling.answer

    def bring_and_wait(question: dict[str, Any]) -> dict[str, Any]:
        found = answer(question)
        wait_until(lambda: pulling.part.read_bytes() == pulling.origin.read_bytes())
        return found

    pulling.answer = bring_and_wait  # type: ignore[method-assign]
    assert pulling.pull(agent)["sent"] == 5 * CHUNK + 4, "nothing came twice"
    pulling.assert_complete()


def test_A3_a_transfer_that_was_cut_goes_on_where_it_was(
    agent: AgentClient, pulling: Pulling
) -> None:
    """At 80 % the link broke: not more than 25 % may cross once more."""
    pulling.part.write_bytes(pulling.origin.read_bytes()[: 4 * CHUNK])
    found = pulling.pull(agent, reuse=True)
    pulling.assert_complete()
    assert found["sent"] == CHUNK + 4 <= pulling.origin.stat().st_size * 0.25


@pytest.mark.parametrize(
    ("pattern", "tail", "sent"),
    [
        ("ABCXE", b"tail", 1),  # one chunk has changed
        ("ABCDE", b"tail", 0),  # only its time has
        ("ABC-EFG", b"", 2),  # a chunk has become a hole
        ("AB0D0", b"tail", 0),  # or zeros
        ("ABCDE", b"ta", 0),
        ("ABCDE", b"TAIL", 4 / CHUNK),
        ("ABCDEFG", b"", 2),  # or longer: its tail was a part of a chunk
        ("ABCDE--", b"", 0),
    ],
)
def test_a_new_version_comes_as_a_difference(
    agent: AgentClient, pulling: Pulling, pattern: str, tail: bytes, sent: float
) -> None:
    """On both links: to the replica, which has the older version, and from there to the host."""
    begun, found = renew(agent, pulling, pattern, tail, seeded=True)
    assert begun == found == round(sent * CHUNK)


@pytest.mark.parametrize(
    ("pattern", "tail"),
    [("ABC-E", b"tail"), ("ABC", b""), ("-------", b""), ("", b"")],
)
def test_a_version_that_is_much_larger_is_not_begun_with(
    agent: AgentClient, pulling: Pulling, pattern: str, tail: bytes
) -> None:
    """The replica would need more room than it has reserved; the host has all of it here."""
    begun, found = renew(agent, pulling, pattern, tail, seeded=False)
    assert begun == sum(letter != "-" for letter in pattern) * CHUNK + len(tail)
    assert found == 0


def renew(
    agent: AgentClient, pulling: Pulling, pattern: str, tail: bytes, *, seeded: bool
) -> tuple[int, int]:
    """Pull, change the origin, pull again: how many bytes each of the two links has seen then."""
    pulling.pull(agent)
    older = pulling.part.read_bytes()
    draw(pulling.origin, pattern, tail)
    os.utime(pulling.origin, ns=(1, 1))
    begun: list[int] = []
    answer = pulling.answer

    def note(question: dict[str, Any]) -> dict[str, Any]:
        assert question["reuse"] is seeded
        found = answer(question)
        begun.append(found["sent"])
        return found

    pulling.answer = note  # type: ignore[method-assign]
    found = pulling.pull(agent, reuse=True)
    pulling.assert_complete()
    assert pulling.part.read_bytes() != older or (pattern, tail) == ("ABCDE", b"tail")
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()
    for file in (pulling.part, pulling.entry):
        assert allocated(file) <= allocated(pulling.origin) * 1.05 + 8192, "A20"
    (begun_once,) = begun
    return begun_once, found["sent"]


def test_A8_zeros_inside_of_a_chunk_replace_what_was_there(
    agent: AgentClient, pulling: Pulling
) -> None:
    """Pages of zeros are left out only where the receiver has a hole."""
    pulling.pull(agent)
    with pulling.origin.open("r+b") as file:
        file.seek(3 * CHUNK + 4096)
        file.write(bytes(CHUNK // 2))
    found = pulling.pull(agent, reuse=True)
    pulling.assert_complete()
    assert found["sent"] == CHUNK
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()


@pytest.mark.parametrize("offset", [0, 2 * CHUNK + 17, 5 * CHUNK + 3])
def test_A8_a_damaged_entry_is_dropped_filled_anew_and_fetched_again(
    agents: Agents, pulling: Pulling, offset: int
) -> None:
    with agents.start() as agent:
        pulling.pull(agent)
        spoil(pulling.entry, offset)
        assert Entry(pulling.entry).find(Version(**pulling.image()["version"])), "a hit"
        pulling.pull(agent)
    pulling.assert_complete()
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()
    assert len(pulling.questions) == 2
    said = [line for line in agents.logged.getvalue().splitlines() if line.startswith("WARN")]
    assert len(said) == 1 and "1 of its chunks differ" in said[0] and "was dropped" in said[0]


def test_A9_a_damaged_manifest_is_made_again(agent: AgentClient, pulling: Pulling) -> None:
    """The line of the record, which is enough for a hit, is intact."""
    pulling.pull(agent)
    sidecar = Entry(pulling.entry).sidecar
    spoil(sidecar, sidecar.stat().st_size - 5)
    pulling.part.write_bytes(b"")
    pulling.pull(agent)
    pulling.assert_complete()


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_A8_A9_damage_of_both_manifest_and_content_is_noticed(
    agent: AgentClient, pulling: Pulling, damage: str
) -> None:
    """Without a manifest the sender digests what it reads: that must be what was recorded."""
    pulling.pull(agent)
    sidecar = Entry(pulling.entry).sidecar
    if damage == "cut":
        os.truncate(sidecar, sidecar.read_bytes().index(b"\n") + 1)
    else:
        spoil(sidecar, sidecar.stat().st_size - 5)
    spoil(pulling.entry, 17)
    pulling.part.write_bytes(b"")
    pulling.pull(agent)
    pulling.assert_complete()
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()


def start_changed(
    monkeypatch: pytest.MonkeyPatch, agents: Agents, *changes: tuple[str, str]
) -> contextlib.AbstractContextManager[AgentClient]:
    """Agents, the replica's included, whose `cache.read` and `cache.hold` are changed."""
    code = changed_bundle("onestor_lib.agent.operations.cache", *changes)
    monkeypatch.setattr(bundle, "build", lambda: code)
    return agents.hosts.local_agent()


def test_A8_A9_the_receiver_compares_with_what_the_replica_has_recorded(
    monkeypatch: pytest.MonkeyPatch, agents: Agents, pulling: Pulling
) -> None:
    """Whatever the sender thinks: the digest of what arrives is not the one in the record."""
    change = ("manifest, digest=had.record.digest)", 'None, digest="")')
    with start_changed(monkeypatch, agents, change) as agent:
        pulling.pull(agent)
        spoil(pulling.entry, 17)
        pulling.part.write_bytes(b"")
        pulling.pull(agent)
    pulling.assert_complete()
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()
    assert len(pulling.questions) == 2, "the entry was dropped and filled anew"


@pytest.mark.parametrize("damaged", [True, False])
def test_A8_A18_an_entry_that_cannot_be_read_is_verified(
    monkeypatch: pytest.MonkeyPatch, agents: Agents, pulling: Pulling, damaged: bool
) -> None:
    """A disk that gives an error instead of other bytes: the entry goes if it is damaged."""
    broken = pulling.origin.with_name("broken")  # the next reading fails
    sending = "sender.send(fd, had.record.version.size, manifest, digest=had.record.digest)"
    fails = f"""if os.path.exists({str(broken)!r}):
            os.unlink({str(broken)!r})
            frames.read_manifest(sender._pipe, had.record.version.size, stall)
            raise OSError(5, "Input/output error")
        {sending}"""
    with start_changed(monkeypatch, agents, (sending, fails)) as agent:
        pulling.pull(agent)
        broken.touch()
        if damaged:
            spoil(pulling.entry, 17)
            pulling.pull(agent)
        else:
            with pytest.raises(OnestorError, match=r"^send r1:?.*: Input/output error$"):
                pulling.pull(agent)
    assert not broken.exists()
    if damaged:
        pulling.assert_complete()
    assert len(pulling.questions) == (2 if damaged else 1)
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()


def test_A20_a_new_version_of_a_sparse_image_keeps_its_holes(
    agent: AgentClient, pulling: Pulling
) -> None:
    """Pages here and there, which are others in the new version: on both links, and in place."""

    def scatter(shift: int) -> None:
        with pulling.origin.open("wb") as file:
            file.truncate(16 * CHUNK)
            for index in range(0, 16, 2):
                os.pwrite(file.fileno(), b"x" * 4096, index * CHUNK + shift * 4096)
            os.fsync(file.fileno())

    scatter(1)
    pulling.pull(agent)
    for shift in (3, 9):
        scatter(shift)
        pulling.pull(agent, reuse=True)
        pulling.assert_complete()
        assert pulling.questions[-1]["reuse"] is True
        for file in (pulling.part, pulling.entry):
            os.sync()
            assert allocated(file) <= allocated(pulling.origin) * 1.05


def test_A8_a_replica_that_cannot_send_the_right_bytes_fails(
    agent: AgentClient, pulling: Pulling
) -> None:
    """What the origin brings now is spoilt each time, as by a bad memory."""
    answer = pulling.answer

    def bring_and_spoil(question: dict[str, Any]) -> dict[str, Any]:
        found = answer(question)
        spoil(Path(question["temporary"]), 17)
        return found

    pulling.answer = bring_and_spoil  # type: ignore[method-assign]
    try:
        pulling.pull(agent)
    except TransferFailed as failure:
        assert failure.retryable and failure.host == "r1"
        assert len(pulling.questions) == 2, "it has tried twice"
        assert not Path(f"{pulling.part}.chunks").exists(), "nothing says that the part is complete"
    else:
        pulling.assert_complete()  # it was followed, and so read before it was spoilt


def test_A24_a_host_is_not_its_own_replica(agent: AgentClient, pulling: Pulling) -> None:
    """Known by a file: names and addresses prove nothing."""
    pulling.marker = pulling.part
    with pytest.raises(CacheFailed, match="it is the host itself"):
        pulling.pull(agent)
    assert pulling.questions == []
    assert not pulling.entry.exists()


def test_B6_a_replica_without_room_is_none(agent: AgentClient, pulling: Pulling) -> None:
    pulling.changed["limits"] = limits(max_bytes=1000)
    with pytest.raises(CacheFailed, match="the limit is 0 MB"):
        pulling.pull(agent)


def test_A18_the_front_end_s_failure_arrives_as_it_is(agent: AgentClient, pulling: Pulling) -> None:
    def fail(question: dict[str, Any]) -> dict[str, Any]:
        raise Missing("read image", "no such file", path="/x")

    pulling.answer = fail  # type: ignore[method-assign]
    with pytest.raises(Missing, match="no such file"):
        pulling.pull(agent)
    assert temporaries(pulling.entry.parent) == []


@pytest.mark.parametrize(
    "point", ["send.half", "receive.started", "receive.half", "receive.ended", "fill.recorded"]
)
def test_A3_A6_any_side_killed_and_the_next_try_goes_on(
    agents: Agents, crashed: Callable[[], list[str]], pulling: Pulling, point: str
) -> None:
    with agents.start(crash_at=point) as agent, pytest.raises(OnestorError) as failure:
        pulling.pull(agent)
    assert set(crashed()) == {point}
    assert failure.value.retryable, failure.value
    assert point in crashpoints.POINTS
    with agents.start() as agent:
        found = pulling.pull(agent, reuse=True)
    pulling.assert_complete()
    if point == "receive.ended":
        assert found["sent"] == 0, "all had come"
    assert pulling.entry.read_bytes() == pulling.origin.read_bytes()
    again = pulling.questions[1:]
    assert all(question["reuse"] for question in again), "what the replica had is not lost"


def test_A6_B11_never_two_writers_of_one_part(agent: AgentClient, pulling: Pulling) -> None:
    with pulling.part.open("r+b") as other:
        locks.become_writer(other.fileno(), pulling.part, 1)
        with pytest.raises(LockTimeout, match=str(pulling.part)):
            pulling.pull(agent, stall=0.3)
        with pytest.raises(LockTimeout, match=str(pulling.part)):
            send(pulling.origin, pulling.part, stall=0.3)
    pulling.pull(agent)
    pulling.assert_complete()


class Sending:
    """A replica that sends what it holds, and the receiver's end of the connection."""

    def __init__(self, pulling: Pulling) -> None:
        self.call = LocalCall(pulling.answer)
        self._image = pulling.image()
        operations.hold(self.call, image=self._image, marker=str(pulling.marker))
        self._reads, sends = os.pipe()
        receives, self._writes = os.pipe()
        self._open = {self._reads, sends, receives, self._writes}
        server = self.call._server
        server.source, server.writer = channel.ByteSource(receives), channel.Writer(sends)
        self.peer = channel.Writer(self._writes)

    def ask(self) -> None:
        """For all of it."""
        self.peer._put(b"G" + bytes(12), 1)

    def hang_up(self) -> None:
        """Without a word."""
        self._close(self._writes)

    def hang_up_after(self, count: int) -> None:
        """When so many bytes have come, which is less than there are."""
        while count > 0:
            count -= len(os.read(self._reads, count))
        self._close(self._reads)

    def run(self, stall: float = 10.0) -> None:
        operations.read(self.call, receiver="h1", stall=stall, bytes_per_second=0, bulk=BULK)

    def close(self) -> None:
        self.call._server.kept.close()
        for fd in list(self._open):
            self._close(fd)

    def _close(self, fd: int) -> None:
        os.close(fd)
        self._open.discard(fd)


@pytest.fixture
def sending(pulling: Pulling, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    monkeypatch.setattr(operations, "_held", [])
    made = Sending(pulling)
    yield made
    made.close()


def test_A3_a_receiver_that_goes_away_before_it_has_asked(sending: Sending) -> None:
    sending.hang_up()
    with pytest.raises(TransferFailed, match=r"^send \S+: the receiver went away$"):
        sending.run()


def test_A3_a_receiver_that_fails_before_it_has_asked(sending: Sending) -> None:
    """It says so in a message, which is not lost."""
    message = b'{"refusal": {"step": "receive"}}\n'
    sending.peer._put(message, 1)
    with pytest.raises(TransferFailed, match=r"^send \S+: the receiver went away$"):
        sending.run()
    assert sending.call._server.source.read_line(1) + b"\n" == message


def test_A3_a_receiver_that_goes_away_in_the_middle(sending: Sending) -> None:
    sending.ask()
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(sending.hang_up_after, 1000)
        with pytest.raises(TransferFailed, match=r"^send \S+: the receiver went away$"):
            sending.run()
        gone.result()


def test_A19_a_receiver_that_takes_nothing_more(sending: Sending) -> None:
    sending.ask()
    with pytest.raises(TransferFailed, match=r"^send \S+: the receiver took nothing for 0 s$"):
        sending.run(stall=0.05)


def test_A8_a_receiver_that_asks_for_nonsense(sending: Sending) -> None:
    sending.peer._put(b"D" + bytes(12), 1)
    with pytest.raises(TransferFailed, match=r"^send \S+: the stream is damaged$"):
        sending.run()


class TestSend:
    """transfer.send of an image whose version is known."""

    def send(self, agent: AgentClient, pulling: Pulling, version: dict[str, int]) -> Any:
        return agent.call(
            "transfer.send", path=str(pulling.origin), version=version, argv=RECEIVER, host="h1",
            stall=10.0, bytes_per_second=0, bulk=BULK, temporary=str(pulling.part), manifest="",
            reuse=False,
        )  # fmt: skip

    def test_A16_the_manifest_is_kept_for_the_next_time(
        self, agent: AgentClient, pulling: Pulling
    ) -> None:
        version = pulling.image()["version"]
        found = self.send(agent, pulling, version)
        kept = origin.Origin(pulling.origin).manifest()
        assert kept and kept.digest() == found["digest"]
        assert self.send(agent, pulling, version)["digest"] == found["digest"]
        pulling.assert_complete()

    def test_A13_an_image_changed_since_the_action_began_is_not_sent(
        self, agent: AgentClient, pulling: Pulling
    ) -> None:
        version = pulling.image()["version"]
        draw(pulling.origin, "XBCDE", b"tail")
        with pytest.raises(TransferFailed, match="was changed since the action began"):
            self.send(agent, pulling, version)
        assert pulling.part.stat().st_size == 0

    def test_A9_a_manifest_of_another_version_is_not_believed(
        self, agent: AgentClient, pulling: Pulling
    ) -> None:
        self.send(agent, pulling, pulling.image()["version"])
        draw(pulling.origin, "XBCDE", b"tail")
        self.send(agent, pulling, pulling.image()["version"])
        pulling.assert_complete()

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\n", None])
    def test_A9_a_damaged_manifest_counts_as_none(
        self, agent: AgentClient, pulling: Pulling, content: bytes | None
    ) -> None:
        version = pulling.image()["version"]
        self.send(agent, pulling, version)
        manifest = companions.manifest(pulling.origin)
        if content is None:
            spoil(manifest, manifest.stat().st_size - 5)
        else:
            manifest.write_bytes(content)
        self.send(agent, pulling, version)
        pulling.assert_complete()
        assert origin.Origin(pulling.origin).manifest(), "and it is repaired"

    def test_A8_an_origin_that_is_not_what_its_manifest_says_never_passes(
        self, agent: AgentClient, pulling: Pulling
    ) -> None:
        """Nobody but a disk that forgets changes a byte and not the time."""
        version = pulling.image()["version"]
        self.send(agent, pulling, version)
        spoil(pulling.origin, 3 * CHUNK)
        manifest = companions.manifest(pulling.origin)
        with pytest.raises(
            OnestorError, match=f"{pulling.origin}: .* remove {manifest}"
        ) as failure:
            self.send(agent, pulling, version)
        assert not failure.value.retryable, "it would be the same each time"
        manifest.unlink()
        self.send(agent, pulling, version)
        pulling.assert_complete()


class TestCopy:
    """transfer.copy: origin and target are on one machine."""

    def copy(self, agent: AgentClient, pulling: Pulling, manifest: str = "") -> Any:
        return agent.call(
            "transfer.copy", path=str(pulling.origin), version=pulling.image()["version"],
            temporary=str(pulling.part), manifest=manifest, stall=0.3, bulk=BULK,
        )  # fmt: skip

    def keep_manifest(self, pulling: Pulling) -> None:
        with pulling.origin.open("rb") as file:
            digests = transfer.digests_of(file.fileno(), pulling.origin.stat().st_size)
        origin.Origin(pulling.origin).keep(digests)

    @pytest.mark.parametrize("is_fill", [True, False])
    def test_A8_a_copy_is_what_the_manifest_says(
        self, agent: AgentClient, pulling: Pulling, is_fill: bool
    ) -> None:
        manifest = f"{pulling.part}.chunks" if is_fill else ""
        self.keep_manifest(pulling)
        found = self.copy(agent, pulling, manifest)
        pulling.assert_complete()
        assert found["written"] == Version.of(pulling.part.stat()).to_json()
        spoil(pulling.origin, 3 * CHUNK)
        kept = companions.manifest(pulling.origin)
        with pytest.raises(OnestorError, match=f"{pulling.origin}: .* remove {kept}") as failure:
            self.copy(agent, pulling, manifest)
        assert not failure.value.retryable
        kept.unlink()
        self.copy(agent, pulling, manifest)
        pulling.assert_complete()

    def test_A6_B11_never_two_writers_of_one_part(
        self, agent: AgentClient, pulling: Pulling
    ) -> None:
        pulling.part.write_bytes(b"somebody else's")
        with pulling.part.open("r+b") as other:
            locks.become_writer(other.fileno(), pulling.part, 1)
            with pytest.raises(LockTimeout, match=f"{pulling.part}: an earlier transfer"):
                self.copy(agent, pulling)
        assert pulling.part.read_bytes() == b"somebody else's"
        self.copy(agent, pulling)
        pulling.assert_complete()


class TestWaiting:
    """cache.hold behind somebody who has the lock of the entry."""

    def hold(self, agent: AgentClient, pulling: Pulling) -> Any:
        image = pulling.image() | {"lock_timeout": 1.0}
        return agent.call(
            "cache.hold", on_ask=pulling.answer, image=image, marker=str(pulling.marker)
        )

    def test_A5_it_ends_without_progress(self, agents: Agents, pulling: Pulling) -> None:
        with agents.start() as first, agents.start() as second:

            def meanwhile(question: dict[str, Any]) -> dict[str, Any]:
                with pytest.raises(LockTimeout, match="clone of 0a1b"):
                    self.hold(second, pulling)
                return Pulling.answer(pulling, question)

            pulling.answer = meanwhile  # type: ignore[method-assign]
            self.hold(first, pulling)

    def test_A5_it_goes_on_as_long_as_the_other_is_told_of_progress(
        self, agents: Agents, pulling: Pulling
    ) -> None:
        """Twice as long as it would wait for a holder that stands still."""
        with agents.start() as first, agents.start() as second:
            answer = pulling.answer

            def meanwhile(question: dict[str, Any]) -> dict[str, Any]:
                pulling.answer = answer  # type: ignore[method-assign]
                waiting = pool.submit(self.hold, second, pulling)
                until = time.monotonic() + 2.2
                while time.monotonic() < until:
                    first.tell_progress()
                    assert not waiting.done(), waiting.exception()
                    time.sleep(0.05)
                waiters.append(waiting)
                return answer(question)

            pulling.answer = meanwhile  # type: ignore[method-assign]
            waiters: list[Future[Any]] = []
            with ThreadPoolExecutor(1) as pool:
                assert self.hold(first, pulling)["hit"] is False
                assert waiters[0].result()["hit"] is True
        assert len(pulling.questions) == 1

    def test_A5_a_transfer_into_the_entry_is_progress(
        self, agents: Agents, pulling: Pulling
    ) -> None:
        """What the waiter is told is passed on by it, so that others may wait for it in turn."""
        with agents.start() as first, agents.start() as second:
            told: list[tuple[int, int]] = []
            second._on_progress = lambda done, total: told.append((done, total))
            answer = pulling.answer

            def meanwhile(question: dict[str, Any]) -> dict[str, Any]:
                pulling.answer = answer  # type: ignore[method-assign]
                waiting = pool.submit(self.hold, second, pulling)

                def is_told() -> bool:
                    first.tell_progress()
                    return bool(told)

                wait_until(is_told)
                waiters.append(waiting)
                return answer(question)

            pulling.answer = meanwhile  # type: ignore[method-assign]
            waiters: list[Future[Any]] = []
            with ThreadPoolExecutor(1) as pool:
                self.hold(first, pulling)
                waiters[0].result()
        assert set(told) == {(0, 0)}


def test_A8_verify_finds_and_drops_what_is_damaged(agent: AgentClient, pulling: Pulling) -> None:
    def verify() -> str | None:
        found = agent.call("cache.verify", path=str(pulling.entry), lock_timeout=5.0)
        return None if found["gone"] else str(found["wrong"])

    pulling.pull(agent)
    used = Entry(pulling.entry).sidecar.stat().st_mtime_ns
    assert verify() == ""
    assert Entry(pulling.entry).sidecar.stat().st_mtime_ns == used, "that is no use of it"
    spoil(pulling.entry, 3 * CHUNK + 1)
    os.link(pulling.entry, pulling.part.with_name("disk.0.base"))
    assert verify() == (
        f"1 of its chunks differ, the first at byte {3 * CHUNK}; 1 disks of VMs have it as their"
        " base"
    )
    assert not pulling.entry.exists()
    assert verify() is None


def test_C12_a_replica_that_cannot_be_reached_is_named(
    agent: AgentClient, pulling: Pulling
) -> None:
    with pytest.raises(HostUnreachable, match=r"from .* to r1.*: no route"):
        agent.call(
            "transfer.pull", argv=["sh", "-c", "echo 'no route to host' >&2; exit 255"], host="r1",
            image=pulling.image(), marker=str(pulling.marker), temporary=str(pulling.part),
            manifest="", reuse=False, stall=5.0, bytes_per_second=0, bulk=BULK,
        )  # fmt: skip
