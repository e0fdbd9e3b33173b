"""Snapshots of images: deleted, reverted to, flattened; our layout and the chains of others."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import companions, extents, publish, qemu_img
from onestor_lib.agent.errors import (
    CommandFailed,
    InvalidInput,
    Missing,
    NotAllowed,
    OnestorError,
    TransferFailed,
)
from onestor_lib.agent.operations import image_snapshots as snapshots
from onestor_lib.agent.operations import load
from onestor_lib.agent.version import Version
from tests.tool.conftest import Agents, allocated, draw, info, listing, qcow2
from tests.tool.conftest import qemu_img as run_qemu_img
from tests.tool.placing import SNAPSHOTS, LocalCall, run_and_die
from tests.tool.test_boundary import FrontEnd, fe, one_line

__all__ = ["fe"]

NAME = "0a1b2c"
PATTERNS = {"0": "S-A", "9": "-SB", "10": "SSC", "123": "--D"}


class Image:
    """An image with snapshots, and what can be done with them."""

    def __init__(self, root: Path, image_format: str) -> None:
        self.datastore = root / "datastore"
        self.file = self.datastore / NAME
        self.directory = self.datastore / f"{NAME}.snap"
        self.format = image_format
        self.directory.mkdir(parents=True)
        self.other = draw(self.datastore / f"{NAME}0", "O")
        self.logged: list[tuple[str, str]] = []

    def with_snapshots(self) -> Image:
        self.draw(self.file, "IIII")
        for name in SNAPSHOTS:
            self.draw(self.directory / name, PATTERNS[name])
        return self

    def with_chain(self) -> Image:
        """As drivers that make overlays leave it: the newest is what the image is."""
        qcow2(self.directory / "0", PATTERNS["0"])
        (self.directory / f"{NAME}.snap").symlink_to(".")
        names = ["0", "9", "10", "123"]
        for lower, upper in zip(names, names[1:]):
            self.overlay(self.directory / upper, f"{NAME}.snap/{lower}")
            offset = str(["9", "10", "123"].index(upper))
            run_qemu_io(self.directory / upper, f"write -P {ord(upper[0])} {offset}M 64k")
        self.file.symlink_to(f"{NAME}.snap/123")
        return self

    def overlay(self, path: Path, backing: str) -> None:
        run_qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", path, "3M")

    def draw(self, path: Path, pattern: str) -> Path:
        return (qcow2 if self.format == "qcow2" else draw)(path, pattern)

    def run(self, operation: Any, snapshot: int, **changed: Any) -> None:
        call = LocalCall(lambda question: {})
        arguments = {
            "path": str(self.file), "base": str(self.datastore), "image_format": self.format,
            "timeout": 60.0, **changed,
        }  # fmt: skip
        try:
            operation(call, snapshot=snapshot, **arguments)
        finally:
            self.logged = call.logged

    def content(self, path: Path) -> bytes:
        """What a guest sees."""
        plain = self.datastore.parent / "plain"
        run_qemu_img("convert", "-f", self.format, "-O", "raw", path, plain)
        return plain.read_bytes()

    @property
    def names(self) -> list[str]:
        assert self.other.exists()
        return [name for name in listing(self.datastore) if name != self.other.name]


def run_qemu_io(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, capture_output=True)


@pytest.fixture(params=["raw", "qcow2"])
def image(tmp_path: Path, request: pytest.FixtureRequest) -> Image:
    return Image(tmp_path, request.param).with_snapshots()


@pytest.fixture
def chain(tmp_path: Path) -> Image:
    return Image(tmp_path, "qcow2").with_chain()


def written_notes(image: Image) -> list[Path]:
    """What is known of the image's content, and would be wrong of another one."""
    found = [
        image.datastore / f"{NAME}.md5sum",
        companions.digest(image.file),
        companions.manifest(image.file),
    ]
    for path in found:
        path.write_text("stale")
    return found


class TestDelete:
    @pytest.mark.parametrize("snapshot", SNAPSHOTS)
    def test_A14_one_of_any_number_of_digits(self, image: Image, snapshot: str) -> None:
        image.run(snapshots.delete, int(snapshot))
        assert sorted(os.listdir(image.directory)) == sorted(set(SNAPSHOTS) - {snapshot})
        assert image.logged == []
        image.run(snapshots.delete, int(snapshot))
        assert [severity for severity, _ in image.logged] == ["WARN"], "also twice"

    def test_the_last_one_takes_the_directory_along(self, image: Image) -> None:
        for snapshot in SNAPSHOTS:
            image.run(snapshots.delete, int(snapshot))
        assert image.names == [NAME]
        image.run(snapshots.delete, 0)
        assert image.names == [NAME]

    @pytest.mark.parametrize("snapshot", [0, 9, 10, 123])
    def test_what_others_need_stays(self, chain: Image, snapshot: int) -> None:
        before = chain.names
        user = {0: "snap/9", 9: "snap/10", 10: "snap/123", 123: NAME}[snapshot]
        with pytest.raises(NotAllowed, match=f"{user} cannot be read without it"):
            chain.run(snapshots.delete, snapshot)
        assert chain.names == before

    def test_a_chain_can_be_taken_down_from_its_end(self, chain: Image) -> None:
        chain.file.unlink()
        chain.draw(chain.file, "I")
        for snapshot in (123, 10, 9, 0):
            chain.run(snapshots.delete, snapshot)
        assert chain.names == [NAME]

    def test_an_image_that_is_an_overlay_itself_needs_its_backing_file(self, chain: Image) -> None:
        chain.file.unlink()
        chain.overlay(chain.file, f"{NAME}.snap/123")
        with pytest.raises(NotAllowed, match=f"{NAME} cannot be read"):
            chain.run(snapshots.delete, 123)


class TestRevert:
    @pytest.mark.parametrize("snapshot", SNAPSHOTS)
    def test_the_image_is_a_copy_and_the_snapshots_stay(self, image: Image, snapshot: str) -> None:
        old, before = Version.of(image.file.stat()), image.names
        stale = written_notes(image)
        image.run(snapshots.revert, int(snapshot))
        source = image.directory / snapshot
        assert image.file.read_bytes() == source.read_bytes()
        assert image.names == before and not any(path.exists() for path in stale)
        assert image.file.stat().st_mode & 0o777 == 0o660
        assert Version.of(image.file.stat()).inode not in (old.inode, source.stat().st_ino)
        assert allocated(image.file) <= allocated(source) + 8192, "holes are kept"
        image.run(snapshots.revert, int(snapshot))

    @pytest.mark.parametrize("snapshot", SNAPSHOTS)
    def test_a_member_of_a_chain_becomes_a_complete_image(
        self, chain: Image, snapshot: str
    ) -> None:
        before, expected = chain.names, chain.content(chain.directory / snapshot)
        newest = chain.content(chain.directory / "123")
        chain.run(snapshots.revert, int(snapshot))
        assert not chain.file.is_symlink()
        assert info(chain.file)["format"] == "qcow2"
        assert "backing-filename" not in info(chain.file)
        assert chain.content(chain.file) == expected
        assert chain.names == before
        assert chain.content(chain.directory / "123") == newest

    def test_trap22_what_is_known_of_the_old_content_goes_before_the_rename(
        self, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stale, old = written_notes(image), image.file.read_bytes()

        def fail(self: publish.Temporary, **options: object) -> None:
            assert not any(path.exists() for path in stale)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(publish.Temporary, "publish", fail)
        with pytest.raises(OnestorError, match="No space"):
            image.run(snapshots.revert, 9)
        assert image.file.read_bytes() == old

    def test_a_missing_snapshot(self, image: Image) -> None:
        before = image.names
        with pytest.raises(Missing, match=r"0a1b2c\.snap/7: no such file"):
            image.run(snapshots.revert, 7)
        assert image.names == before

    def test_H3_a_failure_changes_nothing(
        self, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise TransferFailed("copy", "failed")

        before, old = image.names, image.file.read_bytes()
        monkeypatch.setattr(extents, "copy_file", fail)
        with pytest.raises(TransferFailed):
            image.run(snapshots.revert, 9)
        assert (image.names, image.file.read_bytes()) == (before, old)

    def test_H3_a_failing_conversion_changes_nothing(
        self, chain: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise CommandFailed("convert", "failed")

        before = chain.names
        monkeypatch.setattr(qemu_img, "convert", fail)
        for operation in (snapshots.revert, snapshots.flatten):
            with pytest.raises(CommandFailed):
                chain.run(operation, 9)
        assert chain.names == before and chain.file.is_symlink()

    def test_snapshots_that_lie_on_the_image_keep_it_from_being_replaced(
        self, chain: Image
    ) -> None:
        chain.file.unlink()
        chain.draw(chain.file, "III")
        chain.overlay(chain.directory / "7", f"../{NAME}")
        with pytest.raises(NotAllowed, match="snap/7 cannot be read without the image"):
            chain.run(snapshots.revert, 0)
        expected = chain.content(chain.directory / "7")
        chain.run(snapshots.flatten, 7)
        assert chain.content(chain.file) == expected
        assert chain.names == [NAME]


class TestFlatten:
    @pytest.mark.parametrize("snapshot", SNAPSHOTS)
    def test_the_snapshot_becomes_the_image_without_a_copy(
        self, image: Image, snapshot: str
    ) -> None:
        source = image.directory / snapshot
        content, before = source.read_bytes(), Version.of(source.stat())
        stale = written_notes(image)
        image.run(snapshots.flatten, int(snapshot))
        after = Version.of(image.file.stat())
        assert image.file.read_bytes() == content
        assert after.inode == before.inode and after != before
        assert image.names == [NAME] and not any(path.exists() for path in stale)
        image.run(snapshots.flatten, int(snapshot))
        assert [severity for severity, _ in image.logged] == ["WARN"], "also twice"
        assert image.file.read_bytes() == content

    def test_where_there_are_no_hard_links_it_is_copied(
        self, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish.Temporary, "become_link", lambda self, other: False)
        content = (image.directory / "10").read_bytes()
        image.run(snapshots.flatten, 10)
        assert image.file.read_bytes() == content
        assert image.names == [NAME]

    @pytest.mark.parametrize("snapshot", SNAPSHOTS)
    def test_a_member_of_a_chain_becomes_a_complete_image(
        self, chain: Image, snapshot: str
    ) -> None:
        expected = chain.content(chain.directory / snapshot)
        chain.run(snapshots.flatten, int(snapshot))
        assert chain.names == [NAME] and not chain.file.is_symlink()
        assert "backing-filename" not in info(chain.file)
        assert chain.content(chain.file) == expected

    @pytest.mark.parametrize("step", ["publish", "take_away", "remove"])
    def test_K18_repeated_after_it_was_interrupted(
        self, image: Image, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        content = (image.directory / "10").read_bytes()
        with monkeypatch.context() as patch:

            def die(*arguments: Any, **options: Any) -> bool:
                raise KeyboardInterrupt

            if step == "publish":
                patch.setattr(publish.Temporary, "publish", die)
            elif step == "take_away":
                patch.setattr(publish, "take_away", die)
            else:
                remove = publish.remove
                patch.setattr(
                    publish, "remove",
                    lambda path: die() if ".snap." in path.name else remove(path),
                )  # fmt: skip
            with pytest.raises(KeyboardInterrupt):
                image.run(snapshots.flatten, 10)
        # What is left belongs to this process, which lives: as if it were dead.
        monkeypatch.setattr(publish, "_is_dead", lambda owner: True)
        image.run(snapshots.flatten, 10)
        assert image.file.read_bytes() == content
        assert image.names == [NAME]

    def test_an_image_that_is_not_there(self, tmp_path: Path) -> None:
        image = Image(tmp_path, "raw")
        image.directory.rmdir()
        with pytest.raises(Missing):
            image.run(snapshots.flatten, 0)


class TestCrashes:
    """Killed at each point there is on the way, and asked again."""

    PUBLISHING = ("publish.created", "publish.synced", "publish.renamed", "publish.done")

    def run(self, image: Image, agents: Agents, operation: str, crash_at: str = "") -> None:
        arguments: dict[str, Any] = {
            "path": str(image.file), "base": str(image.datastore), "image_format": image.format,
            "timeout": 60.0, "snapshot": 10,
        }  # fmt: skip
        if crash_at:
            run_and_die(agents, crash_at, lambda agent: agent.call(operation, **arguments))
        else:  # where nothing dies it takes no process
            load(operation)(LocalCall(lambda question: {}), **arguments)

    @pytest.mark.parametrize("point", PUBLISHING)
    def test_K18_reverting(self, image: Image, agents: Agents, point: str) -> None:
        old, before = image.file.read_bytes(), image.names
        new = (image.directory / "10").read_bytes()
        self.run(image, agents, "snapshot.revert", point)
        is_done = point in ("publish.renamed", "publish.done")
        assert image.file.read_bytes() == (new if is_done else old)
        self.run(image, agents, "snapshot.revert")
        assert image.file.read_bytes() == new
        assert image.names == before

    @pytest.mark.parametrize("point", [*PUBLISHING, "delete.renamed"])
    @pytest.mark.parametrize("layout", ["copies", "chain"])
    def test_K18_flattening(self, tmp_path: Path, agents: Agents, point: str, layout: str) -> None:
        image = Image(tmp_path, "qcow2")
        image = image.with_chain() if layout == "chain" else image.with_snapshots()
        expected = image.content(image.directory / "10")
        self.run(image, agents, "snapshot.flatten", point)
        assert image.file.exists()
        self.run(image, agents, "snapshot.flatten")
        assert image.content(image.file) == expected
        assert image.names == [NAME] and not image.file.is_symlink()

    def test_K18_deleting_the_last_one(self, image: Image, agents: Agents) -> None:
        for snapshot in (0, 9, 123):
            image.run(snapshots.delete, snapshot)
        self.run(image, agents, "snapshot.delete", "delete.renamed")
        self.run(image, agents, "snapshot.delete")
        assert image.names == [NAME]


class TestRules:
    OPERATIONS = (snapshots.revert, snapshots.flatten)

    @pytest.mark.parametrize(
        "backing", ["/etc/passwd", "../../secret", "json:{}", "nbd://h/x", "9", f"../{NAME}0"]
    )
    def test_J6_backing_files_outside_are_not_read(self, chain: Image, backing: str) -> None:
        qcow2(chain.datastore.parent / "secret", "S")
        before = chain.names
        (chain.directory / "9").unlink()
        chain.overlay(chain.directory / "9", backing)
        for operation in self.OPERATIONS:
            for snapshot in (9, 10):
                with pytest.raises((NotAllowed, InvalidInput)):
                    chain.run(operation, snapshot)
        assert chain.names == before and chain.file.is_symlink()

    def test_J6_external_data_files_are_not_read(self, chain: Image) -> None:
        data = chain.datastore.parent / "data"
        path = chain.directory / "7"
        run_qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, "3M")
        for operation in self.OPERATIONS:
            with pytest.raises(NotAllowed, match="external data file"):
                chain.run(operation, 7)

    @pytest.mark.parametrize("odd", ["link", "directory", "fifo"])
    def test_a_snapshot_is_a_regular_file(self, image: Image, odd: str) -> None:
        path = image.directory / "5"
        if odd == "link":
            path.symlink_to(image.other)
        elif odd == "directory":
            path.mkdir()
        else:
            os.mkfifo(path)
        for operation in self.OPERATIONS:
            with pytest.raises(InvalidInput, match="not a regular file"):
                image.run(operation, 5)
        assert image.other.exists()

    def test_trap35_the_recorded_format_counts(self, chain: Image) -> None:
        """A guest can write any header into a raw disk: it is content and nothing else."""
        chain.format = "raw"
        content = (chain.directory / "9").read_bytes()
        chain.run(snapshots.revert, 9)
        assert chain.file.read_bytes() == content

    def test_H7_only_images_of_the_datastore(self, image: Image) -> None:
        double = str(image.datastore).replace("/datastore", "//datastore")
        image.run(snapshots.delete, 0, path=f"{double}//{NAME}", base=double)
        assert not (image.directory / "0").exists()
        for operation in (snapshots.delete, *self.OPERATIONS):
            with pytest.raises(NotAllowed):
                image.run(operation, 9, base=str(image.datastore.parent))

    def test_a_directory_that_leads_elsewhere(self, image: Image) -> None:
        elsewhere = image.datastore.parent / "elsewhere"
        image.directory.rename(elsewhere)
        image.directory.symlink_to(elsewhere)
        for operation in (snapshots.delete, *self.OPERATIONS):
            with pytest.raises(NotAllowed, match="symbolic link"):
                image.run(operation, 9)
        assert len(listing(elsewhere)) == len(SNAPSHOTS)


class TestActions:
    @pytest.mark.parametrize("place", ["IMAGE", "root"])
    def test_what_oned_asks_for(self, fe: FrontEnd, place: str) -> None:
        image = draw(fe.images / "0a", "I")
        for name in SNAPSHOTS:
            draw(fe.images / "0a.snap" / name, PATTERNS[name])
        source = str(image).replace("/datastores", "//datastores")
        expected = (fe.images / "0a.snap" / "123").read_bytes()
        for action in ("snap_revert", "snap_delete", "snap_flatten"):
            target = {"snap_delete": "9"}.get(action, "123")
            message = self.message(fe, source, target, in_image=place == "IMAGE")
            done = fe.run("datastore", action, "4", stdin=message)
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
            assert image.read_bytes() == expected
        assert listing(fe.images) == ["0a"]

    @pytest.mark.parametrize("target", ["-1", "", "x", "1 2", "../0"])
    def test_no_snapshot_is_no_snapshot(self, fe: FrontEnd, target: str) -> None:
        image = draw(fe.images / "0a", "I")
        draw(fe.images / "0a.snap" / "1", "S")
        for action in ("snap_revert", "snap_delete", "snap_flatten"):
            message = self.message(fe, str(image), target)
            line = one_line(fe.run("datastore", action, "4", stdin=message), InvalidInput)
            assert "TARGET_SNAPSHOT" in line
        assert listing(fe.images) == ["0a", "0a.snap", "0a.snap/1"]

    def message(self, fe: FrontEnd, source: str, target: str, *, in_image: bool = True) -> str:
        if in_image:
            return fe.message(SOURCE=source, FORMAT="raw", TARGET_SNAPSHOT=target)
        text = base64.b64decode(fe.message(SOURCE=source, FORMAT="raw")).decode()
        element = f"<TARGET_SNAPSHOT>{target}</TARGET_SNAPSHOT></DS_DRIVER_ACTION_DATA>"
        text = text.replace("</DS_DRIVER_ACTION_DATA>", element)
        return base64.b64encode(text.encode()).decode()
