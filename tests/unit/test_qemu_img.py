"""agent.qemu_img: the exact command lines. Their effect: tests/tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import process, qemu_img
from onestor_lib.agent.errors import CommandFailed, NotAllowed

A, B = Path("/d/a"), Path("/d/b")


class Programs:
    def __init__(self) -> None:
        self.argv: list[str] = []
        self.options: dict[str, Any] = {}
        self.status, self.stdout = 0, b'{"virtual-size": 1024, "children": [{"virtual-size": 1}]}'

    def run(self, argv: Sequence[str], **options: Any) -> process.Result:
        self.argv, self.options = list(argv), options
        return process.Result(tuple(argv), self.status, self.stdout, b"why", False, 1.0)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs()
    monkeypatch.setattr(process, "run", found.run)
    return found


def test_C7_H11_virtual_size(programs: Programs) -> None:
    assert qemu_img.virtual_size(A, "qcow2", step="x") == 1024
    assert programs.argv == ["qemu-img", "info", "--output=json", "-f", "qcow2", "/d/a"]
    assert programs.options["limits"] == process.Limits(), "images come from outside (J15)"


@pytest.mark.parametrize("stdout", [b"", b"[]", b"{}", b'{"virtual-size": "1"}', b"\xff"])
def test_answers_of_another_shape_are_a_failure(programs: Programs, stdout: bytes) -> None:
    programs.stdout = stdout
    with pytest.raises(
        CommandFailed, match=r"^x /d/a: qemu-img info gave no (virtual size|JSON object)"
    ):
        qemu_img.virtual_size(A, "raw", step="x")


@pytest.mark.parametrize(
    "facts",
    [
        {"backing-filename": "x"},
        {"full-backing-filename": "/x"},
        {"format-specific": {"type": "qcow2", "data": {"data-file": "x"}}},
        {"format-specific": {"type": "vmdk", "data": {"extents": [{"filename": "x"}]}}},
    ],
)
def test_J6_an_image_that_names_another_file_is_refused(
    programs: Programs, facts: dict[str, Any]
) -> None:
    programs.stdout = json.dumps({"virtual-size": 1024, "filename": "/d/a", **facts}).encode()
    with pytest.raises(NotAllowed, match=r"^x /d/a: the image refers to another file"):
        qemu_img.virtual_size(A, "qcow2", step="x")


def test_H11_a_vmdk_of_one_file_names_itself(programs: Programs) -> None:
    extents = [{"filename": "/d/a", "virtual-size": 5}]
    details = {"type": "vmdk", "data": {"extents": extents}}
    facts = {"virtual-size": 1024, "filename": "/d/a", "format-specific": details}
    programs.stdout = json.dumps(facts).encode()
    assert qemu_img.virtual_size(A, "vmdk", step="x") == 1024


def test_C7_grow(programs: Programs) -> None:
    qemu_img.grow(A, "raw", 4096, step="x")
    assert programs.argv == ["qemu-img", "resize", "-q", "-f", "raw", "/d/a", "4096"]


@pytest.mark.parametrize(
    ("options", "how"),
    [([], []), (["cluster_size=2M", "compat=1.1"], ["-o", "cluster_size=2M,compat=1.1"])],
)
def test_C5_C7_create_overlay(programs: Programs, options: list[str], how: list[str]) -> None:
    qemu_img.create_overlay(A, "disk.0.base", 4096, options, step="x")
    backing = ["-u", "-b", "disk.0.base", "-F", "qcow2"]
    assert programs.argv == [
        "qemu-img", "create", "-q", "-f", "qcow2", *backing, *how, "/d/a", "4096"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"allocate": False}, []),
        ({"allocate": True}, ["-o", "preallocation=falloc", "-S", "0"]),
        ({"allocate": False, "options": ["cluster_size=4096"]}, ["-o", "cluster_size=4096"]),
        (
            {"allocate": True, "options": ["cluster_size=4096", "compat=1.1"]},
            ["-o", "cluster_size=4096,compat=1.1,preallocation=falloc", "-S", "0"],
        ),
    ],
)
def test_C7_convert(programs: Programs, options: dict[str, Any], how: list[str]) -> None:
    qemu_img.convert(A, "raw", B, "qcow2", step="x", timeout=9, **options)
    formats = ["-f", "raw", "-O", "qcow2"]
    assert programs.argv == ["qemu-img", "convert", "-q", *formats, *how, "/d/a", "/d/b"]
    assert programs.options["timeout"] == 9


def test_C6_failures_name_their_step(programs: Programs) -> None:
    programs.status = 1
    with pytest.raises(CommandFailed, match=r"^resize disk /d/a: qemu-img: why"):
        qemu_img.grow(A, "raw", 1, step="resize disk")
    with pytest.raises(CommandFailed, match=r"^inspect disk /d/a: qemu-img: why"):
        qemu_img.virtual_size(A, "raw", step="inspect disk")
    with pytest.raises(CommandFailed, match=r"^convert image /d/b: qemu-img: why"):
        qemu_img.convert(A, "raw", B, "raw", allocate=False, step="convert image", timeout=9)
