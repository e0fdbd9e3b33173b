"""Disks made by way of the host's cache: copies, overlays, and what happens when it fails."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import locks, publish, qemu_img, space, vm_directory
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import CommandFailed, HostUnreachable, NoSpace, Superseded
from onestor_lib.agent.operations import disk as operations
from tests.tool.conftest import MB, Agents, allocated, draw, info, qcow2, temporaries
from tests.tool.conftest import qemu_img as run_qemu_img
from tests.tool.placing import LocalCall, Placing, limits, place_image, points, run_and_die
from tests.unit.caching import fill

VM = ["100", "100/.monitor", "100/7", "100/7/.disk.0.lock", "100/7/.disk.0.record",
      "100/7/disk.0"]  # fmt: skip
BASED = [*VM, "100/7/disk.0.base"]
CACHE = [".onestor-cache.lock", "1", "1/.0a1b.lock", "1/.0a1b.sidecar", "1/0a1b"]


@pytest.fixture
def raw(tmp_path: Path) -> Placing:
    """A raw image: its disks are copies."""
    return place_image(tmp_path).cached()


@pytest.fixture
def thin(tmp_path: Path) -> Placing:
    """A qcow2 image: its disks are overlays."""
    return place_image(tmp_path).thin()


def trim(agent: AgentClient, placing: Placing, bounds: dict[str, Any]) -> int:
    """Evict until the limits are kept; the bytes that stay."""
    root = str(placing.root / "datastores")
    found = agent.call("cache.trim", root=root, limits=bounds, lock_timeout=5.0)
    return int(found["bytes"])


def assert_same(image: Path, disk: Path, *, image_format: str = "qcow2") -> None:
    """The guest sees what is in the image."""
    run_qemu_img("compare", "-f", image_format, "-F", image_format, str(image), str(disk))


class TestCopies:
    def test_A17_a_second_clone_moves_nothing(self, raw: Placing) -> None:
        assert raw.run_here() == {"cache": "miss"}
        assert raw.questions == ["image", "wanted"]
        assert raw.names == sorted(CACHE + VM)
        raw.clean_directory()
        raw.questions.clear()
        assert raw.run_here() == {"cache": "hit"}
        assert raw.questions == ["wanted"]
        assert raw.disk.read_bytes() == raw.image.read_bytes()
        assert raw.disk.stat().st_ino != raw.entry.stat().st_ino, "a disk of its own"
        assert raw.disk.stat().st_mode & 0o777 == 0o660
        assert allocated(raw.disk) < 4 * MB, "holes are kept (C4)"
        assert raw.warnings == []

    def test_A2_the_entry_has_no_name_while_it_comes(self, raw: Placing) -> None:
        def look(item: str) -> None:
            if item == "image":
                assert not raw.entry.exists() and not raw.disk.exists()

        raw.then = look
        raw.run_here()
        assert raw.entry.read_bytes() == raw.image.read_bytes()

    def test_A10_a_new_version_is_delivered(self, raw: Placing) -> None:
        raw.run_here()
        size = raw.image.stat().st_size
        draw(raw.image, "NEW!", b"tail")
        assert raw.image.stat().st_size == size, "of the same size"
        raw.clean_directory()
        assert raw.run_here() == {"cache": "miss"}
        assert raw.disk.read_bytes() == raw.image.read_bytes()
        assert raw.names == sorted(CACHE + VM)

    def test_A7_a_missing_or_short_entry_is_fetched_again(self, raw: Placing) -> None:
        for damage in (Path.unlink, lambda path: os.truncate(path, 1000)):
            raw.run_here()
            damage(raw.entry)
            raw.clean_directory()
            assert raw.run_here() == {"cache": "miss"}
            assert raw.disk.read_bytes() == raw.image.read_bytes()
            raw.clean_directory()

    def test_C3_a_cached_disk_grows(self, raw: Placing) -> None:
        raw.options["grow_to"] = 10 * MB
        raw.run_here()
        assert raw.disk.read_bytes() == raw.image.read_bytes().ljust(10 * MB, b"\0")
        assert raw.entry.read_bytes() == raw.image.read_bytes()

    def test_C4_SPARSE_NO_by_way_of_the_cache(self, raw: Placing) -> None:
        raw.options["sparse"] = False
        raw.run_here()
        assert allocated(raw.disk) >= 4 * MB
        assert allocated(raw.entry) < 4 * MB

    def test_A20_the_entry_takes_no_more_than_the_image(self, raw: Placing) -> None:
        with raw.image.open("r+b") as file:
            file.truncate(64 * MB)
            for megabyte in range(0, 64, 4):  # a page here and there
                os.pwrite(file.fileno(), b"x", megabyte * MB + 5)
            os.fsync(file.fileno())
        raw.run_here()
        assert allocated(raw.entry) <= allocated(raw.image) * 1.05
        assert raw.disk.read_bytes() == raw.image.read_bytes()

    def test_C9_copies_share_blocks_where_the_file_system_can(self, xfs: Path) -> None:
        root = xfs / "cached"
        root.mkdir()
        raw = place_image(root).cached()
        draw(raw.image, "A" * 32)
        raw.run_here()
        raw.clean_directory()
        os.sync()
        free = os.statvfs(xfs).f_bfree
        raw.run_here()
        os.sync()
        assert (free - os.statvfs(xfs).f_bfree) * os.statvfs(xfs).f_frsize < MB


def test_A1_A4_B11_many_cold_clones_make_one_transfer(agents: Agents, tmp_path: Path) -> None:
    """Each with an agent of its own, as on a host where many VMs start at once."""
    clones = 6
    place_image(tmp_path)
    ready = threading.Barrier(clones)

    def clone(number: int) -> tuple[Placing, dict[str, str]]:
        placing = Placing(tmp_path).cached()
        placing.disk = placing.datastore / str(number) / "disk.0"
        with agents.hosts.local_agent() as agent:
            ready.wait()
            found: dict[str, str] = placing.run(agent)
        return placing, found

    with ThreadPoolExecutor(clones) as pool:
        done = list(pool.map(clone, range(clones)))
    assert sorted(found["cache"] for _, found in done) == ["hit"] * (clones - 1) + ["miss"]
    assert sum(placing.questions.count("image") for placing, _ in done) == 1
    for placing, _ in done:
        assert placing.disk.read_bytes() == placing.image.read_bytes()
        assert placing.questions.count("disk") == 0


def test_B10_two_fills_at_once_keep_the_limit(agents: Agents, tmp_path: Path) -> None:
    """6 MB each and 10 MB in all: the second one comes while the first is under way."""
    bounds = limits(max_bytes=10 * MB)
    first, second = (Placing(tmp_path).cached(limits=bounds) for _ in range(2))
    (tmp_path / "datastores").mkdir()
    for number, placing in enumerate((first, second)):
        placing.image = draw(tmp_path / "images" / f"0{number}", "ABCDEF")
        placing.disk = placing.datastore / str(number) / "disk.0"

    def meanwhile(item: str) -> None:
        if item == "image":
            with agents.start() as other:
                assert second.run(other) == {"cache": "none"}

    first.then = meanwhile
    with agents.start() as agent:
        assert first.run(agent) == {"cache": "miss"}
        assert trim(agent, first, bounds) <= 10 * MB
    assert re.search("WARN: .* past the cache .*there can be", agents.logged.getvalue())
    for placing in (first, second):
        assert placing.disk.read_bytes() == placing.image.read_bytes()
    assert first.entry.exists() and not second.entry.exists()


def test_B4_what_a_slow_clone_reads_is_not_evicted(agents: Agents, raw: Placing) -> None:
    raw.run_here()
    raw.clean_directory()

    def evict(item: str) -> None:
        with agents.start() as other:
            trim(other, raw, limits(max_bytes=1))
        assert raw.entry.exists()

    raw.then = evict
    assert raw.run_here() == {"cache": "hit"}
    assert raw.disk.read_bytes() == raw.image.read_bytes()
    with agents.start() as other:
        assert trim(other, raw, limits(max_bytes=1)) == 0


def test_B15_entries_of_images_that_are_no_more(raw: Placing) -> None:
    """Asked of the origin after a fill, for those that were not used for long."""
    gone, kept = fill(raw.entry.with_name("gone"), idle=100), fill(raw.entry.with_name("kept"))
    draw(raw.image.with_name("kept"), "K")
    os.utime(kept.sidecar, (1, 1))
    young = fill(raw.entry.with_name("young"))
    raw.cached(limits=limits(orphan_age=50.0)).run_here()
    assert raw.questions == ["image", "gone", "wanted"]
    assert not gone.image.exists() and not gone.sidecar.exists()
    assert kept.image.exists() and young.image.exists()
    assert ("INFO", f"{gone.image} left the cache: the image is no more") in raw.call.logged


def test_A15_A24_a_front_end_that_is_a_host_keeps_its_origin(tmp_path: Path) -> None:
    """The entry would have the origin's own name: it gets a hidden one."""
    placing = place_image(tmp_path).cached()
    placing.image = draw(placing.entry, "AB-C")
    before = placing.image.stat()
    assert placing.run_here() == {"cache": "miss"}
    placing.clean_directory()
    assert placing.run_here() == {"cache": "hit"}
    after = placing.image.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (
        before.st_ino, before.st_mtime_ns, before.st_mode
    )  # fmt: skip
    assert placing.disk.read_bytes() == placing.image.read_bytes()
    marker = placing.entry.parent / ".monitor"
    assert not marker.exists(), "an image datastore is no replica's cache"


class TestOverlays:
    def test_C10_the_disk_is_an_overlay_on_a_link_to_the_entry(self, thin: Placing) -> None:
        assert thin.run_here() == {"cache": "miss"}
        assert thin.names == sorted(CACHE + BASED)
        facts = info(thin.disk)
        assert (facts["format"], facts["virtual-size"]) == ("qcow2", 4 * MB)
        assert facts["backing-filename"] == "disk.0.base", "the directory can be moved"
        assert facts["backing-filename-format"] == "qcow2", "C7"
        base = vm_directory.base_path(thin.disk)
        assert base.samefile(thin.entry)
        assert base.stat().st_mode & 0o777 == 0o444
        assert thin.disk.stat().st_mode & 0o777 == 0o660
        assert not thin.disk.is_symlink()
        assert allocated(thin.disk) < MB
        assert_same(thin.image, thin.disk)

    def test_C10_a_hit_costs_the_same_whatever_the_image_s_size(self, thin: Placing) -> None:
        thin.run_here()
        thin.clean_directory()
        thin.questions.clear()
        assert thin.run_here() == {"cache": "hit"}
        assert thin.questions == ["wanted"]
        assert_same(thin.image, thin.disk)

    def test_C5_QCOW2_OPTIONS_of_the_overlay(self, thin: Placing) -> None:
        thin.options["qcow2_options"] = ["cluster_size=2M", "lazy_refcounts=on"]
        thin.run_here()
        assert info(thin.disk)["cluster-size"] == 2 * MB
        assert info(thin.disk)["format-specific"]["data"]["lazy-refcounts"] is True
        assert_same(thin.image, thin.disk)

    def test_C5_a_bad_value_fails_cleanly(self, thin: Placing) -> None:
        thin.options["qcow2_options"] = ["cluster_size=3"]
        with pytest.raises(CommandFailed, match=r"^create overlay .*[Cc]luster size"):
            thin.run_here()
        assert thin.names == CACHE

    @pytest.mark.parametrize(("grow_to", "expected"), [(0, 4), (2, 4), (10, 10)])
    def test_C3_the_guest_sees_the_size_asked_for(
        self, thin: Placing, grow_to: int, expected: int
    ) -> None:
        thin.options["grow_to"] = grow_to * MB
        thin.run_here()
        assert info(thin.disk)["virtual-size"] == expected * MB
        assert_same(thin.image, thin.disk)

    def test_B5_a_base_outlives_its_entry(self, agent: AgentClient, thin: Placing) -> None:
        thin.run_here()
        trim(agent, thin, limits(max_bytes=1))
        assert thin.entry.exists(), "it would free nothing"
        Entry(thin.entry).drop()
        assert_same(thin.image, thin.disk)
        thin.clean_directory()
        thin.run_here()
        thin.clean_directory()
        assert trim(agent, thin, limits(max_bytes=1)) == 0, "but after the last disk it goes"
        assert not thin.entry.exists()

    def test_B5_two_vms_share_one_base(self, thin: Placing) -> None:
        thin.run_here()
        thin.disk = thin.datastore / "8" / "disk.0"
        thin.options["record"] = {**thin.options["record"], "vm": 8}
        thin.run_here()
        first = thin.datastore / "7" / "disk.0"
        draw(thin.root / "other", "ZZZZ")
        run_qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", thin.root / "other", thin.disk)
        assert_same(thin.image, first)
        operations.delete(LocalCall(thin.answer), path=str(thin.disk))
        assert_same(thin.image, first)

    def test_without_hard_links_the_base_is_a_copy(
        self, thin: Placing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = os.link

        def fail(source: Any, target: Any, **options: Any) -> None:
            if Path(source) == thin.entry:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            link(source, target, **options)

        monkeypatch.setattr(os, "link", fail)
        thin.run_here()
        base = vm_directory.base_path(thin.disk)
        assert not base.samefile(thin.entry)
        assert base.read_bytes() == thin.entry.read_bytes()
        assert base.stat().st_mode & 0o777 == 0o444
        assert thin.names == sorted(CACHE + BASED)
        assert_same(thin.image, thin.disk)

    def test_C8_a_base_that_is_a_copy_needs_room(
        self, thin: Placing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish.Temporary, "become_link", lambda self, other: False)
        asked: list[int] = []

        def refuse(directory: Path, needed: int) -> None:
            asked.append(needed)
            if needed:
                raise NoSpace("check free space", "full")

        monkeypatch.setattr(space, "require", refuse)
        with pytest.raises(NoSpace):
            thin.run_here()
        assert asked[-1] == allocated(thin.entry) > 0
        assert thin.names == CACHE

    def test_J12_a_link_in_the_place_of_the_entry_is_not_linked(self, thin: Placing) -> None:
        thin.entry.parent.mkdir()
        victim = draw(thin.root / "victim", "V")
        thin.entry.symlink_to(victim)
        thin.run_here()
        assert victim.read_bytes() == b"V" * MB
        assert_same(thin.image, thin.disk)


class TestRetries:
    def test_K18_the_same_base_again(self, thin: Placing) -> None:
        thin.run_here()
        run_qemu_img("resize", "-q", "-f", "qcow2", thin.disk, "64M")
        thin.run_here()
        assert thin.names == sorted(CACHE + BASED)
        assert info(thin.disk)["virtual-size"] == 4 * MB, "the disk is a new one"
        assert_same(thin.image, thin.disk)

    def test_K18_another_base(self, thin: Placing) -> None:
        """The image has a new version: the overlay of the first try must not see it."""
        thin.run_here()
        old = thin.entry.stat().st_ino
        thin.image.unlink()
        qcow2(thin.image, "XYZ-")
        thin.run_here()
        assert thin.names == sorted(CACHE + BASED)
        assert vm_directory.base_path(thin.disk).stat().st_ino != old
        assert_same(thin.image, thin.disk)

    def test_K18_past_the_cache_after_an_overlay(self, thin: Placing) -> None:
        thin.run_here()
        thin.options["thin"] = False
        thin.run_here()
        assert thin.names == sorted(CACHE + VM)
        assert "backing-filename" not in info(thin.disk)
        assert_same(thin.image, thin.disk)

    def test_C14_an_unknown_base_is_set_aside(self, thin: Placing) -> None:
        base = vm_directory.base_path(thin.disk)
        base.parent.mkdir(parents=True)
        base.write_text("nobody knows")
        thin.run_here()
        aside, file = sorted(set(thin.names) - set(CACHE + BASED))
        assert Path(aside).name.startswith(".disk.0.") and aside.endswith(".unknown")
        assert file == f"{aside}/disk.0.base"
        assert (thin.root / "datastores" / file).read_text() == "nobody knows"
        assert_same(thin.image, thin.disk)
        ((severity, text),) = thin.call.logged
        assert severity == "WARN" and f"{base} was there before" in text

    def test_C14_an_unknown_overlay_keeps_its_base(self, thin: Placing) -> None:
        """Another image's disk, say: both are set aside, and neither is mixed with the new one."""
        thin.run_here()
        vm_directory.write_record(thin.disk, {**thin.options["record"], "image": "5"})
        inode, older = thin.disk.stat().st_ino, thin.image.with_name("older")
        thin.image.rename(older)
        qcow2(thin.image, "NEW-")
        thin.run_here()
        aside, *files = sorted(set(thin.names) - set(CACHE + BASED))
        assert files == [f"{aside}/disk.0", f"{aside}/disk.0.base"]
        kept = thin.root / "datastores" / files[0]
        assert kept.stat().st_ino == inode
        assert_same(older, kept)  # it can be used where it is: its base has kept its name
        assert_same(thin.image, thin.disk)


class TestFailingCache:
    """One warning, and the image comes past the cache (A18)."""

    @pytest.fixture(params=["raw", "thin"])
    def placing(self, request: pytest.FixtureRequest) -> Placing:
        found: Placing = request.getfixturevalue(request.param)
        return found

    def assert_past_the_cache(self, placing: Placing, why: str) -> None:
        assert placing.run_here() == {"cache": "none"}
        assert_same(placing.image, placing.disk, image_format=placing.options["image_format"])
        assert not vm_directory.base_path(placing.disk).exists()
        assert "backing-filename" not in info(placing.disk)
        (warning,) = placing.warnings
        assert "goes past the cache of" in warning and why in warning
        assert temporaries(placing.root) == []

    def test_B6_an_image_larger_than_the_limit(self, placing: Placing) -> None:
        placing.cached(limits=limits(max_bytes=1000))
        self.assert_past_the_cache(placing, "the limit is 0 MB")
        assert placing.questions == ["disk", "wanted"]

    def test_A18_a_directory_that_is_none(self, placing: Placing) -> None:
        placing.entry.parent.write_text("in the way")
        self.assert_past_the_cache(placing, "use the cache")

    def test_A18_a_lock_that_is_not_given_up(self, placing: Placing) -> None:
        placing.cached(lock_timeout=0.2)
        placing.entry.parent.mkdir()
        lock = Entry(placing.entry).lock
        with locks.exclusive(lock, purpose="clone of image 5", timeout=1):
            self.assert_past_the_cache(placing, "clone of image 5 for")

    @pytest.mark.parametrize(
        ("error", "kept"),
        [(NoSpace("receive", "full"), False), (HostUnreachable("send", "link cut"), True)],
    )
    def test_A18_a_fill_that_fails(self, placing: Placing, error: Exception, kept: bool) -> None:
        def fail(item: str) -> None:
            if item == "image":
                raise error

        placing.then = fail
        self.assert_past_the_cache(placing, str(error))
        assert placing.questions == ["image", "disk", "wanted"]
        has_part = any(name.endswith(".part") for name in placing.names)
        assert has_part is kept, "kept only if the next try can go on with it"
        assert not placing.entry.exists()

    def test_A8_a_part_that_is_not_what_was_sent(self, placing: Placing) -> None:
        bring = placing._bring

        def spoil(source: Path, question: dict[str, Any]) -> dict[str, Any]:
            answer = bring(source, question)
            return {**answer, "digest": "0" * 64} if question["item"] == "image" else answer

        placing._bring = spoil  # type: ignore[method-assign]
        self.assert_past_the_cache(placing, "the manifest is not there")
        assert not placing.entry.exists()

    def test_A16_paths_outside_of_datastores_go_past_it(self, placing: Placing) -> None:
        placing.cached(path=str(placing.root / "elsewhere" / "0a1b"))
        self.assert_past_the_cache(placing, "not in an image datastore")

    def test_C2_a_failing_step_behind_the_cache_leaves_the_entry_only(
        self, placing: Placing
    ) -> None:
        def refuse(item: str) -> None:
            if item == "wanted":
                raise Superseded("put the disk in place", "the VM is gone")

        placing.then = refuse
        with pytest.raises(Superseded):
            placing.run_here()
        assert placing.names == CACHE

    def test_C8_no_room_for_the_disk_is_told_before_any_transfer(self, placing: Placing) -> None:
        """Past the cache the disk needs its own room, an overlay or not."""
        placing.cached(limits=limits(max_bytes=1000))
        arguments = placing.arguments()
        arguments["source"]["allocated"] = 1 << 43
        with pytest.raises(NoSpace, match=r"\d+ MB needed"):
            operations.place(placing.call, **arguments)
        assert placing.questions == []
        assert not placing.disk.parent.exists()


@pytest.fixture(autouse=True)
def no_leftover(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """No test leaves a temporary of a process that is alive."""
    yield
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("point", points("tm.clone", "place", "fill", "room"))
def test_A6_K18_a_copy_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], raw: Placing, point: str
) -> None:
    kill_and_repeat(agents, crashed, raw, point, sorted(CACHE + VM))


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("point", points("tm.clone thin", "place", "fill", "room"))
def test_A6_K18_an_overlay_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], thin: Placing, point: str, older: bool
) -> None:
    if older:  # an earlier try with an older version of the image
        thin.run_here()
        thin.image.unlink()
        qcow2(thin.image, "OLD-")
    kill_and_repeat(agents, crashed, thin, point, sorted(CACHE + BASED))


def kill_and_repeat(
    agents: Agents, crashed: Callable[[], list[str]], placing: Placing, point: str,
    complete: list[str],
) -> None:  # fmt: skip
    """Wherever it dies: what has a name is complete, and the next try ends like the first."""
    image_format = placing.options["image_format"]
    was = placing.disk.exists()
    run_and_die(agents, point, placing.run)
    assert crashed() == [point]
    if placing.disk.exists() and not was:
        assert_same(placing.image, placing.disk, image_format=image_format)
    placing.run_here()
    if point == "fill.renamed":  # what is left of that fill goes with the sweep (B15)
        with agents.start() as agent:
            trim(agent, placing, limits(orphan_age=0.0))
    assert placing.names == complete
    assert placing.entry.read_bytes() == placing.image.read_bytes()
    assert_same(placing.image, placing.disk, image_format=image_format)


# What is replaced is renamed: that link is for a first disk only.
@pytest.mark.parametrize(
    "point", sorted({*points("tm.clone thin", "place", "publish")} - {"publish.linked"})
)
def test_C3_an_overlay_is_never_seen_on_another_base(
    agents: Agents, crashed: Callable[[], list[str]], thin: Placing, point: str
) -> None:
    """Killed while an earlier try's disk, to which something was written, is replaced."""
    thin.run_here()
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -q -P 85 0 64k", str(thin.disk)], check=True
    )
    base, older = vm_directory.base_path(thin.disk), thin.root / "older"
    inode = base.stat().st_ino
    run_qemu_img("convert", "-f", "qcow2", "-O", "qcow2", thin.disk, older)
    thin.image.unlink()
    qcow2(thin.image, "NEW-")
    run_and_die(agents, point, thin.run)
    assert crashed() == [point]
    if thin.disk.exists():
        is_new = base.stat().st_ino != inode
        assert_same(thin.image if is_new else older, thin.disk)
    thin.run_here()
    assert_same(thin.image, thin.disk)


@pytest.mark.parametrize("point", points("eviction", "evict"))
def test_B13_an_eviction_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], raw: Placing, point: str
) -> None:
    raw.run_here()
    raw.clean_directory()
    run_and_die(agents, point, lambda agent: trim(agent, raw, limits(max_bytes=1)))
    assert crashed() == [point]
    assert raw.run_here() == {"cache": "miss"}
    assert raw.disk.read_bytes() == raw.image.read_bytes()
    with agents.start() as agent:
        assert trim(agent, raw, limits(max_bytes=1)) == 0
    assert [name for name in raw.names if name.startswith("1/")] == ["1/.0a1b.lock"]


def test_C7_the_overlay_is_made_without_opening_its_base(
    thin: Placing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name leads to the base only once both are published."""
    create, seen = qemu_img.create_overlay, []

    def look(path: Path, *arguments: Any, **options: Any) -> None:
        seen.append(vm_directory.base_path(thin.disk).exists())
        create(path, *arguments, **options)

    monkeypatch.setattr(qemu_img, "create_overlay", look)
    thin.run_here()
    assert seen == [False]
