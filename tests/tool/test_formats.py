"""Images as qemu-img makes them: their sizes, and that none of them leads to another file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from onestor_lib.agent import image_format, qemu_img
from onestor_lib.agent.errors import CommandFailed, InvalidInput, NotAllowed
from onestor_lib.agent.image_format import Description
from tests.tool.conftest import MB, create_encrypted, draw, info
from tests.tool.conftest import qemu_img as run_qemu_img

REFERS = r"refers? to"


def describe(file: Path) -> Description:
    with file.open("rb") as opened:
        head = opened.read(image_format.HEAD)
    return image_format.describe(head, file.stat().st_size, step="stat", path=str(file))


def create(file: Path, kind: str, *options: str, size: str = "34M") -> Path:
    run_qemu_img("create", "-q", "-f", kind, *options, file, size)
    return file


def change(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("vmdk", ""), ("vmdk", "subformat=streamOptimized"), ("vdi", ""), ("vdi", "static=on"),
        ("vpc", ""), ("vpc", "force_size=on"), ("vhdx", ""),
        ("qcow2", ""), ("qcow2", "compat=0.10"),
    ],
)  # fmt: skip
def test_H11_the_size_a_guest_sees(image: Path, kind: str, option: str) -> None:
    raw = draw(image.with_name("raw"), "A--B" + "-" * 30)
    options = ["-o", option] if option else []
    run_qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, image)
    size = info(image, kind)["virtual-size"]
    assert describe(image) == Description(kind, 0 if kind == "vhdx" else size)
    assert qemu_img.virtual_size(image, kind, step="x") == size >= 34 * MB


@pytest.mark.parametrize(
    "subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_J6_a_vmdk_with_external_extents(image: Path, subformat: str) -> None:
    create(image, "vmdk", "-o", f"subformat={subformat}")
    for file in image.parent.iterdir():
        if file == image or "flat" not in subformat.lower():
            with pytest.raises(NotAllowed, match=REFERS):
                describe(file)
    with pytest.raises(NotAllowed, match="refers to another file"):
        qemu_img.virtual_size(image, "vmdk", step="x")


@pytest.mark.parametrize("kind", ["vmdk", "qcow2"])
def test_J6_an_image_on_another_one(image: Path, kind: str) -> None:
    parent = create(image.with_name("parent"), kind)
    run_qemu_img("create", "-q", "-f", kind, "-F", kind, "-b", parent, image)
    with pytest.raises(NotAllowed, match=REFERS):
        describe(image)
    with pytest.raises(NotAllowed, match="refers to another file"):
        qemu_img.virtual_size(image, kind, step="x")


@pytest.mark.parametrize(
    "options",
    [["-u", "-F", "raw", "-b", 'json:{"driver":"file","filename":"/etc/passwd"}'],
     ["-o", "data_file=IMAGE.data"]],
    ids=["json", "data file"],
)  # fmt: skip
def test_J6_a_qcow2_that_names_another_file(image: Path, options: list[str]) -> None:
    create(image, "qcow2", *(word.replace("IMAGE", str(image)) for word in options))
    with pytest.raises(NotAllowed, match=REFERS):
        describe(image)
    with pytest.raises(NotAllowed, match="refers to another file"):
        qemu_img.virtual_size(image, "qcow2", step="x")


@pytest.mark.parametrize("how", ["behind a word", "behind the descriptor", "beside the descriptor"])
def test_J6_what_qemu_takes_for_a_parent_is_one(image: Path, how: str) -> None:
    """It finds the name where a reader of lines, or of the header, would not look."""
    parent = create(image.with_name("parent"), "vmdk")
    create(image, "vmdk")
    descriptor = image.read_bytes()[512 : 512 + 20 * 512].rstrip(b"\0")
    hint = b'parentFileNameHint="%s"\n' % bytes(parent)
    if how == "behind a word":
        change(image, 512, descriptor + b"x " + hint)
    elif how == "behind the descriptor":
        change(image, 36, (2).to_bytes(8, "little"))
        change(image, 512, descriptor.ljust(1024, b"\n") + hint)
    else:
        change(image, 28, (60).to_bytes(8, "little"))
        change(image, 60 * 512, descriptor)
        change(image, 512, descriptor + b"\n" + hint)
    assert info(image, "vmdk")["backing-filename"] == str(parent)
    with pytest.raises(NotAllowed, match=REFERS):
        describe(image)
    with pytest.raises(NotAllowed, match="refers to another file"):
        qemu_img.virtual_size(image, "vmdk", step="x")


def test_J6_a_vmdk_without_capacity_is_a_list_of_files(image: Path) -> None:
    change(create(image, "vmdk"), 12, bytes(8))
    with pytest.raises(NotAllowed, match=REFERS):
        describe(image)


@pytest.mark.parametrize(
    ("kind", "offset", "data"),
    [
        ("vdi", 76, b"\x04"), ("vdi", 424, b"x" * 16), ("vdi", 440, b"x" * 16),
        ("vpc", 63, b"\x04"),
    ],
)  # fmt: skip
def test_J6_disks_that_differ_from_another_one(
    image: Path, kind: str, offset: int, data: bytes
) -> None:
    change(create(image, kind), offset, data)
    with pytest.raises(NotAllowed, match="refers to another one"):
        describe(image)


@pytest.mark.parametrize("kind", ["aes", "luks"])
def test_H27_an_encrypted_qcow2_is_not_convertible(image: Path, kind: str) -> None:
    create_encrypted(image, kind)
    assert describe(image) == Description("qcow2", MB, convertible=False)


def test_H25_qed_is_refused_by_name(image: Path) -> None:
    with pytest.raises(InvalidInput, match="qed image"):
        describe(create(image, "qed"))


@pytest.mark.parametrize(
    ("name", "argv"),
    [("tar", ["tar", "-cf"]), ("tar", ["tar", "--format=pax", "-cf"])],
)  # fmt: skip
def test_H25_archives_are_refused(image: Path, name: str, argv: list[str]) -> None:
    draw(image.with_name("inner"), "A")
    subprocess.run([*argv, str(image), "inner"], check=True, cwd=image.parent)
    with pytest.raises(InvalidInput, match=f"{name} archive; archives are not supported"):
        describe(image)


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vpc", "vhdx", "qcow2"])
@pytest.mark.parametrize("keep", [4, 40, 70, 103, 400, 512, 4096])
def test_J15_a_cut_off_image_is_described_or_refused(image: Path, kind: str, keep: int) -> None:
    content = create(image, kind).read_bytes()
    image.write_bytes(content[:keep])
    try:
        found = describe(image)
        assert qemu_img.virtual_size(image, found.format, step="x") >= found.virtual_size
    except (InvalidInput, NotAllowed, CommandFailed) as error:
        assert error.path == str(image)
