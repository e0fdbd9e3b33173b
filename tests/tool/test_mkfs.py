"""datastore mkfs: empty images and formatted ones, and what is left when one fails."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import process
from onestor_lib.agent import qemu_img as programs
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    CommandFailed,
    InvalidInput,
    Missing,
    NoSpace,
    OnestorError,
    Superseded,
)
from onestor_lib.agent.operations import formatting
from onestor_lib.frontend import message as messages
from onestor_lib.frontend import xml
from onestor_lib.frontend.actions import datastore_mkfs
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import filesystems
from tests.tool.conftest import MB, Agents, Oned, allocated, info, listing, qemu_img, temporaries
from tests.tool.placing import LocalCall, run_and_die
from tests.tool.test_boundary import FrontEnd, fe, one_line

__all__ = ["fe"]

NAME = "0a1b2c"
HOSTILE = ["EXT4", "ext4;id", "$(id)", "`id`", "../ext4", "ext4 -n", "-n", "ext4\nid", "ext.4", "é"]
SIZES = {"ext2": 8, "ext3": 16, "ext4": 16, "xfs": 300}  # MB, the least that each may have


class Making:
    """One image to be made, as the front-end asks for it."""

    def __init__(self, root: Path) -> None:
        self.datastore = root / "datastore"
        self.datastore.mkdir()
        self.image = self.datastore / NAME
        self.options: dict[str, Any] = {
            "size": 16, "image_format": "raw", "filesystem": "", "options": [], "sparse": True,
            "check_space": True, "timeout": 60.0, "require_mount": False,
        }  # fmt: skip
        self.refusal: OnestorError | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        assert question == {"ask": "wanted"}
        assert not self.image.exists()
        if self.refusal:
            raise self.refusal
        return {}

    def run(self, **options: Any) -> Path:
        arguments = {**self.options, **options}
        formatting.make(LocalCall(self.answer), base=str(self.datastore), name=NAME, **arguments)
        assert listing(self.datastore) == [NAME]
        assert self.image.stat().st_mode & 0o777 == 0o660
        return self.image


@pytest.fixture
def making(tmp_path: Path) -> Making:
    return Making(tmp_path)


@pytest.fixture
def nothing_stays(making: Making) -> Iterator[None]:
    yield
    assert listing(making.datastore) == []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of all programs."""
    calls: list[list[str]] = []
    run = process.run

    def note(argv: list[str], **options: Any) -> process.Result:
        calls.append(argv)
        return run(argv, **options)

    monkeypatch.setattr(process, "run", note)
    return calls


def kind(image: Path, image_format: str) -> str:
    """The file system that is in an image, as blkid sees it."""
    raw = image
    if image_format == "qcow2":
        raw = image.with_name("plain")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    done = subprocess.run(
        ["/usr/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", raw],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    if raw != image:
        raw.unlink()
    return done.stdout.strip()


class TestImages:
    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    @pytest.mark.parametrize("sparse", [True, False])
    def test_C4_an_image_without_a_file_system(
        self, making: Making, image_format: str, sparse: bool
    ) -> None:
        image = making.run(image_format=image_format, sparse=sparse)
        found = info(image)
        assert (found["format"], found["virtual-size"]) == (image_format, 16 * MB)
        assert (allocated(image) >= 16 * MB) is not sparse

    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    @pytest.mark.parametrize("filesystem", sorted(SIZES))
    def test_H5_the_file_system_is_the_one_that_was_asked_for(
        self, making: Making, filesystem: str, image_format: str
    ) -> None:
        size = SIZES[filesystem]
        image = making.run(size=size, image_format=image_format, filesystem=filesystem)
        assert info(image)["format"] == image_format
        assert info(image)["virtual-size"] == size * MB
        assert kind(image, image_format) == filesystem
        assert allocated(image) < size * MB

    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    def test_C4_SPARSE_NO_allocates_behind_mkfs_too(
        self, making: Making, image_format: str
    ) -> None:
        image = making.run(image_format=image_format, filesystem="ext4", sparse=False)
        assert kind(image, image_format) == "ext4"
        assert allocated(image) >= 16 * MB

    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    def test_swap(self, making: Making, image_format: str) -> None:
        assert kind(making.run(image_format=image_format, filesystem="swap"), image_format) == (
            "swap"
        )

    def test_options_are_words_of_the_command_line(
        self, making: Making, started: list[list[str]]
    ) -> None:
        image = making.run(filesystem="ext4", options=["-L", "a $(b) 'c'"])
        assert started[0][:-1] == ["mkfs.ext4", "-F", "-L", "a $(b) 'c'"]
        done = subprocess.run(
            ["/usr/sbin/blkid", "-p", "-o", "value", "-s", "LABEL", image],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout == "a $(b) 'c'\n"

    def test_the_first_image_makes_the_datastore_s_directory(self, making: Making) -> None:
        making.datastore.rmdir()
        making.run()


@pytest.mark.usefixtures("nothing_stays")
class TestFailures:
    @pytest.mark.parametrize("image_format", ["raw", "qcow2"])
    @pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "touch seen; read answer; exit 4"])
    def test_H3_H5_a_failing_mkfs_fails_the_action(
        self, making: Making, monkeypatch: pytest.MonkeyPatch, how: str, image_format: str
    ) -> None:
        """Also one that asks something: nobody answers, it does not hang."""
        programs = making.datastore.parent / "bin"
        programs.mkdir()
        (programs / "mkfs.ext4").write_text(f"#!/bin/bash\necho no luck >&2\n{how}\n")
        (programs / "mkfs.ext4").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.chdir(programs)
        with pytest.raises(CommandFailed, match=r"format with ext4: mkfs\.ext4: no luck"):
            making.run(filesystem="ext4", image_format=image_format)

    @pytest.mark.parametrize("filesystem", ["befs", "swapx"])
    def test_K12_a_missing_mkfs_is_named(self, making: Making, filesystem: str) -> None:
        with pytest.raises(CommandFailed, match=f"mkfs.{filesystem} is not installed"):
            making.run(filesystem=filesystem)

    def test_H5_a_file_system_for_which_the_image_is_too_small(self, making: Making) -> None:
        with pytest.raises(CommandFailed, match="format with xfs"):
            making.run(size=1, filesystem="xfs")

    def test_H3_a_failing_conversion(self, making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise CommandFailed("convert", "failed")

        monkeypatch.setattr(programs, "convert", fail)
        with pytest.raises(CommandFailed):
            making.run(filesystem="ext4", image_format="qcow2")

    def test_H6_an_image_nobody_wants_any_more(self, making: Making) -> None:
        making.refusal = Superseded("x", "deleted")
        with pytest.raises(Superseded):
            making.run()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_J1_the_agent_takes_no_other_names_either(
        self, making: Making, started: list[list[str]], name: str
    ) -> None:
        with pytest.raises(InvalidInput, match="is no name of a file system"):
            making.run(filesystem=name)
        assert started == []

    def test_I10_not_without_its_mount(self, making: Making) -> None:
        with pytest.raises(Missing, match="REQUIRE_MOUNT"):
            making.run(require_mount=True)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("check_space", [True, False])
def test_C1_C8_a_full_datastore(
    tmp_path: Path, small: Path, check_space: bool, image_format: str
) -> None:
    making = Making(tmp_path)
    making.datastore = small / "1"
    making.options |= {"size": 30, "check_space": check_space, "image_format": image_format}
    with pytest.raises(NoSpace if check_space or image_format == "raw" else OnestorError):
        making.run(sparse=False)
    assert listing(small) in (["1", "lost+found"], ["lost+found"])


@pytest.mark.parametrize(
    "point", ["publish.created", "publish.synced", "publish.linked", "publish.done"]
)
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_K18_making_an_image_killed_and_repeated(
    making: Making, agents: Agents, point: str, image_format: str
) -> None:
    arguments = {"base": str(making.datastore), **making.options, "image_format": image_format}
    arguments |= {"filesystem": "ext4"}

    def make(agent: AgentClient, name: str) -> None:
        agent.call("image.make", on_ask=lambda question: {}, name=name, **arguments)

    run_and_die(agents, point, lambda agent: make(agent, NAME))
    if making.image.exists():
        assert kind(making.image, image_format) == "ext4"
    with agents.start() as agent:
        make(agent, f"{NAME}0")  # the next try has another name: the time is in it
    assert temporaries(making.datastore) == []
    assert kind(making.datastore / f"{NAME}0", image_format) == "ext4"


class TestChoice:
    """What FORMAT, FS and FSTYPE mean, and which file systems are supported."""

    @pytest.fixture
    def conf(self, tmp_path: Path) -> Path:
        path = tmp_path / "etc" / "datastore" / "datastore.conf"
        path.parent.mkdir(parents=True)
        return path

    def choose(self, name: str, tmp_path: Path, default: str = "") -> tuple[Any, str]:
        said = io.StringIO()
        log = Log("mkfs", stderr=said)
        return filesystems.choose(name, tmp_path, log, default=default), said.getvalue()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_J1_FS_is_a_name(self, tmp_path: Path, conf: Path, name: str) -> None:
        conf.write_text(f"SUPPORTED_FS='{name}'\n")
        for default in ("", "ext4"):
            with pytest.raises(InvalidInput, match=r"FS is .*, not a name"):
                self.choose(name, tmp_path, default)

    def test_J1_SUPPORTED_FS(self, tmp_path: Path, conf: Path) -> None:
        for name in ("ext4", "ext3", "ext2", "xfs", "swap", ""):
            assert self.choose(name, tmp_path) == ((name, []), "")
        with pytest.raises(InvalidInput, match="FS=btrfs is not in SUPPORTED_FS=ext4,ext3,ext2,x"):
            self.choose("btrfs", tmp_path)
        conf.write_text("SUPPORTED_FS=xfs\nif x; then\nexport SUPPORTED_FS=ext4,btrfs # ours\nfi\n")
        assert self.choose("btrfs", tmp_path) == (("btrfs", []), "")
        with pytest.raises(InvalidInput, match="FS=xfs is not in SUPPORTED_FS=ext4,btrfs"):
            self.choose("xfs", tmp_path)

    def test_J1_a_default_takes_the_place_of_what_is_not_supported(self, tmp_path: Path) -> None:
        found, said = self.choose("befs", tmp_path, "ext4")
        assert found.name == "ext4"
        assert said.startswith("WARN: mkfs: FS=befs is not in SUPPORTED_FS=")
        assert self.choose("xfs", tmp_path, "ext4") == (("xfs", []), "")

    def test_FS_OPTS(self, tmp_path: Path, conf: Path) -> None:
        conf.write_text("FS_OPTS_ext4=\"-L 'a b' -m 0\"\nFS_OPTS_XFS='-K'\nFS_OPTS_ext2=\"'\"\n")
        assert self.choose("xfs", tmp_path)[0].options == ["-K"]
        assert self.choose("ext3", tmp_path)[0].options == []
        assert self.choose("ext4", tmp_path)[0].options == ["-L", "a b", "-m", "0"]
        with pytest.raises(InvalidInput, match="FS_OPTS_ext2"):
            self.choose("ext2", tmp_path)

    @pytest.mark.parametrize(
        ("elements", "expected"),
        [
            ({"FORMAT": "raw"}, ("raw", "")),
            ({"FORMAT": "qcow2", "FS": "xfs"}, ("qcow2", "xfs")),
            ({"FORMAT": "swap"}, ("raw", "swap")),
            ({"FORMAT": "raw", "FS": "swap"}, ("raw", "swap")),
            ({"FORMAT": "save_as", "FS": "ext4"}, ("save_as", "ext4")),
            ({"FSTYPE": "save_as"}, ("save_as", "")),
            ({"FSTYPE": "qcow2"}, ("qcow2", "")),
            ({"FSTYPE": "raw"}, ("raw", "")),
            ({"FSTYPE": "swap"}, ("raw", "swap")),
            ({"FSTYPE": "ext3"}, ("raw", "ext3")),
            ({"FSTYPE": "ext3", "DRIVER": "qcow2"}, ("qcow2", "ext3")),
            ({"FS": "ext4", "DRIVER": "qcow2"}, ("qcow2", "ext4")),
            ({}, ("raw", "")),
        ],
    )
    def test_formats_of_all_versions(
        self, elements: dict[str, str], expected: tuple[str, str]
    ) -> None:
        assert datastore_mkfs._wanted(self.message(elements)) == expected

    @pytest.mark.parametrize("word", ["vmdk", "raw;id", "ext4"])
    def test_J1_other_formats_are_refused(self, word: str) -> None:
        with pytest.raises(InvalidInput, match="FORMAT is"):
            datastore_mkfs._wanted(self.message({"FORMAT": word}))

    def message(self, elements: dict[str, str]) -> messages.Message:
        driver = elements.get("DRIVER", "")
        text = "".join(
            f"<{tag}>{word}</{tag}>" for tag, word in elements.items() if tag != "DRIVER"
        )
        document = (
            f"<DS_DRIVER_ACTION_DATA><IMAGE>{text}<TEMPLATE><DRIVER>{driver}</DRIVER></TEMPLATE>"
            "</IMAGE><DATASTORE/></DS_DRIVER_ACTION_DATA>"
        )
        return messages.Message(xml.parse(document.encode(), "the message"), 1)


class TestAction:
    def run(self, fe: FrontEnd, template: str = "", **image: str) -> Any:
        facts = {"ID": "4", "SIZE": "16", "FORMAT": "raw", **image}
        return fe.run("datastore", "mkfs", "4", stdin=fe.message(template, **facts))

    def test_trap3_the_answer_is_the_source_and_nothing_more(self, fe: FrontEnd) -> None:
        done = self.run(fe, FS="ext4")
        assert done.returncode == 0, done.stderr
        (name,) = listing(fe.images)
        assert done.stdout == f"{fe.root}//datastores/1/{name}\n"
        assert kind(fe.images / name, "raw") == "ext4"

    def test_save_as_makes_nothing(self, fe: FrontEnd) -> None:
        done = self.run(fe, FORMAT="save_as", SIZE="0")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{fe.root}//datastores/1/")
        assert listing(fe.images) == []

    def test_J1_hostile_names_start_nothing(self, fe: FrontEnd) -> None:
        for name in ("EXT4", "ext4;touch x", "befs"):
            assert name in one_line(self.run(fe, FS=name), InvalidInput)
        assert "SIZE is 0" in one_line(self.run(fe, SIZE="0"), InvalidInput)
        assert listing(fe.images) == []

    def test_H6_an_image_deleted_meanwhile(self, fe: FrontEnd, oned: Oned) -> None:
        del oned.answers["image", 4]
        assert "was deleted meanwhile" in one_line(self.run(fe), Superseded)
        assert listing(fe.images) == []

    def test_the_datastore_s_settings_count(self, fe: FrontEnd) -> None:
        fe.configure("datastore", "UNSUPPORTED_FS_DEFAULT=ext2")
        done = self.run(fe, "<SPARSE>NO</SPARSE>", FS="befs")
        assert done.returncode == 0, done.stderr
        assert "WARN: mkfs: FS=befs is not in" in done.stderr
        (name,) = listing(fe.images)
        assert kind(fe.images / name, "raw") == "ext2"
        assert allocated(fe.images / name) >= 16 * MB
