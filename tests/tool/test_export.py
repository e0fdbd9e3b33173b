"""datastore export: what a marketplace is told, and how often an image is read for that."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import companions, extents, publish
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import (
    HostUnreachable,
    InvalidInput,
    Missing,
    NotAllowed,
    TransferFailed,
)
from onestor_lib.agent.operations import exporting
from onestor_lib.frontend import config, xml
from onestor_lib.frontend.actions import datastore_export, datastore_monitor, datastore_rm
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import replicas
from onestor_lib.frontend.services.hosts import Hosts
from tests.tool.conftest import MB, draw, listing, qcow2, qemu_img
from tests.tool.placing import LocalCall
from tests.tool.test_boundary import FrontEnd, fe, one_line

__all__ = ["fe"]

NAME = "0a1b2c"


class Image:
    def __init__(self, root: Path) -> None:
        self.datastore = root / "datastore"
        self.file = draw(self.datastore / NAME, "A-B", b"tail")
        self.read = 0

    def identify(self, image_format: str = "raw", base: Path | None = None) -> Any:
        return exporting.identify(
            LocalCall(lambda question: {}), path=str(self.file), base=str(base or self.datastore),
            image_format=image_format,
        )  # fmt: skip

    def md5(self) -> str:
        return hashlib.md5(self.file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    found = Image(tmp_path)
    read_exactly = extents.read_exactly

    def count(fd: int, size: int, offset: int) -> bytes:
        block = read_exactly(fd, size, offset)
        found.read += len(block)
        return block

    monkeypatch.setattr(extents, "read_exactly", count)
    return found


def test_H26_an_unchanged_image_is_read_once(image: Image) -> None:
    first = image.identify()
    assert first == {"md5": image.md5(), "size": 3 * MB + 4}
    assert image.read == 3 * MB + 4
    image.read = 0
    assert image.identify() == first
    assert image.read == 0
    assert listing(image.datastore) == [f".{NAME}.md5", NAME]


@pytest.mark.parametrize("change", ["content", "time", "another file"])
def test_H26_a_changed_image_has_another_digest(image: Image, change: str) -> None:
    first = image.identify()
    if change == "content":
        image.file.write_bytes(b"other")
    elif change == "time":
        os.utime(image.file, ns=(1, 1))
    else:
        publish.write_file(image.file, image.file.read_bytes()[:-1] + b"x")
    image.read = 0
    found = image.identify()
    assert found["md5"] == image.md5() and image.read
    assert (found == first) is (change == "time")
    image.read = 0
    assert image.identify() == found and not image.read


@pytest.mark.parametrize("damage", [b"", b"x", b"[]", b'{"md5": 1}', b"[" * 99999])
def test_H26_a_damaged_note_is_no_note(image: Image, damage: bytes) -> None:
    companions.digest(image.file).write_bytes(damage)
    assert image.identify()["md5"] == image.md5()


def test_H26_a_note_with_something_else_in_the_place_of_the_digest(image: Image) -> None:
    image.identify()
    note = companions.digest(image.file)
    note.write_text(note.read_text().replace(image.md5(), "]]>"))
    assert image.identify()["md5"] == image.md5()


def test_a_datastore_that_takes_no_note(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "write_file", fail)
    assert image.identify()["md5"] == image.md5()
    assert listing(image.datastore) == [NAME]


@pytest.mark.parametrize("replaced", [True, False])
def test_A13_an_image_that_changes_while_it_is_read(image: Image, replaced: bool) -> None:
    class Changing(LocalCall):
        def progress(self, done: int, total: int) -> None:
            if replaced:
                publish.write_file(image.file, b"new")
            else:
                os.utime(image.file, ns=(1, 1))

    with pytest.raises(TransferFailed, match="changed"):
        exporting.identify(
            Changing(lambda question: {}), path=str(image.file), base=str(image.datastore),
            image_format="raw",
        )  # fmt: skip
    assert listing(image.datastore) == [NAME]


def test_H11_the_virtual_size_counts(image: Image) -> None:
    image.file.unlink()
    qcow2(image.file, "A--")
    assert image.identify("qcow2")["size"] == 3 * MB
    assert image.identify("raw")["size"] == image.file.stat().st_size


def test_what_is_no_image_of_the_datastore(image: Image) -> None:
    with pytest.raises(NotAllowed):
        image.identify(base=image.datastore.parent)
    base = image.datastore / "base"
    image.file.rename(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image.file)
    with pytest.raises(NotAllowed, match="backing file"):
        image.identify("qcow2")
    image.file.unlink()
    with pytest.raises(Missing):
        image.identify()


class TestAction:
    @pytest.mark.parametrize(("size", "answer"), [(1, "1"), (MB, "1"), (MB + 1, "2")])
    def test_H11_the_answer(self, fe: FrontEnd, size: int, answer: str) -> None:
        (fe.images / "0a").write_bytes(b"x" * size)
        source = str(fe.images / "0a")
        message = fe.message(SOURCE=source.replace("/datastores", "//datastores"), FORMAT="raw")
        done = fe.run("datastore", "export", "4", stdin=message)
        assert (done.returncode, done.stderr) == (0, "")
        digest = hashlib.md5(b"x" * size, usedforsecurity=False).hexdigest()
        expected = {
            "IMPORT_SOURCE": source, "MD5": digest, "SIZE": answer, "FORMAT": "raw",
            "DISPOSE": "NO",
        }  # fmt: skip
        found = xml.parse(done.stdout.encode(), "the answer")
        assert found.tag == "IMPORT_INFO"
        assert {tag: found.text(tag) for tag in expected} == expected

    @pytest.mark.parametrize("image_format", ["vmdk", "x]]>"])
    def test_other_formats_are_refused(self, fe: FrontEnd, image_format: str) -> None:
        image = draw(fe.images / "0a", "A")
        message = fe.message(SOURCE=str(image), FORMAT=image_format)
        one_line(fe.run("datastore", "export", "4", stdin=message), InvalidInput)


class TestBridges:
    """A datastore on a bridge host: an agent of this machine under another name."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        hosts_asked: list[str] = []

        @contextlib.contextmanager
        def agent(hosts: Hosts, host: str, **options: Any) -> Iterator[AgentClient]:
            hosts_asked.append(host)
            if host == "down":
                raise HostUnreachable("start the agent", "no route", host=host)
            with hosts.local_agent() as found:
                found.host = host
                yield found

        monkeypatch.setattr(Hosts, "agent", agent)
        monkeypatch.setattr(replicas, "known", lambda request: [])
        return hosts_asked

    def request(self, fe: FrontEnd, action: str, source: Path) -> Request:
        message = fe.message("<BRIDGE_LIST>down b1</BRIDGE_LIST>", ID="4", SOURCE=str(source))
        settings = config.Settings(config.DATASTORE_ATTRIBUTES, {})
        log = Log(action, stderr=io.StringIO())
        return Request("datastore", action, ["4"], io.BytesIO(message.encode()), settings, log)

    def test_C11_the_first_bridge_host_that_answers(self, fe: FrontEnd, asked: list[str]) -> None:
        image = draw(fe.images / "0a", "A")
        answer = datastore_export.run(self.request(fe, "export", image))
        found = xml.parse(answer.encode(), "the answer")
        assert found.text("IMPORT_SOURCE") == f"ssh://b1:{image}"
        assert datastore_monitor.run(self.request(fe, "monitor", image)).startswith("USED_MB=")
        datastore_rm.run(self.request(fe, "rm", image))
        assert not image.exists()
        datastore_rm.run(self.request(fe, "rm", image))
        assert "down" in asked and "b1" in asked


class TestDocument:
    def test_texts_come_back_as_they_were(self) -> None:
        texts = {"A": "a <b> & 'c' \"d\" ü €", "B": "", "C": "]]", "D": " x "}
        found = xml.parse(xml.document("ROOT", list(texts.items())).encode(), "it")
        assert found.tag == "ROOT"
        assert {tag: found.text(tag) for tag in texts} == {**texts, "D": "x"}

    @pytest.mark.parametrize("text", ["a]]>b", "\x01", "\x00", "\udc80"])
    def test_J2_what_XML_cannot_carry_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput, match="write TAG"):
            xml.document("ROOT", [("TAG", text)])
