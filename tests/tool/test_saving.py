"""The datastore's part of saving a disk: what comes is looked at before it is an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.errors import TransferFailed
from onestor_lib.agent.operations import saving
from tests.tool.conftest import draw, listing
from tests.tool.placing import BULK, LocalCall, send

pytestmark = pytest.mark.usefixtures("payload")

Harm = Callable[[Path, dict[str, Any]], None]


def cut_short(manifest: Path, answer: dict[str, Any]) -> None:
    manifest.write_bytes(manifest.read_bytes()[:-1])


def of_something_else(manifest: Path, answer: dict[str, Any]) -> None:
    content = manifest.read_bytes()
    manifest.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def empty(manifest: Path, answer: dict[str, Any]) -> None:
    manifest.write_bytes(b"")


def another_digest(manifest: Path, answer: dict[str, Any]) -> None:
    answer["digest"] = "0" * len(answer["digest"])


def replace(root: Path, harm: Harm, more: int = 0) -> Path:
    """Let an image be replaced by a disk that has ``more`` bytes by what the host said of it."""
    image, disk = draw(root / "datastore/0a1b", "OLD"), draw(root / "vm/disk.0", "A-B", b"tail")

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["ask"] != "content":
            return {}
        manifest = Path(question["manifest"])
        found = send(disk, Path(question["temporary"]), manifest=str(manifest))
        harm(manifest, found)
        return found

    saving.replace(
        LocalCall(answer), path=str(image), base=str(image.parent),
        size=disk.stat().st_size + more, allocated=0, snapshots={}, sparse=True,
        check_space=False, returned_from=None, bulk=BULK,
    )  # fmt: skip
    return image


@pytest.mark.parametrize("harm", [cut_short, of_something_else, empty, another_digest])
def test_A8_what_is_not_as_its_manifest_says_replaces_no_image(tmp_path: Path, harm: Harm) -> None:
    with pytest.raises(TransferFailed, match="it is not all there"):
        replace(tmp_path, harm)
    assert (tmp_path / "datastore/0a1b").read_bytes() == b"".join(
        letter * CHUNK for letter in (b"O", b"L", b"D")
    )
    assert listing(tmp_path / "datastore") == ["0a1b"]


@pytest.mark.parametrize("more", [-4, -1, 1, CHUNK])
def test_A8_a_disk_of_another_size_than_was_said_replaces_no_image(
    tmp_path: Path, more: int
) -> None:
    with pytest.raises(TransferFailed, match="it is not all there"):
        replace(tmp_path, lambda manifest, answer: None, more)
    assert listing(tmp_path / "datastore") == ["0a1b"]


def test_A8_what_is_as_its_manifest_says_replaces_the_image(tmp_path: Path) -> None:
    image = replace(tmp_path, lambda manifest, answer: None)
    assert image.read_bytes() == (tmp_path / "vm/disk.0").read_bytes()
    assert listing(tmp_path / "datastore") == [".0a1b.manifest", "0a1b"]
