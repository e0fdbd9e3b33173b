"""Operations on the disks of VMs: what lies there afterwards, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import (
    errors,
    locks,
    priority,
    publish,
    qemu_img,
    vm_directory,
)
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    LockTimeout,
    NoSpace,
    OnestorError,
    ProgrammerError,
    Superseded,
    Terminated,
    TransferFailed,
)
from onestor_lib.agent.operations import disk as operations
from tests.tool.conftest import (
    MB,
    Agents,
    allocated,
    draw,
    info,
    listing,
    qcow2,
    temporaries,
)
from tests.tool.conftest import (
    qemu_img as run_qemu_img,
)
from tests.tool.placing import BULK, SNAPSHOTS, LocalCall, Placing, place_image, points, run_and_die


@pytest.fixture
def placing(tmp_path: Path) -> Placing:
    return place_image(tmp_path)


COMPLETE = ["100", "100/.monitor", "100/7", "100/7/.disk.0.lock", "100/7/.disk.0.record",
            "100/7/disk.0"]  # fmt: skip
WITH_SNAPSHOTS = [
    *COMPLETE,
    "100/7/disk.0.snap",
    *sorted(f"100/7/disk.0.snap/{snapshot}" for snapshot in SNAPSHOTS),
]


def test_C3_the_disk_appears_complete(agent: AgentClient, placing: Placing) -> None:
    placing.then = lambda item: None if not placing.disk.exists() else pytest.fail("too early")
    placing.run(agent)
    assert placing.disk.read_bytes() == placing.image.read_bytes()
    assert placing.disk.stat().st_mode & 0o777 == 0o660
    assert allocated(placing.disk) < 4 * MB, "holes are kept"
    assert placing.names == COMPLETE
    assert (placing.datastore / ".monitor").read_bytes() == b"onestor\n"
    assert vm_directory.read_record(placing.disk) == placing.options["record"]
    assert placing.questions == ["disk", "wanted"]


def test_C13_snapshots_come_along(agent: AgentClient, placing: Placing) -> None:
    placing.with_snapshots()
    (Path(f"{placing.image}.snap") / "0.tmp").write_text("half of a conversion (A14)")
    placing.run(agent)
    assert placing.names == WITH_SNAPSHOTS
    for snapshot in SNAPSHOTS:
        copy = placing.disk.with_name("disk.0.snap") / snapshot
        assert copy.read_bytes() == Path(f"{placing.image}.snap", snapshot).read_bytes()


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_trap12_kernels_are_no_disks(agent: AgentClient, placing: Placing, name: str) -> None:
    placing.disk = placing.disk.with_name(name)
    placing.image.write_bytes(b"odd size")
    placing.run(agent)
    assert placing.disk.read_bytes() == b"odd size"


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("grow_to", [0, 2, 10])
def test_C3_C4_the_guest_sees_the_size_asked_for(
    placing: Placing, image_format: str, sparse: bool, grow_to: int
) -> None:
    placing.image.unlink()
    (draw if image_format == "raw" else qcow2)(placing.image, "A0-B")
    placing.options |= {"image_format": image_format, "sparse": sparse, "grow_to": grow_to * MB}
    placing.run_here()
    expected = max(grow_to, 4) * MB  # a smaller SIZE never cuts the image
    assert info(placing.disk)["virtual-size"] == expected
    assert info(placing.disk)["format"] == image_format
    run_qemu_img(
        "compare", "-f", image_format, "-F", image_format, str(placing.image), str(placing.disk)
    )
    if sparse:
        assert allocated(placing.disk) < 4 * MB
    else:
        assert allocated(placing.disk) >= expected
    assert placing.names == COMPLETE


@pytest.mark.usefixtures("payload")
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("grow_to", [0, 10])
def test_C4_SPARSE_NO_fills_the_holes_that_a_transfer_keeps(
    placing: Placing, image_format: str, grow_to: int
) -> None:
    placing.image.unlink()
    (draw if image_format == "raw" else qcow2)(placing.image, "A0-B")
    placing.other_host = True

    def look(item: str) -> None:
        if item == "wanted":
            for name in temporaries(placing.disk.parent):
                sizes.append(allocated(placing.disk.parent / name))

    sizes: list[int] = []
    placing.then = look
    placing.options |= {"image_format": image_format, "sparse": False, "grow_to": grow_to * MB}
    placing.run_here()
    expected = max(grow_to, 4) * MB
    assert allocated(placing.disk) >= expected
    assert max(sizes) >= expected, "before the last question: what can fail has been done by then"
    assert info(placing.disk)["virtual-size"] == expected
    run_qemu_img(
        "compare", "-f", image_format, "-F", image_format, str(placing.image), str(placing.disk)
    )


@pytest.mark.usefixtures("payload")
def test_C4_a_transfer_keeps_holes(placing: Placing) -> None:
    placing.other_host = True
    placing.run_here()
    assert placing.disk.read_bytes() == placing.image.read_bytes()
    assert allocated(placing.disk) < 4 * MB


@pytest.mark.parametrize("item", ["disk", "9"])
def test_A6_what_was_written_to_again_is_no_disk(placing: Placing, item: str) -> None:
    """A receiver of an earlier try that has waited for its turn empties the temporary."""
    placing.with_snapshots()
    bring = placing._bring

    def bring_and_empty(source: Path, question: dict[str, Any]) -> dict[str, Any]:
        answer = bring(source, question)
        if question["item"] == item:
            temporary = Path(question["temporary"])
            size = temporary.stat().st_size
            os.truncate(temporary, 0)
            os.truncate(temporary, size)
        return answer

    placing._bring = bring_and_empty  # type: ignore[method-assign]
    with pytest.raises(TransferFailed, match="the file was written to again"):
        placing.run_here()
    assert not placing.disk.exists()
    assert temporaries(placing.root) == []


@pytest.mark.parametrize("item", ["disk", "9"])
def test_A6_who_comes_late_does_not_find_what_has_come(placing: Placing, item: str) -> None:
    """Its name is another one as soon as it was looked at."""
    placing.with_snapshots()
    named: dict[str, Path] = {}
    bring = placing._bring

    def note(source: Path, question: dict[str, Any]) -> dict[str, Any]:
        named[question["item"]] = Path(question["temporary"])
        return bring(source, question)

    def look(now: str) -> None:
        if now in ("10", "wanted") and item in named:
            assert not named[item].exists()
            looked.append(now)

    looked: list[str] = []
    placing._bring = note  # type: ignore[method-assign]
    placing.then = look
    placing.run_here()
    assert looked


@pytest.mark.parametrize("nice", [19])
def test_K11_work_on_the_content_gives_way(
    placing: Placing, monkeypatch: pytest.MonkeyPatch, nice: int
) -> None:
    lowered: list[dict[str, Any]] = []
    monkeypatch.setattr(priority, "lower", lambda **bulk: lowered.append(bulk))
    placing.options["bulk"] = {"nice": nice, "ionice": "idle"}
    placing.run_here()
    assert placing.options["bulk"] in lowered
    lowered.clear()
    placing.clean_directory()
    placing.options["bulk"], bulk = BULK, placing.options["bulk"]
    placing.cached(bulk=bulk).run_here()
    assert bulk in lowered, "and so does a fill"


@pytest.mark.parametrize("cluster_size", [512, 4096, 2 * MB])
def test_C5_QCOW2_OPTIONS_of_a_disk_with_SPARSE_NO(placing: Placing, cluster_size: int) -> None:
    """They take precedence over what the image has: qemu-img converts it anyway."""
    raw = placing.image.rename(placing.image.with_name("raw"))
    run_qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, placing.image)
    placing.options |= {
        "image_format": "qcow2", "sparse": False,
        "qcow2_options": [f"cluster_size={cluster_size}", "lazy_refcounts=on"],
    }  # fmt: skip
    placing.run_here()
    facts = info(placing.disk)
    assert facts["cluster-size"] == cluster_size
    assert facts["format-specific"]["data"]["lazy-refcounts"] is True
    assert allocated(placing.disk) >= 4 * MB
    run_qemu_img("compare", "-f", "qcow2", "-F", "qcow2", placing.image, placing.disk)


@pytest.mark.parametrize("cluster_size", [512, 4096, 2 * MB])
def test_C4_SPARSE_NO_keeps_the_cluster_size(placing: Placing, cluster_size: int) -> None:
    raw = placing.image.rename(placing.image.with_name("raw"))
    run_qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster_size}",
                 raw, placing.image)  # fmt: skip
    placing.options |= {"image_format": "qcow2", "sparse": False, "grow_to": 8 * MB}
    placing.run_here()
    assert info(placing.disk)["cluster-size"] == cluster_size
    assert allocated(placing.disk) >= 8 * MB


@pytest.mark.parametrize("sparse", [True, False])
def test_C4_SPARSE_NO_would_lose_internal_snapshots(placing: Placing, sparse: bool) -> None:
    placing.image.unlink()
    qcow2(placing.image, "A-")
    run_qemu_img("snapshot", "-c", "before the update", placing.image)
    placing.options |= {"image_format": "qcow2", "sparse": sparse}
    if sparse:
        placing.run_here()
        assert [each["name"] for each in info(placing.disk)["snapshots"]] == ["before the update"]
        return
    with pytest.raises(InvalidInput, match=r"^allocate disk .*SPARSE=NO, .*internal snapshots"):
        placing.run_here()
    assert placing.names == []


def test_trap35_C7_a_raw_disk_is_never_probed(placing: Placing) -> None:
    """A guest may write a qcow2 header with any backing file into its raw disk."""
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname",
                 str(placing.image), "1M")  # fmt: skip
    content = placing.image.read_bytes().ljust(MB, b"\0")
    placing.image.write_bytes(content)
    placing.options["grow_to"] = 2 * MB
    placing.run_here()
    assert placing.disk.read_bytes() == content.ljust(2 * MB, b"\0")


def test_C9_copies_share_blocks_where_the_file_system_can(xfs: Path) -> None:
    placing = Placing(xfs)
    (xfs / "datastores").mkdir()
    draw(placing.image, "A" * 64)
    free = os.statvfs(xfs).f_bavail * os.statvfs(xfs).f_frsize
    placing.run_here()
    assert placing.disk.read_bytes() == placing.image.read_bytes()
    os.sync()
    assert free - os.statvfs(xfs).f_bavail * os.statvfs(xfs).f_frsize < MB
    placing.options["sparse"] = False
    placing.options["record"]["vm"] = 7
    placing.run_here()
    assert allocated(placing.disk) >= 64 * MB


class TestLeftovers:
    def test_K18_a_retry_replaces_what_it_made_itself(self, placing: Placing) -> None:
        placing.run_here()
        draw(placing.image, "NEW")
        placing.run_here()
        assert placing.names == COMPLETE
        assert placing.disk.read_bytes() == placing.image.read_bytes()

    def test_K18_a_retry_of_ln_replaces_its_snapshots(self, placing: Placing) -> None:
        placing.with_snapshots().run_here()
        Path(f"{placing.image}.snap", "9").unlink()
        placing.options["retry"] = True
        placing.run_here()
        assert placing.names == [name for name in WITH_SNAPSHOTS if not name.endswith("/9")]

    @pytest.mark.parametrize(
        ("action", "retry", "changed"),
        [
            ("clone", True, {"image": "5"}), ("clone", True, {"vm": 8}), ("ln", False, {}),
            ("ln", True, {"sequence": "1"}), ("ln", True, {"action": "clone"}),
        ],
    )  # fmt: skip
    def test_C14_what_may_be_the_only_copy_is_set_aside(
        self, agents: Agents, placing: Placing, action: str, retry: bool, changed: dict[str, str]
    ) -> None:
        placing.options["record"]["action"] = action
        placing.run_here()
        vm_directory.write_record(placing.disk, {**placing.options["record"], **changed})
        placing.disk.write_text("what the guest wrote")
        placing.options["retry"] = retry
        with agents.start() as agent:
            placing.run(agent)
        assert placing.disk.read_bytes() == placing.image.read_bytes()
        aside, file = sorted(set(placing.names) - set(COMPLETE))
        assert file == f"{aside}/disk.0"
        assert (placing.root / "datastores" / file).read_text() == "what the guest wrote"
        assert re.search(r"WARN: test: .*/disk.0 was there before", agents.logged.getvalue())

    @pytest.mark.parametrize("record", [None, b"", b"{"])
    def test_C14_unknown_leftovers_with_snapshots(
        self, placing: Placing, record: bytes | None
    ) -> None:
        draw(placing.disk, "X")
        draw(placing.disk.with_name("disk.0.snap") / "0", "X")
        if record is not None:
            vm_directory.record_path(placing.disk).write_bytes(record)
        placing.run_here()
        (aside,) = placing.disk.parent.glob(".disk.0.*.unknown")
        assert listing(aside) == ["disk.0", "disk.0.snap", "disk.0.snap/0"]
        assert placing.disk.read_bytes() == placing.image.read_bytes()

    def test_C14_a_dangling_link_is_set_aside_not_followed(self, placing: Placing) -> None:
        placing.disk.parent.mkdir(parents=True)
        placing.disk.symlink_to(placing.root / "elsewhere")
        placing.run_here()
        assert not (placing.root / "elsewhere").exists()
        assert not placing.disk.is_symlink()
        (aside,) = placing.disk.parent.glob(".disk.0.*.unknown")
        assert (aside / "disk.0").readlink() == placing.root / "elsewhere"


class TestFailures:
    """Whatever fails, names are as before."""

    @pytest.fixture(autouse=True)
    def unchanged(self, placing: Placing) -> Iterator[None]:
        placing.with_snapshots()
        before = placing.names
        yield
        assert placing.names == before

    @pytest.mark.parametrize("item", ["disk", "9", "wanted"])
    def test_C2_the_front_end_s_part_fails(
        self, agent: AgentClient, placing: Placing, item: str
    ) -> None:
        def fail(now: str) -> None:
            if now == item:
                raise TransferFailed("send", "cable cut", host="h1")

        placing.then = fail
        with pytest.raises(TransferFailed, match="send h1: cable cut"):
            placing.run(agent)

    @pytest.mark.parametrize("item", ["disk", "10"])
    def test_C1_less_has_arrived_than_was_announced(self, placing: Placing, item: str) -> None:
        def shorten(now: str) -> None:
            if now == item:
                file = placing.image if now == "disk" else Path(f"{placing.image}.snap", now)
                os.truncate(file, 1000)

        placing.then = shorten
        with pytest.raises(TransferFailed, match=r"1000 of [0-9]+ bytes have arrived"):
            placing.run_here()

    def test_C8_no_room_is_told_before_any_transfer(self, placing: Placing) -> None:
        os.truncate(placing.image, 1 << 42)
        placing.options["sparse"] = False
        with pytest.raises(NoSpace, match=r"\d+ MB needed, \d+ MB available"):
            placing.run_here()
        assert placing.questions == []

    def test_C8_SPARSE_NO_counts_what_the_guest_will_see(self, placing: Placing) -> None:
        placing.options |= {"sparse": False, "grow_to": 1 << 42}
        with pytest.raises(NoSpace, match=r"4194\d+ MB needed"):
            placing.run_here()

    @pytest.mark.parametrize(
        ("step", "module", "name"),
        [
            ("inspect", qemu_img, "virtual_size"), ("resize", qemu_img, "grow"),
            ("mark", vm_directory, "mark"), ("record", vm_directory, "write_record"),
            ("sync", publish, "sync_file"), ("link", publish, "_link"),
        ],
    )  # fmt: skip
    def test_C2_a_step_fails(
        self, placing: Placing, monkeypatch: pytest.MonkeyPatch, step: str, module: Any, name: str
    ) -> None:
        real = getattr(module, name)

        def fail(*arguments: Any, **options: Any) -> Any:
            unfinished = publish._NAME.match(arguments[0].name)
            if module is publish and (not unfinished or unfinished["final"] != "disk.0"):
                return real(*arguments, **options)  # a snapshot, the marker, the record
            raise OSError(errno.EIO, f"{step} failed")

        monkeypatch.setattr(module, name, fail)
        placing.options["grow_to"] = 10 * MB
        with pytest.raises((OSError, OnestorError), match=f"{step} failed") as failure:
            placing.run_here()
        if module is publish:
            assert str(failure.value) == f"publish disk {placing.disk}: {step} failed", "C6"

    @pytest.mark.parametrize(
        "error",
        [FileNotFoundError(errno.ENOENT, "gone", "/x"), errors.Missing("send", "gone", path="/x")],
    )
    def test_trap8_what_is_missing_elsewhere_is_not_taken_for_a_deletion(
        self, placing: Placing, error: Exception
    ) -> None:
        """The directory is still there: the real cause has to be told."""

        def fail(now: str) -> None:
            if now == "wanted":
                raise error

        placing.then = fail
        with pytest.raises(type(error), match="gone") as failure:
            placing.run_here()
        assert failure.value is error

    def test_C6_a_failing_tool_names_its_step(
        self, placing: Placing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        placing.options["grow_to"] = MB
        arguments = placing.arguments()
        arguments["shape"]["image_format"] = "qcow2"
        arguments["source"] |= {"size": 424, "snapshots": {}}
        placing.image.write_bytes(
            b"QFI\xfb" + bytes(3) + b"\3" + bytes(12) + b"\0\0\0\x10" + bytes(400)
        )
        with pytest.raises(CommandFailed, match=r"^inspect disk .*qemu-img: "):
            operations.place(LocalCall(placing.answer), **arguments)

    def test_a_wrong_argument_is_our_own_mistake(
        self, agent: AgentClient, placing: Placing
    ) -> None:
        with pytest.raises(ProgrammerError, match=r"^disk.place .*: TypeError: "):
            agent.call("disk.place", path=str(placing.disk))

    @pytest.mark.parametrize("how", ["SIGTERM", "EOF"])
    @pytest.mark.parametrize("item", ["disk", "123", "wanted"])
    def test_K15_the_connection_ends_meanwhile(
        self, agents: Agents, placing: Placing, item: str, how: str
    ) -> None:
        with agents.start() as agent:
            pid = agent.call("program.run", argv=["sh", "-c", "echo $PPID"], timeout=5, step="x")

            def end(now: str) -> None:
                if now == item:
                    if how == "SIGTERM":
                        os.kill(int(pid["stdout"]), 15)
                    agent.close()
                    raise HostUnreachable("x", "closed")

            placing.then = end
            with pytest.raises((HostUnreachable, ValueError, OSError)):
                placing.run(agent)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), Terminated()])
def test_C3_a_late_failure_leaves_everything_together(
    placing: Placing, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The disk has its name already: its snapshots must not be missing then."""
    placing.with_snapshots()
    sync_dir = publish.sync_dir

    def fail_late(path: Path) -> None:
        sync_dir(path)
        if placing.disk.exists():
            raise error

    monkeypatch.setattr(publish, "sync_dir", fail_late)
    with pytest.raises(as_told(error)):
        placing.run_here()
    assert placing.names == WITH_SNAPSHOTS
    assert vm_directory.read_record(placing.disk) == placing.options["record"]
    monkeypatch.undo()
    placing.options["retry"] = True
    placing.run_here()
    assert placing.names == WITH_SNAPSHOTS, "the next try knows its own"


def as_told(error: BaseException) -> type[BaseException]:
    """What an error met while the disk is published is told as: with the step (C6)."""
    return OnestorError if isinstance(error, OSError) else type(error)


UNKNOWN = "what the guest wrote"


def plant_unknown(placing: Placing) -> None:
    """A disk with a snapshot nobody can account for, where the new disk shall be."""
    for path in (placing.disk, placing.disk.with_name("disk.0.snap") / "0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(UNKNOWN)


def set_aside(placing: Placing) -> list[str]:
    """The contents of what has been set aside."""
    (aside,) = placing.disk.parent.glob(".disk.0.*.unknown")
    return [(aside / name).read_text() for name in ("disk.0", "disk.0.snap/0")]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), Terminated()])
@pytest.mark.parametrize("action", ["clone", "ln"])
def test_C14_a_late_failure_does_not_bring_the_unknown_back(
    placing: Placing, monkeypatch: pytest.MonkeyPatch, action: str, error: BaseException
) -> None:
    """Its name has a new owner by then; and the next try, which replaces that, must not find it."""
    if action == "ln":
        placing.with_snapshots()
    plant_unknown(placing)
    sync_dir = publish.sync_dir

    def fail_late(path: Path) -> None:
        sync_dir(path)
        if path == placing.disk.parent and placing.disk.exists():
            assert placing.disk.read_bytes() == placing.image.read_bytes()
            raise error

    with monkeypatch.context() as patched, pytest.raises(as_told(error)):
        patched.setattr(publish, "sync_dir", fail_late)
        placing.run_here()
    expected = COMPLETE if action == "clone" else WITH_SNAPSHOTS
    for retry in (True, True, False):
        assert set_aside(placing) == [UNKNOWN, UNKNOWN]
        assert [name for name in placing.names if ".unknown" not in name] == expected
        assert placing.disk.read_bytes() == placing.image.read_bytes()
        assert vm_directory.read_record(placing.disk) == placing.options["record"]
        placing.options["retry"] = retry
        if retry or action == "clone":
            placing.run_here()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), Terminated()])
@pytest.mark.parametrize(
    ("module", "name"),
    [(vm_directory, "write_record"), (vm_directory, "mark"), (publish, "_link")],
)
def test_C14_a_failure_before_the_name_brings_the_unknown_back(
    placing: Placing, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: BaseException
) -> None:
    placing.with_snapshots()
    plant_unknown(placing)
    before = placing.names
    real = getattr(module, name)

    def fail(*arguments: Any) -> Any:
        if module is publish and arguments[1] != placing.disk:
            return real(*arguments)  # a snapshot
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(as_told(error) if module is publish else type(error)):
        placing.run_here()
    ours = ("100/.monitor", "100/7/.disk.0.lock")  # of the datastore, and of whoever comes next
    assert [each for each in placing.names if each not in ours] == before
    assert placing.disk.read_text() == UNKNOWN
    assert (placing.disk.with_name("disk.0.snap") / "0").read_text() == UNKNOWN


@pytest.mark.parametrize("item", ["disk", "9", "wanted"])
def test_trap8_deleted_while_it_is_put_in_place(
    agents: Agents, placing: Placing, item: str
) -> None:
    placing.with_snapshots()

    def delete(now: str) -> None:
        if now == item:
            with agents.start() as other:
                where = str(placing.disk.parent)
                assert other.call("directory.delete", path=where) == {"removed": True}

    placing.then = delete
    with agents.start() as agent, pytest.raises(Superseded, match="was deleted meanwhile"):
        placing.run(agent)
    assert placing.names in ([], ["100"])


def test_trap8_a_newer_clone_in_the_meantime_keeps_its_files(
    agents: Agents, placing: Placing
) -> None:
    newer = Placing(placing.root)
    newer.image = draw(placing.root / "images" / "newer", "N")

    def replace(now: str) -> None:
        if now == "disk":
            operations.delete_directory(LocalCall(placing.answer), path=str(placing.disk.parent))
            newer.run_here()

    placing.then = replace
    with agents.start() as agent, pytest.raises(OnestorError):
        placing.run(agent)
    assert placing.names == COMPLETE
    assert newer.disk.read_bytes() == newer.image.read_bytes()


def test_B11_who_gives_up_waiting_leaves_the_holder_s_lock(
    agent: AgentClient, placing: Placing
) -> None:
    placing.disk.parent.mkdir(parents=True)
    placing.options["lock_timeout"] = 0.3
    with locks.exclusive(vm_directory.lock_path(placing.disk), purpose="clone", timeout=1):
        with pytest.raises(LockTimeout, match=r"still held by .*, clone for"):
            placing.run(agent)
        assert listing(placing.disk.parent) == [".disk.0.lock"], "a lock that is held stays"


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("point", points("tm.ln", "place", "publish"))
def test_A6_K18_placing_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], placing: Placing, point: str, retry: bool
) -> None:
    placing.with_snapshots()
    record = placing.options["record"]
    if point == "publish.renamed":
        placing.run_here()  # only a replaced disk is renamed
        placing.options["retry"] = True
    run_and_die(agents, point, placing.run)
    assert crashed() == [point]
    if placing.disk.exists():
        assert placing.disk.read_bytes() == placing.image.read_bytes()
    placing.options["retry"] = retry
    placing.run_here()
    assert temporaries(placing.root) == []
    assert placing.disk.read_bytes() == placing.image.read_bytes()
    assert vm_directory.read_record(placing.disk) == record
    kept = [name for name in placing.names if ".unknown" not in name]
    assert kept == WITH_SNAPSHOTS
    if retry:
        assert kept == placing.names, "our own leftovers are replaced, not set aside"


@pytest.mark.parametrize(
    ("operation", "point"),
    [
        ("disk.delete" if point == "delete.disk" else "directory.delete", point)
        for point in points("tm.delete", "delete")
    ],
)
def test_K18_deleting_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], placing: Placing, point: str, operation: str
) -> None:
    placing.with_snapshots().run_here()
    path = placing.disk if operation == "disk.delete" else placing.disk.parent
    run_and_die(agents, point, lambda agent: agent.call(operation, path=str(path)))
    assert crashed() == [point]
    with agents.start() as agent:
        agent.call(operation, path=str(path))
        assert agent.call(operation, path=str(path)) == {"removed": False}, "and once more"
    expected = ["100", "100/.monitor"]
    if operation == "disk.delete":
        expected += ["100/7", "100/7/.disk.0.lock"]
    assert placing.names == expected


def test_delete_takes_a_link_and_not_what_it_leads_to(agent: AgentClient, placing: Placing) -> None:
    """The recovery layout of the ssh driver, and a link somebody made to another place (L11)."""
    outside = draw(placing.root / "outside" / "file", "X").parent
    snapshots = placing.disk.with_name("disk.0.snap")
    snapshots.mkdir(parents=True)
    (snapshots / "disk.0.snap").symlink_to(".")
    (snapshots / "outside").symlink_to(outside)
    (snapshots / "base.1").write_text("")
    placing.disk.symlink_to("disk.0.snap/base.1")
    (placing.datastore / "8").symlink_to(outside)
    assert agent.call("disk.delete", path=str(placing.disk)) == {"removed": True}
    assert listing(placing.disk.parent) == []
    assert agent.call("directory.delete", path=str(placing.datastore / "8")) == {"removed": True}
    assert listing(outside) == ["file"]


def test_the_record_is_readable_json(placing: Placing) -> None:
    placing.run_here()
    text = vm_directory.record_path(placing.disk).read_text()
    assert json.loads(text) == placing.options["record"]
    assert errors.one_line(text) == text.strip()
