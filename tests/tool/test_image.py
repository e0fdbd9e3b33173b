"""Operations on images: rules, formats, digests, conversion, and what is left when one fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import (
    companions,
    crashpoints,
    extents,
    origin,
    paths,
    process,
    publish,
    qemu_img,
    transfer,
)
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    Missing,
    NoSpace,
    NotAllowed,
    OnestorError,
    Superseded,
    TransferFailed,
)
from onestor_lib.agent.operations import datastore, image
from tests.tool.conftest import (
    MB,
    Agents,
    allocated,
    draw,
    info,
    listing,
    mounted,
    qcow2,
    temporaries,
)
from tests.tool.conftest import (
    qemu_img as run_qemu_img,
)
from tests.tool.importing import COMPLETE, NAME, Importing
from tests.tool.placing import LocalCall, points
from tests.unit.caching import fill


def remove(path: str | Path, base: str | Path) -> Any:
    return datastore.remove(LocalCall(lambda question: {}), path=str(path), base=str(base))


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)


@pytest.fixture
def nothing_stays(importing: Importing) -> Iterator[None]:
    yield
    assert listing(importing.datastore) == []


@pytest.mark.parametrize("name", ["file", "a b*[?]'\";$(x)", "-o", "ü"])
def test_K17_J2_a_raw_file_is_taken_as_it_is(importing: Importing, name: str) -> None:
    importing.file = draw(importing.incoming / name, "A0-B", b"tail")
    assert importing.measure() == 4 * MB + 4
    assert importing.run() == "raw"
    assert importing.image.read_bytes() == importing.file.read_bytes()
    assert importing.image.stat().st_mode & 0o777 == 0o660
    assert allocated(importing.image) < 4 * MB
    assert listing(importing.datastore) == COMPLETE


@pytest.mark.parametrize("wanted", ["", "qcow2"])
def test_A16_the_manifest_is_made_while_the_image_is_in_memory(
    importing: Importing, wanted: str
) -> None:
    """No transfer has to digest it again; it is that of the stored bytes, not of the source."""
    draw(importing.file, "A0-B", b"tail")
    importing.options["wanted_format"] = wanted
    importing.run()
    image = origin.Origin(importing.image)
    manifest = image.manifest()
    assert manifest
    with importing.image.open("rb") as file:
        expected = transfer.digests_of(file.fileno(), importing.image.stat().st_size)
    assert manifest.to_bytes() == expected.to_bytes()


def test_A9_a_datastore_that_takes_no_manifest_takes_the_image(
    importing: Importing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be made later."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    draw(importing.file, "A")
    monkeypatch.setattr(publish, "write_file", fail)
    importing.run()
    assert importing.image.read_bytes() == importing.file.read_bytes()
    assert listing(importing.datastore) == [NAME]
    assert origin.Origin(importing.image).manifest() is None


def test_C4_SPARSE_NO_allocates_everything(importing: Importing) -> None:
    draw(importing.file, "A--")
    importing.options["sparse"] = False
    importing.run()
    assert allocated(importing.image) >= 3 * MB


def test_C9_images_share_blocks_where_the_file_system_can(xfs: Path) -> None:
    (xfs / "import").mkdir()
    importing = Importing(xfs / "import")
    draw(importing.file, "A" * 64)
    os.sync()
    free = os.statvfs(xfs).f_bfree * os.statvfs(xfs).f_frsize
    importing.run()
    os.sync()
    assert free - os.statvfs(xfs).f_bfree * os.statvfs(xfs).f_frsize < MB
    assert importing.image.read_bytes() == importing.file.read_bytes()


def test_A22_data_in_no_blocks_is_data(tmp_path: Path) -> None:
    """A small file that lies in its inode, as some file systems keep it."""
    mkfs = ("mkfs.ext4", "-q", "-I256", "-Oinline_data")
    with mounted(tmp_path, 20, *mkfs) as point:
        importing = Importing(point)
        importing.file.write_bytes(b"data in the inode")
        os.sync()
        assert importing.file.stat().st_blocks <= 1
        importing.run()
        assert importing.image.read_bytes() == b"data in the inode"


class TestClone:
    """A registered image as the source: no rules but that it lies in its datastore."""

    def cloning(self, root: Path, image_format: str) -> Importing:
        importing = Importing(root)
        importing.file = root / "other" / "0f"
        (draw if image_format == "raw" else qcow2)(importing.file, "A---B" + "-" * 15)
        for number in ("0", "9", "10", "123"):
            draw(root / "other" / "0f.snap" / number, "S")
        importing.source = {
            **importing.description, "rules": None, "base": str(importing.file.parent),
        }  # fmt: skip
        importing.options["known_format"] = image_format
        importing.asked["inspect"] = False
        return importing

    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    def test_H16_holes_are_kept_and_snapshots_stay(self, tmp_path: Path, image_format: str) -> None:
        cloning = self.cloning(tmp_path, image_format)
        assert cloning.run() == image_format
        assert cloning.image.read_bytes() == cloning.file.read_bytes()
        assert allocated(cloning.image) <= allocated(cloning.file) * 1.05
        assert listing(cloning.datastore) == COMPLETE

    def test_H16_blocks_are_shared_where_possible(self, xfs: Path) -> None:
        (xfs / "clone").mkdir()
        cloning = self.cloning(xfs / "clone", "raw")
        draw(cloning.file, "A" * 64)
        os.sync()
        free = os.statvfs(xfs).f_bfree * os.statvfs(xfs).f_frsize
        cloning.run()
        os.sync()
        assert free - os.statvfs(xfs).f_bfree * os.statvfs(xfs).f_frsize < MB
        assert cloning.image.read_bytes() == cloning.file.read_bytes()

    def test_trap35_a_guest_may_write_any_header(self, tmp_path: Path) -> None:
        """What is raw on record stays raw, whatever it looks like."""
        cloning = self.cloning(tmp_path, "raw")
        qcow2(cloning.file, "A")
        cloning.options["wanted_format"] = "qcow2"
        assert cloning.run() == "qcow2"
        assert info(cloning.image)["virtual-size"] == cloning.file.stat().st_size

    @pytest.mark.parametrize("path", ["../incoming/x", ".0f.manifest", "0f.snap/0"])
    def test_H7_nothing_but_images_is_cloned(self, tmp_path: Path, path: str) -> None:
        cloning = self.cloning(tmp_path, "raw")
        draw(cloning.incoming / "x", "X")
        cloning.source["path"] = str(cloning.file.parent / path)
        with pytest.raises(NotAllowed, match="not an image in"):
            cloning.run()
        assert listing(cloning.datastore) == []


def test_H9_no_hole_is_ever_dug(importing: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not written is a hole: no call that some file systems have trouble with."""
    monkeypatch.setattr(extents, "_punch", lambda *arguments: 1 / 0)
    draw(importing.file, "A00-B0")
    assert importing.run() == "raw"
    assert importing.image.read_bytes() == importing.file.read_bytes()
    assert allocated(importing.image) < 3 * MB


@pytest.mark.parametrize("block", [1 << 20, 1 << 16])
def test_H22_how_much_is_read_at_once(
    importing: Importing, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    draw(importing.file, "AB")
    counts: set[int] = set()
    read = extents.read_exactly

    def note(fd: int, count: int, offset: int) -> bytes:
        if "incoming" in os.readlink(f"/proc/self/fd/{fd}"):
            counts.add(count)
        return read(fd, count, offset)

    monkeypatch.setattr(extents, "read_exactly", note)
    importing.source = {**importing.description, "block": block}
    importing.run()
    assert max(counts) == block
    assert importing.image.read_bytes() == importing.file.read_bytes()


class TestFormats:
    @pytest.mark.parametrize("source", ["raw", "qcow2"])
    @pytest.mark.parametrize("wanted", ["raw", "qcow2", ""])
    @pytest.mark.parametrize("sparse", [True, False])
    def test_H15_H27_conversion_both_ways(
        self, importing: Importing, source: str, wanted: str, sparse: bool
    ) -> None:
        (draw if source == "raw" else qcow2)(importing.file, "A0-B")
        importing.options |= {"wanted_format": wanted, "sparse": sparse}
        assert importing.measure() == 4 * MB
        assert importing.run() == (wanted or source)
        assert info(importing.image)["format"] == (wanted or source)
        assert listing(importing.datastore) == COMPLETE
        run_qemu_img("compare", str(importing.file), str(importing.image))
        if wanted == "qcow2" and source == "raw":
            assert (allocated(importing.image) >= 4 * MB) is not sparse

    def test_CDROM_images_and_files_are_not_touched(self, importing: Importing) -> None:
        qcow2(importing.file, "A-")
        importing.options |= {"inspect": False, "wanted_format": "qcow2"}
        importing.asked["inspect"] = False
        assert importing.measure() == importing.file.stat().st_size
        assert importing.run() == "raw"
        assert importing.image.read_bytes() == importing.file.read_bytes()

    def test_luks_images_are_raw_and_never_converted(self, importing: Importing) -> None:
        """Contract section 1.3."""
        importing.file.write_bytes(b"LUKS\xba\xbe\0\2".ljust(MB, b"\1"))
        importing.options["wanted_format"] = "qcow2"
        assert importing.run() == "raw"
        assert importing.image.read_bytes() == importing.file.read_bytes()

    @pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vpc", "vhdx"])
    @pytest.mark.parametrize(
        ("wanted", "foreign_to", "expected"),
        [("raw", "qcow2", "raw"), ("", "qcow2", "qcow2"), ("", "", "")],
    )
    def test_H27_images_of_other_hypervisors_are_converted(
        self, importing: Importing, image_format: str, wanted: str, foreign_to: str, expected: str
    ) -> None:
        """With CONVERT=NO they are stored as they are, and the answer says what they are."""
        raw = draw(importing.incoming / "raw", "A-B")
        run_qemu_img("convert", "-f", "raw", "-O", image_format, str(raw), str(importing.file))
        importing.options |= {"wanted_format": wanted, "foreign_to": foreign_to}
        size = importing.measure()
        assert size == info(importing.file, image_format)["virtual-size"]
        assert importing.run() == (expected or image_format)
        if not expected:
            assert importing.image.read_bytes() == importing.file.read_bytes()
        else:
            run_qemu_img(
                "compare", "-f", image_format, "-F", expected,
                str(importing.file), str(importing.image),
            )  # fmt: skip

    @pytest.mark.parametrize("compressed", ["", "gzip", "xz"])
    def test_H25_archives_are_refused(
        self, importing: Importing, nothing_stays: None, compressed: str
    ) -> None:
        draw(importing.incoming / "inner", "A")
        with importing.file.open("wb") as file:
            argv = ["tar", "-c", *([f"--{compressed}"] if compressed else []), "inner"]
            subprocess.run(argv, stdout=file, check=True, cwd=importing.incoming)
        for work in (importing.measure, importing.run):
            with pytest.raises(InvalidInput, match=r"archives are not supported"):
                work()

    @pytest.mark.parametrize("wanted", ["raw", "qcow2", ""])
    @pytest.mark.parametrize(
        "options",
        [
            ["-F", "raw", "-b", "SECRET"],
            ["-u", "-F", "raw", "-b", 'json:{"driver":"file","filename":"SECRET"}'],
            ["-o", "data_file=SECRET.data"],
        ],
        ids=["backing file", "json", "data file"],
    )
    def test_J6_images_that_name_other_files_are_refused(
        self, importing: Importing, nothing_stays: None, options: list[str], wanted: str
    ) -> None:
        secret = draw(importing.incoming / "secret", "S")
        words = [word.replace("SECRET", str(secret)) for word in options]
        run_qemu_img("create", "-q", "-f", "qcow2", *words, importing.file, "1M")
        importing.options["wanted_format"] = wanted
        for work in (importing.measure, importing.run):
            with pytest.raises(NotAllowed, match="refers to"):
                work()

    def test_J15_a_header_qemu_chokes_on_is_refused(
        self, importing: Importing, nothing_stays: None
    ) -> None:
        qcow2(importing.file, "A")
        with importing.file.open("r+b") as file:
            os.pwrite(file.fileno(), b"\xff" * 4, 36)  # size of the first level table
        with pytest.raises(CommandFailed, match=r"inspect image .*qemu-img"):
            importing.run()

    def test_J15_inspection_runs_under_limits(
        self, importing: Importing, nothing_stays: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tight = process.Limits(address_space=1 << 20)
        monkeypatch.setattr(process, "Limits", lambda: tight)
        draw(importing.file, "A")
        with pytest.raises(CommandFailed, match="inspect image"):
            importing.run()

    def test_an_empty_file_is_no_image(self, importing: Importing, nothing_stays: None) -> None:
        importing.file.touch()
        for work in (importing.measure, importing.run):
            with pytest.raises(InvalidInput, match="empty"):
                work()

    def test_C7_every_qemu_img_call_states_its_formats(
        self, importing: Importing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[list[str]] = []
        run = process.run

        def note(argv: list[str], **options: Any) -> process.Result:
            calls.append(argv)
            return run(argv, **options)

        monkeypatch.setattr(process, "run", note)
        draw(importing.file, "A")
        importing.options["wanted_format"] = "qcow2"
        importing.run()
        qemu_img.grow(importing.image, "qcow2", 2 * MB, step="x")
        assert [argv[1] for argv in calls] == ["info", "convert", "resize"]
        assert all("-f" in argv for argv in calls) and "-O" in calls[1]


class TestRules:
    @pytest.fixture(autouse=True)
    def unchanged(self, nothing_stays: None) -> None:
        """Nothing refused leaves anything behind."""

    @pytest.mark.parametrize("kind", ["itself", "link", "parent", "missing", "fifo"])
    def test_J8_stat_and_cp_refuse_with_the_same_words(
        self, importing: Importing, kind: str
    ) -> None:
        secret = importing.incoming.parent / "secret"
        if kind == "fifo":
            os.mkfifo(secret)
        elif kind != "missing":
            draw(secret, "S")
        importing.file = secret
        if kind == "link":
            importing.file = importing.incoming / "link"
            importing.file.symlink_to(secret)
        elif kind == "parent":
            importing.file = importing.incoming / ".." / "secret"
        refusals = []
        for work in (importing.measure, importing.run):
            with pytest.raises(NotAllowed) as refusal:
                work()
            refusals.append(refusal.value.cause)
        assert (
            refusals[0]
            == refusals[1]
            == (f"/ is in RESTRICTED_DIRS and SAFE_DIRS allows only {importing.incoming}")
        )

    @pytest.mark.parametrize("kind", ["fifo", "device", "directory", "socket"])
    def test_odd_files_do_not_hang(self, importing: Importing, kind: str) -> None:
        if kind == "fifo":
            os.mkfifo(importing.file)
        elif kind == "directory":
            importing.file.mkdir()
        elif kind == "socket":
            os.mknod(importing.file, 0o140600)
        else:
            importing.rules["safe"] = ["/dev"]
            importing.file = Path("/dev/zero")
        for work in (importing.measure, importing.run):
            with pytest.raises(OnestorError):
                work()

    def test_J9_a_link_swapped_all_the_time(self, importing: Importing) -> None:
        """1000 rounds against a process that does nothing else: never the restricted file."""
        good = importing.incoming / "good"
        good.write_bytes(b"good")
        secret = importing.incoming.parent / "secret"
        secret.write_bytes(b"secret")
        link = importing.incoming / "link"
        swap = (
            "import os, sys\n"
            "link, *targets = sys.argv[1:]\n"
            "while True:\n"
            "    for target in targets:\n"
            "        os.symlink(target, link + '.new'); os.replace(link + '.new', link)\n"
        )
        swapper = subprocess.Popen([sys.executable, "-c", swap, link, good, secret])
        try:
            rules = paths.Rules(**importing.rules)
            seen: set[object] = set()
            rounds, until = 0, time.monotonic() + 60
            while rounds < 1000 or not {b"good", NotAllowed} <= seen:
                assert time.monotonic() < until, f"only {seen} so far"
                rounds += 1
                try:
                    fd = paths.open_image(str(link), rules, step="copy image")
                except (NotAllowed, Missing) as error:
                    seen.add(type(error))
                    continue
                seen.add(extents.read_exactly(fd, 10, 0))
                os.close(fd)
            assert b"secret" not in seen
        finally:
            swapper.kill()
            swapper.wait()


class TestFailures:
    @pytest.fixture(autouse=True)
    def unchanged(self, nothing_stays: None, importing: Importing) -> None:
        draw(importing.file, "AB")

    @pytest.mark.parametrize("wrong", ["md5", "sha1", "sha256", "sha512"])
    def test_H4_every_digest_counts(self, importing: Importing, wrong: str) -> None:
        content = importing.file.read_bytes()
        digests = {
            name: hashlib.new(name, content).hexdigest()
            for name in ("md5", "sha1", "sha256", "sha512")
        }
        right = digests[wrong]
        importing.asked["digests"] = {
            **digests,
            wrong: right[:-1] + ("0" if right[-1] != "0" else "1"),
        }
        with pytest.raises(OnestorError, match=f"{wrong.upper()} is {right}, expected "):
            importing.run()
        importing.asked["digests"] = digests
        importing.run()
        remove(importing.image, importing.datastore)

    @pytest.mark.parametrize("error", [Superseded("x", "deleted"), HostUnreachable("x", "gone")])
    def test_H6_an_image_nobody_wants_any_more(
        self, importing: Importing, error: OnestorError
    ) -> None:
        def refuse(question: dict[str, Any]) -> dict[str, Any]:
            assert question["ask"] == "wanted"
            assert not importing.image.exists()
            raise error

        importing.answer = refuse
        with pytest.raises(type(error)):
            importing.run()

    def test_a_source_that_changes_meanwhile(
        self, importing: Importing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = extents.data

        def read_and_change(source: int, *arguments: Any) -> Iterator[tuple[int, int]]:
            yield from data(source, *arguments)
            os.utime(source, ns=(1, 1))

        monkeypatch.setattr(extents, "data", read_and_change)
        with pytest.raises(TransferFailed, match="changed while it was read"):
            importing.run()

    def test_H28_a_missing_source_is_named(self, importing: Importing) -> None:
        importing.file = importing.incoming / "missing"
        for work in (importing.measure, importing.run):
            with pytest.raises(Missing, match=f"{importing.file}: no such file"):
                work()

    @pytest.mark.parametrize("step", ["convert", "virtual_size"])
    def test_H3_a_failing_conversion_or_inspection(
        self, importing: Importing, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise CommandFailed(step, "failed")

        monkeypatch.setattr(qemu_img, step, fail)
        importing.options["wanted_format"] = "qcow2"
        with pytest.raises(CommandFailed):
            importing.run()


@pytest.mark.parametrize("check_space", [True, False])
def test_C1_H3_a_full_datastore(tmp_path: Path, small: Path, check_space: bool) -> None:
    importing = Importing(tmp_path)
    importing.datastore = small / "1"
    importing.needs_space = "holes" if check_space else "no"
    draw(importing.file, "A" * 30)
    with pytest.raises(
        NoSpace, match="30 MB needed, 1. MB available" if check_space else "No space"
    ):
        importing.run()
    assert listing(small) in (["1", "lost+found"], ["lost+found"])
    if check_space:
        draw(importing.file, "A" + "-" * 29)  # holes need no room
        importing.run()


@pytest.mark.parametrize("point", points("datastore.cp", "import", "intake", "publish"))
def test_K18_importing_killed_and_repeated(
    agents: Agents, crashed: Callable[[], list[str]], importing: Importing, point: str
) -> None:
    draw(importing.file, "AB")
    with (
        agents.start(crash_at=point) as agent,
        agents.start(crash_at=point) as sender,
        pytest.raises(HostUnreachable, match="SIGKILL"),
    ):
        importing.run_in(agent, sender)
    assert crashed() == [point]
    if importing.image.exists():
        assert importing.image.read_bytes() == importing.file.read_bytes()
        importing.image.unlink()  # the next try has another name: the time is in it
    importing.run()
    assert temporaries(importing.datastore) == []
    assert importing.image.read_bytes() == importing.file.read_bytes()


class TestRemove:
    @pytest.fixture
    def image(self, importing: Importing) -> Path:
        draw(importing.image, "A")
        draw(importing.datastore / f"{NAME}.snap" / "123", "S")
        importing.image.with_name(f"{NAME}.md5sum").write_text("")
        importing.image.with_name(f"{NAME}0").write_text("another image")
        companions.manifest(importing.image).write_text("")
        return importing.image

    def test_H8_an_image_goes_with_all_that_belongs_to_it(self, image: Path) -> None:
        assert remove(image, image.parent) == {"removed": True}
        assert listing(image.parent) == [f"{NAME}0"]
        assert remove(image, image.parent) == {"removed": False}, "also twice"

    def test_B15_the_front_end_s_own_cache_of_it_goes_too(self, image: Path) -> None:
        """A front-end that is a host has the origin and a hidden entry side by side."""
        entry, other = fill(image), fill(image.with_name(f"{NAME}0"))
        assert entry.is_hidden and entry.image.exists()
        assert other.is_hidden
        entry.lock.write_text("whoever has filled it")
        Entry(image).new_part(seed=True)
        remove(image, image.parent)
        names = {path.name for path in (other.image, other.sidecar, other.path, entry.lock)}
        assert set(listing(image.parent)) == names
        assert not entry.image.exists()

    def test_H8_a_missing_datastore_has_no_images(self, tmp_path: Path) -> None:
        assert remove(tmp_path / "1" / NAME, tmp_path / "1") == {"removed": False}

    def test_H7_only_images_of_the_datastore(self, importing: Importing, image: Path) -> None:
        outside = draw(importing.incoming / NAME, "A")
        for path in (outside, image.parent, f"{image.parent}/../incoming/{NAME}"):
            with pytest.raises(NotAllowed):
                remove(path, image.parent)
        assert outside.exists() and image.exists()
        double = f"{image.parent.parent}//{image.parent.name}"
        assert remove(f"{double}//{NAME}", double) == {"removed": True}

    def test_a_link_goes_and_what_it_leads_to_stays(
        self, importing: Importing, image: Path
    ) -> None:
        outside = draw(importing.incoming / "outside" / "file", "A").parent
        image.unlink()
        image.symlink_to(outside / "file")
        (image.with_name(f"{NAME}.snap") / "link").symlink_to(outside)
        remove(image, image.parent)
        assert listing(outside) == ["file"]
        assert listing(image.parent) == [f"{NAME}0"]

    @pytest.mark.parametrize("point", points("datastore.rm", "rm"))
    def test_K18_removing_killed_and_repeated(
        self, agents: Agents, crashed: Callable[[], list[str]], image: Path, point: str
    ) -> None:
        arguments: dict[str, Any] = {"path": str(image), "base": str(image.parent)}
        with agents.start(crash_at=point) as agent, pytest.raises(HostUnreachable):
            agent.call("image.remove", **arguments)
        assert crashed() == [point]
        with agents.start() as agent:
            agent.call("image.remove", **arguments)
        assert listing(image.parent) == [f"{NAME}0"]


class TestDescribe:
    def describe(self, path: Path, image_format: str = "raw", snapshots: bool = True) -> Any:
        return image.describe(
            LocalCall(lambda question: {}), path=str(path), image_format=image_format,
            snapshots=snapshots,
        )  # fmt: skip

    def test_A14_sizes_and_the_image_s_own_snapshots(self, importing: Importing) -> None:
        qcow2(importing.image, "A-")
        directory = importing.datastore / f"{NAME}.snap"
        directory.mkdir()
        for name in ("0", "123", "9.tmp", "base.1", "٣"):
            qcow2(directory / name, "B")
        found = self.describe(importing.image, "qcow2")
        assert found["virtual_size"] == 2 * MB
        assert found["size"] == importing.image.stat().st_size
        assert sorted(found["snapshots"]) == ["0", "123"]
        assert 0 < found["snapshots_allocated"] < found["allocated"]
        assert self.describe(importing.image, "qcow2", False)["snapshots"] == {}

    def test_trap35_the_recorded_format_counts(self, importing: Importing) -> None:
        qcow2(importing.image, "A-")
        assert self.describe(importing.image)["virtual_size"] == importing.image.stat().st_size
        draw(importing.file, "A")
        with pytest.raises(InvalidInput, match="not a qcow2 image"):
            self.describe(importing.file, "qcow2")

    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    @pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
    def test_odd_files_do_not_hang(
        self, importing: Importing, kind: str, image_format: str
    ) -> None:
        if kind == "fifo":
            os.mkfifo(importing.image)
        elif kind == "directory":
            importing.image.mkdir()
        else:
            importing.image.symlink_to("/dev/zero")
        with pytest.raises(InvalidInput, match=f"{importing.image}: not a regular file"):
            self.describe(importing.image, image_format)

    def test_H28_a_missing_image_is_named(self, importing: Importing) -> None:
        with pytest.raises(Missing, match=f"read image {importing.image}: no such file"):
            self.describe(importing.image)


def test_B15_which_images_are_no_more(tmp_path: Path, agent: AgentClient) -> None:
    """A datastore that is not there, a volume that is not mounted perhaps, has lost none."""
    datastore = tmp_path / "datastore"
    asked: dict[str, Any] = {"directory": str(datastore), "names": ["0a", "0b", "0c", "../0d"]}
    assert agent.call("image.missing", **asked) == {"names": []}
    draw(datastore / "0a", "A")
    (datastore / "0b").symlink_to("elsewhere")
    draw(tmp_path / "0d", "D")
    assert agent.call("image.missing", **asked) == {"names": ["0c", "../0d"]}


def test_crash_points_of_these_operations_are_all_tested() -> None:
    tested = {"place", "publish", "delete", "import", "intake", "rm", "send", "receive", "frontend"}
    tested |= {"room", "fill", "evict", "move", "save", "replace", "snapshot", "revert"}
    tested |= {"recovery", "flatten", "thin"}
    assert {name.partition(".")[0] for name in crashpoints.POINTS} == tested
