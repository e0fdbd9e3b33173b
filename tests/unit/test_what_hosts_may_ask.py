"""A host says where it wants content: beside what it was told of, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onestor_lib.agent.errors import NotAllowed
from onestor_lib.agent.publish import temporary_name
from onestor_lib.frontend import arguments, config
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import vms
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.origin import Origin
from onestor_lib.frontend.services.saving import Saving
from onestor_lib.frontend.services.warming import _Chain

DISK = arguments.vm_path("host01:/d/100/7/disk.0", 7)
NEW, IMAGE = temporary_name("disk.0"), temporary_name("0a")


def test_of_a_disk() -> None:
    path = f"/d/100/7/{NEW}"
    assert vms.require_temporary(path, DISK) == path


# Names of temporaries differ each time; those of tests must not.
NAMES = {"new": NEW, "image": IMAGE}


@pytest.mark.parametrize(
    "path",
    [
        "/d/100/7/disk.0",
        "/d/100/7/disk.1",
        "/d/100/8/{new}",
        "/d/100/7/../8/{new}",
        "{new}",
    ],
)
def test_of_something_else_than_a_disk(path: str) -> None:
    with pytest.raises(NotAllowed, match="the host asks for what it must not have"):
        vms.require_temporary(path.format(**NAMES), DISK)


def ask_for_a_save(temporary: str, item: str = "image") -> None:
    saving: Any = SimpleNamespace(source="/d/1/0a")
    manifest = f"/d/1/{IMAGE}/{IMAGE}"
    question = {"temporary": temporary.format(**NAMES), "manifest": manifest, "item": item}
    Saving._require_allowed(saving, question, "host01", {"image": 1})


@pytest.mark.parametrize("path", ["/d/1/{image}/{new}", "/d/1/{image}/snapshots/{new}"])
def test_of_a_saved_image(path: str) -> None:
    ask_for_a_save(path)
    with pytest.raises(NotAllowed, match="no '5' is wanted"):
        ask_for_a_save(path, item="5")


@pytest.mark.parametrize(
    "path",
    [
        "/d/1/0a",
        "/d/1/{new}",
        "/d/1/0a.snap/{new}",
        "/d/2/{image}/{new}",
        "/d/1/{image}/0",
        "/d/1/{image}/snapshots/deeper/{new}",
        "/d/1/{image}/../../{new}",
    ],
)
def test_of_something_else_than_a_saved_image(path: str) -> None:
    with pytest.raises(NotAllowed, match="the host asks for what it must not have"):
        ask_for_a_save(path)


@pytest.mark.parametrize("temporary", ["/d/1/0a", "/d/2/.0a.{part}.part", "/d/1/.0b.{part}.part"])
def test_of_something_else_than_an_image_of_the_cache(temporary: str) -> None:
    chain: Any = SimpleNamespace(_path="/d/1/0a", machines=[SimpleNamespace(name="host01")])
    path = temporary.format(part="b" * 16)
    question = {"ask": "content", "temporary": path, "manifest": f"{path}.chunks", "reuse": False}
    with pytest.raises(NotAllowed, match="the host asks for what it must not have"):
        _Chain._answer(chain, 0, question)


def test_B15_a_host_hears_of_the_images_beside_the_one_that_it_is_filled_with(
    tmp_path: Path,
) -> None:
    """Whatever directory it names."""
    for place in ("1/0a", "1/0b", "2/0c"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("content")
    path = str(tmp_path / "1/0a")
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    location = arguments.Location("localhost", path)
    question = {"ask": "gone", "directory": str(tmp_path / "2"), "names": ["0b", "0c"]}
    with Origin(Hosts(settings, Log("warm")), location, []) as origin:
        chain: Any = SimpleNamespace(_path=path, _origin=origin)
        assert _Chain._answer(chain, 0, question) == {"names": ["0c"]}
