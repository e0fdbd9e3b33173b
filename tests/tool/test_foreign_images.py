"""Images of other hypervisors: their sizes, and that none of them leads to another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestor_lib.agent import image_format
from onestor_lib.agent.errors import InvalidInput, NotAllowed, OnestorError
from tests.tool.conftest import MB, create_encrypted, draw, info, listing, qemu_img
from tests.tool.importing import Importing


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)


def refuse(importing: Importing, match: str, cls: type[OnestorError] = NotAllowed) -> None:
    """stat and cp refuse it, converted or not, and nothing stays."""
    for convert in ("qcow2", ""):
        importing.options |= {"wanted_format": convert, "foreign_to": convert}
        for work in (importing.measure, importing.run):
            with pytest.raises(cls, match=match):
                work()
    assert listing(importing.datastore) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vmdk", []), ("vmdk", ["-o", "subformat=streamOptimized"]), ("vdi", []),
        ("vdi", ["-o", "static=on"]), ("vpc", []), ("vpc", ["-o", "force_size=on"]), ("vhdx", []),
    ],
)  # fmt: skip
def test_H11_the_size_a_guest_sees(importing: Importing, kind: str, options: list[str]) -> None:
    raw = draw(importing.incoming / "raw", "A--B" + "-" * 30, b"x" * 512)
    qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, importing.file)
    expected = info(importing.file, kind)["virtual-size"]
    assert importing.measure() == expected >= 34 * MB
    head = importing.file.read_bytes()[: image_format.HEAD]
    told = image_format.describe(head, 1, step="x", path="x")
    assert told.format == kind
    assert told.virtual_size == (0 if kind == "vhdx" else pytest.approx(expected, rel=0.05))
    assert importing.run() == "qcow2"
    qemu_img("compare", "-f", kind, "-F", "qcow2", importing.file, importing.image)


@pytest.mark.parametrize(
    "subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_J6_a_vmdk_with_external_extents(importing: Importing, subformat: str) -> None:
    qemu_img(
        "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", importing.file, "10M"
    )  # fmt: skip
    refuse(importing, "refers to other files")


def test_J6_a_vmdk_on_another_one(importing: Importing) -> None:
    qemu_img("create", "-q", "-f", "vmdk", importing.incoming / "parent", "10M")
    argv = ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", str(importing.incoming / "parent")]
    qemu_img(*argv, importing.file)
    refuse(importing, "refers to other files")


def test_H27_an_encrypted_qcow2_is_kept_as_it_is(importing: Importing) -> None:
    create_encrypted(importing.file, "aes")  # test_formats.py has that luks is taken for the same
    importing.options["wanted_format"] = "raw"
    assert importing.run() == "qcow2"
    assert importing.image.read_bytes() == importing.file.read_bytes()


@pytest.mark.parametrize("kind", ["qed"])
def test_H25_formats_nobody_needs(importing: Importing, kind: str) -> None:
    qemu_img("create", "-q", "-f", kind, importing.file, "10M")
    refuse(importing, kind, InvalidInput)
