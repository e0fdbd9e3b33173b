"""Snapshots of disks by the agent's operations, with real qemu-img and disks of every layout."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import disk_files, errors, extents, publish, qemu_img
from onestor_lib.agent.errors import CommandFailed, Missing, NotAllowed, OnestorError
from onestor_lib.agent.operations import disk_snapshots, resizing
from tests.sampling import one_of
from tests.tool.placing import BULK, LocalCall

SIZE = 4 << 20
BLOCK = 64 << 10
IDS = (0, 9, 10, 123)
LAYOUTS = ("thin", "standalone", "raw")


def run(*argv: str | Path) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def no_question(question: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError(f"nobody answers {question}")


class Disk:
    """A disk as it lies on a host, below datastores of its own."""

    def __init__(self, root: Path, layout: str, size: int = SIZE) -> None:
        self.layout, self.size = layout, size
        self.format = "raw" if layout == "raw" else "qcow2"
        self.directory = root / "datastores/102/7"
        self.directory.mkdir(parents=True)
        self.path = self.directory / "disk.0"
        self.base = self.directory / "disk.0.base"
        self.snap = self.directory / "disk.0.snap"
        self.call = LocalCall(no_question)
        if layout == "raw":
            self.path.touch()
            os.truncate(self.path, size)
        elif layout == "standalone":
            run("qemu-img", "create", "-q", "-f", "qcow2", self.path, str(size))
        else:
            run("qemu-img", "create", "-q", "-f", "qcow2", self.base, str(size))
            self.write(1, 0, self.base)
            self.base.chmod(0o444)
            back = ["-b", "disk.0.base", "-F", "qcow2"]
            run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *back, self.path, str(size))
        self.write(2, 1)

    def write(self, pattern: int, block: int, file: Path | None = None) -> None:
        command = f"write -P {pattern} {block * BLOCK} {BLOCK}"
        run("qemu-io", "-f", self.format, "-c", command, file or self.path)

    def content(self, file: Path | None = None) -> bytes:
        """What a guest sees, read by qemu-img through whatever lies below."""
        if self.format == "raw":
            return (file or self.path).read_bytes()
        copy = self.directory.parents[2] / "content"
        run("qemu-img", "convert", "-f", self.format, "-O", "raw", file or self.path, copy)
        return copy.read_bytes()

    def create(self, snapshot: int, **options: Any) -> None:
        facts = {"check_space": True, "timeout": 60, "lock_timeout": 10, "bulk": BULK, **options}
        disk_snapshots.create(
            self.call, path=str(self.path), image_format=self.format, snapshot=snapshot, **facts
        )

    def revert(self, snapshot: int, **options: Any) -> None:
        facts: dict[str, Any] = {
            "check_space": True,
            "timeout": 60,
            "lock_timeout": 10,
            "bulk": BULK,
        }
        facts = {**facts, "bulk": BULK, "grow_to": 0, "sparse": True, **options}
        disk_snapshots.revert(
            self.call, path=str(self.path), image_format=self.format, snapshot=snapshot, **facts
        )

    def delete(self, snapshot: int) -> None:
        disk_snapshots.delete(
            self.call, path=str(self.path), image_format=self.format, snapshot=snapshot,
            lock_timeout=10,
        )  # fmt: skip

    def resize(self, size: int) -> None:
        resizing.resize(
            self.call, path=str(self.path), image_format=self.format, size=size, sparse=True,
            check_space=True, lock_timeout=10,
        )  # fmt: skip

    def snapshot(self, number: int) -> Path:
        return self.snap / str(number)

    def names(self) -> set[str]:
        found = {path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*")}
        return found - {".disk.0.lock"}

    def warnings(self) -> list[str]:
        return [text for severity, text in self.call.logged if severity == "WARN"]

    def has_backing(self, file: Path) -> str:
        facts = json.loads(run("qemu-img", "info", "-U", "--output=json", file))
        return str(facts.get("backing-filename", ""))


@pytest.fixture(params=LAYOUTS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(tmp_path, request.param)


@pytest.fixture
def thin(tmp_path: Path) -> Disk:
    return Disk(tmp_path, "thin")


def test_F13_each_snapshot_stands_for_itself(disk: Disk) -> None:
    wanted = {}
    for number in IDS:
        disk.write(number + 3, 2)
        disk.create(number)
        wanted[number] = disk.content()
    disk.write(200, 3)
    now = disk.content()
    assert {number: disk.content(disk.snapshot(number)) for number in IDS} == wanted
    for gone in (9, 10):
        disk.delete(gone)
        assert disk.content() == now
        for number in set(IDS) - {9, 10, gone}:
            assert disk.content(disk.snapshot(number)) == wanted[number]
    disk.revert(0)
    assert disk.content() == wanted[0] and disk.content(disk.snapshot(123)) == wanted[123]
    assert disk.path.stat().st_mode & 0o777 == 0o660
    disk.delete(0)
    disk.delete(123)
    assert disk.names() == {"disk.0"} | ({"disk.0.base"} if disk.layout == "thin" else set())


@pytest.mark.fault
@pytest.mark.parametrize("seed", one_of(3, range(3)))
def test_F6_F12_any_order_of_everything(disk: Disk, seed: int) -> None:
    """Against a model: what each snapshot and the disk must show after every step."""
    choose = random.Random(f"{disk.layout} {seed}")
    now, kept, next_id, size = disk.content(), dict[int, bytes](), 0, disk.size

    def write() -> None:
        nonlocal now
        disk.write(choose.randrange(1, 255), choose.randrange(size // BLOCK))
        now = disk.content()

    def create() -> None:
        nonlocal next_id
        disk.create(next_id)
        kept[next_id] = now
        next_id += choose.choice((1, 1, 7, 90))

    def revert() -> None:
        nonlocal now
        if kept:
            number = choose.choice(sorted(kept))
            disk.revert(number, grow_to=size)
            now = kept[number].ljust(size, b"\0")

    def delete() -> None:
        if kept:
            number = choose.choice(sorted(kept))
            del kept[number]
            disk.delete(number)

    def resize() -> None:
        nonlocal size, now
        if size < disk.size + (4 << 20):
            size += 1 << 20
            disk.resize(size)
            now = now.ljust(size, b"\0")

    steps = (write, write, create, create, revert, delete, resize)
    for _ in range(16):
        choose.choice(steps)()
        assert disk.content() == now
        for number, expected in kept.items():
            assert disk.content(disk.snapshot(number)) == expected
        if disk.format == "qcow2":
            run("qemu-img", "info", "--backing-chain", "-f", "qcow2", disk.path)
    assert {path.name for path in disk.snap.glob("[0-9]*")} == set(map(str, kept))


def test_F4_a_snapshot_costs_what_the_guest_has_written(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "thin", size=100 << 30)
    disk.create(0)
    disk.write(9, 5)
    disk.revert(0)
    for file in (disk.path, disk.snapshot(0)):
        assert file.stat().st_blocks * 512 < 1 << 20
        assert disk.has_backing(file) == "disk.0.base"
    assert os.readlink(disk.snap / "disk.0.base") == "../disk.0.base"


def test_F2_what_oned_does_not_know_is_moved_aside(disk: Disk) -> None:
    disk.snap.mkdir()
    disk.snapshot(5).write_text("the only copy of something")
    disk.create(5)
    assert disk.content(disk.snapshot(5)) == disk.content()
    (aside,) = disk.snap.glob(".5.*.unknown")
    assert aside.read_text() == "the only copy of something"
    (warning,) = disk.warnings()
    assert str(disk.snapshot(5)) in warning and aside.name in warning
    disk.revert(5)
    disk.delete(5)
    assert aside.exists()


@pytest.mark.parametrize("work", ["create", "revert"])
def test_F2_F3_F7_a_failure_leaves_all_as_it_was(
    disk: Disk, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if work == "revert":
        disk.create(1)
        disk.write(7, 7)
    before, content, inode = disk.names(), disk.content(), disk.path.stat().st_ino

    def broken(*words: Any, **named: Any) -> int:
        Path(words[1]).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extents, "copy_path", broken)
    with pytest.raises(errors.NoSpace, match="No space left"):
        getattr(disk, work)(1 if work == "revert" else 0)
    assert disk.names() == before
    assert disk.content() == content and disk.path.stat().st_ino == inode


def test_F2_a_snapshot_that_was_not_flushed_is_none(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disk.names()
    flush = publish.sync_dir

    def broken(path: Path) -> None:
        if path == disk.snap:
            raise OSError(5, "Input/output error")
        flush(path)

    monkeypatch.setattr(publish, "sync_dir", broken)
    with pytest.raises(OnestorError, match="Input/output error"):
        disk.create(0)
    assert disk.names() == before


def test_no_room_is_told_before_anything_is_done(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disk.names()
    monkeypatch.setattr(extents, "can_share", lambda directory: False)

    class Full:
        f_bavail, f_frsize = 0, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    with pytest.raises(errors.NoSpace, match="MB needed"):
        disk.create(0)
    assert disk.names() == before
    disk.create(0, check_space=False)
    with pytest.raises(errors.NoSpace, match="MB needed"):
        disk.revert(0)


def test_C4_a_disk_that_is_not_sparse_stays_so(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "raw")
    disk.create(0)
    disk.revert(0, sparse=False, grow_to=SIZE + (1 << 20))
    assert disk.path.stat().st_size == SIZE + (1 << 20)
    assert disk.path.stat().st_blocks * 512 >= SIZE + (1 << 20)
    assert disk.snapshot(0).stat().st_blocks * 512 < SIZE


def test_a_disk_that_has_grown_since_stays_as_large_as_oned_counts_it(disk: Disk) -> None:
    disk.create(0)
    then = disk.content()
    disk.resize(2 * SIZE)
    disk.write(8, 2 * SIZE // BLOCK - 1)
    disk.create(1)
    disk.revert(0, grow_to=2 * SIZE)
    assert disk.content() == then + bytes(SIZE)
    assert disk.content(disk.snapshot(0)) == then
    disk.revert(1, grow_to=2 * SIZE)
    assert disk.content()[-1] == 8


@contextlib.contextmanager
def in_use(disk: Disk) -> Iterator[None]:
    """A program with qemu's locks on the disk, as a VM that runs has."""
    argv = ["qemu-io", "-f", disk.format, str(disk.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin and program.stdout
        program.stdin.write(b"read 0 512\n")
        program.stdin.flush()
        program.stdout.readline()
        yield
        program.stdin.close()


def test_the_disk_of_a_vm_that_runs_in_spite_of_all_is_left_alone(disk: Disk) -> None:
    disk.create(0)
    before, inode = disk.names(), disk.path.stat().st_ino
    with in_use(disk):
        for work in (disk.create, disk.revert):
            with pytest.raises(qemu_img.InUse, match=f"{disk.path}: a running VM uses it"):
                work(0)
        assert disk.names() == before and disk.path.stat().st_ino == inode
        disk.delete(0)  # that may be
    disk.create(0)


def test_bitmaps_are_not_taken_for_those_of_the_next_backups(thin: Disk) -> None:
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", thin.path, "one-7-0")
    thin.create(0)
    (kept,) = qemu_img.bitmaps(thin.path, step="look")
    assert kept == "one-7-0"  # a snapshot changes nothing in the disk
    assert qemu_img.bitmaps(thin.snapshot(0), step="look") == []
    run(
        "qemu-img", "bitmap", "--add", "-f", "qcow2", "--", thin.snapshot(0), "-odd"
    )  # by other drivers
    thin.revert(0)
    assert qemu_img.bitmaps(thin.path, step="look") == []
    assert "has to be a full one" in thin.warnings()[0]


@pytest.mark.parametrize("number", [2, 7])
def test_bitmaps_of_a_disk_that_is_a_chain_go_with_its_file(tmp_path: Path, number: int) -> None:
    """A flat copy has none. The next id of that driver is the disk's own file."""
    disk = Disk(tmp_path, "standalone")
    chain_layout(disk, 2)
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", disk.snapshot(2), "one-7-0")
    disk.create(number)
    assert qemu_img.bitmaps(disk.snapshot(number), step="look") == []
    assert bool(disk.warnings()) == (number == 2)


def test_a_snapshot_that_the_disk_is_made_of_stays_when_it_is_reverted_to(tmp_path: Path) -> None:
    """A live snapshot was refused, and declared a success."""
    disk = Disk(tmp_path, "standalone")
    chain_layout(disk, 2)
    now = disk.content()
    for _ in range(2):
        disk.revert(2)
        assert disk.content() == disk.content(disk.snapshot(2)) == now
    assert not disk.path.is_symlink()


def test_a_replaced_file_of_a_chain_never_counts_as_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two: the next action does the rest."""
    disk = Disk(tmp_path, "standalone")
    chain_layout(disk, 2)
    with monkeypatch.context() as patch:
        patch.setattr(disk_files.DiskFiles, "forget_former", lambda self, layers: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            disk.revert(0)
    assert disk.snapshot(2).exists() and not disk.path.is_symlink()
    disk.delete(7)
    assert not disk.snapshot(2).exists()
    assert disk.names() == {"disk.0", "disk.0.snap", "disk.0.snap/disk.0.snap"} | {
        f"disk.0.snap/{each}" for each in (0, 1)
    }


def test_the_base_of_a_disk_that_cannot_be_read_stays(thin: Disk) -> None:
    thin.path.write_bytes(b"damaged")
    thin.delete(3)
    assert thin.base.exists() and "is kept" in thin.warnings()[1]
    thin.path.unlink()
    thin.path.symlink_to("gone")
    thin.delete(3)
    assert thin.base.exists()


def test_a_damaged_disk_can_be_reverted(thin: Disk) -> None:
    thin.create(0)
    then = thin.content()
    thin.path.write_bytes(b"no image any more")
    thin.revert(0)
    assert thin.content() == then
    assert "could not be read before" in thin.warnings()[0]
    thin.path.unlink()
    thin.revert(0)
    assert thin.content() == then


def test_F6_without_its_base_nothing_is_reverted(thin: Disk) -> None:
    thin.create(0)
    thin.base.unlink()
    before = thin.path.read_bytes()
    with pytest.raises(Missing, match=r"disk\.0\.base"):
        thin.revert(0)
    assert thin.path.read_bytes() == before


def test_what_is_not_there(disk: Disk) -> None:
    with pytest.raises(Missing, match=r"disk\.0\.snap/4"):
        disk.revert(4)
    disk.delete(4)
    assert disk.warnings() == [f"snapshot 4 of {disk.path} was not there"]
    disk.path.unlink()
    with pytest.raises(Missing):
        disk.create(0)
    assert not disk.snap.exists()
    disk.directory = disk.directory / "gone"
    disk.path = disk.directory / "disk.0"
    with pytest.raises(Missing, match="no such directory"):
        disk.create(0)


def test_after_a_live_migration_the_base_stays_as_long_as_a_snapshot_needs_it(thin: Disk) -> None:
    """The disk arrives flattened on the other host, its snapshots as they were."""
    for number in (0, 1):
        thin.create(number)
    then = thin.content()
    flat = thin.directory / "flat"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", thin.path, flat)
    flat.rename(thin.path)
    thin.create(2)
    assert thin.has_backing(thin.snapshot(2)) == ""
    thin.delete(0)
    assert thin.base.exists() and thin.content(thin.snapshot(1)) == then
    thin.revert(1)
    assert thin.has_backing(thin.path) == "disk.0.base" and thin.content() == then
    thin.revert(2)
    thin.delete(1)
    assert not thin.base.exists()
    assert thin.content() == thin.content(thin.snapshot(2)) == then


def recovery_layout(disk: Disk) -> None:
    """What the ssh driver leaves with recovery snapshots (contract section 6.1)."""
    disk.snap.mkdir()
    (disk.snap / "disk.0.snap").symlink_to(".")
    disk.path.rename(disk.snap / "base")
    back = ["-b", "disk.0.snap/base", "-F", "qcow2"]
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *back, disk.snap / "base.1", str(SIZE))
    disk.path.symlink_to("disk.0.snap/base.1")


def test_L11_snapshots_of_a_disk_with_the_old_recovery_layout(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "standalone")
    recovery_layout(disk)
    disk.write(5, 5)
    disk.create(0)
    assert disk.has_backing(disk.snapshot(0)) == ""
    then = disk.content()
    disk.write(6, 6)
    disk.revert(0)
    assert disk.content() == then and not disk.path.is_symlink()
    assert not (disk.snap / "base").exists() and not (disk.snap / "base.1").exists()
    disk.delete(0)
    assert disk.names() == {"disk.0"}


def chain_layout(disk: Disk, number: int) -> None:
    """What OpenNebula's local driver leaves: the disk is a link to the newest of a chain."""
    disk.snap.mkdir()
    (disk.snap / "disk.0.snap").symlink_to(".")
    disk.path.rename(disk.snap / "0")
    for each in range(1, number + 1):
        back = ["-b", f"disk.0.snap/{each - 1}", "-F", "qcow2"]
        file = disk.snap / str(each)
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *back, file, str(SIZE))
        disk.path.unlink(missing_ok=True)
        disk.path.symlink_to(f"disk.0.snap/{each}")
        disk.write(each + 40, each)


def test_L11_snapshots_of_a_disk_that_is_a_chain(tmp_path: Path) -> None:
    """The next id is that of the file the guest has written to."""
    disk = Disk(tmp_path, "standalone")
    chain_layout(disk, 2)
    older = {number: disk.content(disk.snapshot(number)) for number in (0, 1)}
    now = disk.content()
    for needed in (0, 1, 2):
        with pytest.raises(NotAllowed):
            disk.delete(needed)
    disk.create(2)
    assert not disk.path.is_symlink()
    assert disk.content() == disk.content(disk.snapshot(2)) == now
    assert {number: disk.content(disk.snapshot(number)) for number in (0, 1)} == older
    with pytest.raises(NotAllowed, match=r"disk\.0\.snap/1 cannot be read without it"):
        disk.delete(0)
    disk.write(9, 9)
    disk.revert(1)
    assert disk.content() == older[1] and disk.has_backing(disk.path) == ""
    for number in (1, 0, 2):
        disk.delete(number)
    assert disk.names() == {"disk.0"}


def test_L11_reverting_a_chain_drops_the_file_nobody_needs(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "standalone")
    chain_layout(disk, 2)
    older = {number: disk.content(disk.snapshot(number)) for number in (0, 1)}
    disk.revert(0)
    assert disk.content() == older[0]
    assert not disk.snapshot(2).exists() and disk.content(disk.snapshot(1)) == older[1]


def test_J6_a_snapshot_that_names_other_files_is_refused(thin: Disk) -> None:
    thin.create(0)
    secret = thin.directory.parents[2] / "secret"
    secret.write_bytes(bytes(SIZE))
    back = ["-b", str(secret), "-F", "raw"]
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *back, thin.snapshot(1), str(SIZE))
    with pytest.raises(NotAllowed, match="outside of"):
        thin.revert(1)
    thin.snapshot(2).symlink_to(secret)
    with pytest.raises(NotAllowed, match="outside of"):
        thin.revert(2)


def test_a_linked_directory_of_snapshots_is_refused(disk: Disk) -> None:
    disk.snap.symlink_to("/var")
    with pytest.raises(NotAllowed, match="symbolic link"):
        disk.create(0)


def test_programs_that_fail_say_so(thin: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = thin.names()
    monkeypatch.setattr(qemu_img, "QEMU_IMG", "false")
    with pytest.raises(CommandFailed, match=r"create snapshot .*false: exit status 1"):
        thin.create(0)
    assert thin.names() == before
