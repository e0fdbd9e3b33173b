"""agent.chain: the files a disk is made of, with real qemu-img."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from onestor_lib.agent import chain
from onestor_lib.agent.chain import Layer
from onestor_lib.agent.errors import InvalidInput, Missing, NotAllowed

STEP = "look"


def create(path: Path, *options: str) -> Path:
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, str(path), "1M"]
    subprocess.run(argv, check=True)
    return path


def layers(path: Path, within: Path) -> list[Layer]:
    return chain.layers(path, "qcow2", within=within, step=STEP)


def test_a_chain_through_links_with_its_formats(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * (1 << 20))
    create(tmp_path / "middle", "-b", "raw", "-F", "raw")
    (tmp_path / "snap").mkdir()
    create(tmp_path / "snap/top", "-b", "../middle", "-F", "qcow2")
    (tmp_path / "disk").symlink_to("snap/top")
    assert layers(tmp_path / "disk", tmp_path) == [
        Layer(tmp_path / "snap/top", "qcow2"), Layer(tmp_path / "middle", "qcow2"),
        Layer(tmp_path / "raw", "raw"),
    ]  # fmt: skip
    flat = tmp_path / "flat"
    flat.touch()
    chain.flatten(layers(tmp_path / "disk", tmp_path), flat, "qcow2", step=STEP, timeout=60)
    assert layers(flat, tmp_path) == [Layer(flat, "qcow2")]
    argv = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(flat), str(tmp_path / "raw")]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def test_a_file_outside_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    create(tmp_path / "secret")
    create(inside / "top", "-b", str(tmp_path / "secret"), "-F", "qcow2")
    with pytest.raises(NotAllowed, match="outside of"):
        layers(inside / "top", inside)
    (inside / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotAllowed, match="outside of"):
        layers(inside / "link", inside)


@pytest.mark.parametrize("name", ["nbd://host/export", "json:{}", "https://host/image"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    create(tmp_path / "top", "-b", name, "-F", "raw")
    with pytest.raises(NotAllowed, match="its backing file is"):
        layers(tmp_path / "top", tmp_path)


def test_chains_without_an_end_and_with_gaps(tmp_path: Path) -> None:
    create(tmp_path / "one", "-b", "two", "-F", "qcow2")
    with pytest.raises(Missing):
        layers(tmp_path / "one", tmp_path)
    create(tmp_path / "two", "-b", "one", "-F", "qcow2")
    with pytest.raises(InvalidInput, match="has no end"):
        layers(tmp_path / "one", tmp_path)
    (tmp_path / "three").write_bytes(b"no image")
    with pytest.raises(InvalidInput, match="not a qcow2 image"):
        layers(tmp_path / "three", tmp_path)
    with pytest.raises(InvalidInput, match="not a regular file"):
        layers(tmp_path, tmp_path.parent)


def test_a_raw_disk_is_one_file_whatever_its_guest_has_written(tmp_path: Path) -> None:
    create(tmp_path / "disk", "-b", "/etc/passwd", "-F", "raw")
    assert chain.layers(tmp_path / "disk", "raw", within=tmp_path, step=STEP) == [
        Layer(tmp_path / "disk", "raw")
    ]
    assert chain.virtual_size(tmp_path / "disk", "qcow2", step=STEP) == 1 << 20


def test_the_format_of_a_backing_file_is_looked_for_among_the_extensions(tmp_path: Path) -> None:
    create(tmp_path / "below")
    top = create(tmp_path / "top", "-b", "below", "-F", "qcow2")
    format_name = (0xE2792ACA).to_bytes(4, "big")
    header = top.read_bytes()
    assert header.count(format_name) == 1
    top.write_bytes(header.replace(format_name, b"\x12\x34\x56\x78"))  # of which nobody has heard
    assert [layer.image_format for layer in layers(top, tmp_path)] == ["qcow2", "qcow2"]
    create(tmp_path / "odd", "-b", "below", "-F", "vmdk")
    with pytest.raises(NotAllowed, match="the format of its backing file is 'vmdk'"):
        layers(tmp_path / "odd", tmp_path)
