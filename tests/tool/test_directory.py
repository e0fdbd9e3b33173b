"""Operations on VM directories, between an agent in this process and another one beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import client, moving, tree, virsh, vm_directory
from onestor_lib.agent.errors import Missing, NotAllowed, OnestorError
from onestor_lib.agent.operations import directory as operations
from tests.tool.placing import BULK, LocalCall

pytestmark = pytest.mark.usefixtures("payload")

HOW: dict[str, Any] = {"stall": 10.0, "bytes_per_second": 0, "check_space": True, "bulk": BULK}
DOMAIN = {"domain": "one-7", "uri": "test:///default"}
HERE: dict[str, Any] = {"host": "host1", "argv": []}


class Place:
    """A VM's directory with a disk and all that may lie beside it, and where it goes."""

    def __init__(self, root: Path) -> None:
        self.source, self.target = root / "102/7", root / "103/7"
        self.source.mkdir(parents=True)
        self.call = LocalCall(lambda question: {})

    def write(self, *names: str) -> None:
        for name in names:
            file = self.source / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"content of {name}")

    def arrive(self, *names: str) -> None:
        """What the hypervisor has brought."""
        for name in names:
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            (self.target / name).write_bytes((self.source / name).read_bytes())

    def run(self, operation: str, **facts: Any) -> dict[str, Any]:
        done: dict[str, Any] = getattr(operations, operation)(
            self.call, path=str(self.source), target=str(self.target), peer=HERE,
            disks=["disk.0"], **facts,
        )  # fmt: skip
        return done

    def retire(self, *, moved_host: bool) -> dict[str, Any]:
        return self.run("retire", domain=DOMAIN, moved_host=moved_host)

    def there(self) -> dict[str, str]:
        found = self.target.rglob("*")
        return {str(f.relative_to(self.target)): f.read_text() for f in found if f.is_file()}

    def warnings(self) -> list[str]:
        return [text for severity, text in self.call.logged if severity == "WARN"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    found.write("disk.0")
    return found


UNKNOWN = ".disk.2.20260101T000000Z-9.unknown/disk.2"
KEPT = ("disk.2", "disk.2.snap/0", UNKNOWN, "kernel", "disk.0.base", ".disk.0.record")


def test_D16_what_no_vm_uses_any_more_comes_along_before_a_live_migration(place: Place) -> None:
    """A persistent disk that could not go back to its image may be the only copy of it."""
    place.write(*KEPT, "disk.0.snap/0", "checkpoint")
    descriptions = {"vm.xml": "<VM/>"}
    done = place.run("prepare", domain=DOMAIN, descriptions=descriptions, **HOW)
    assert done["done"] == "prepared"
    assert place.there() == {name: f"content of {name}" for name in KEPT}


@pytest.fixture
def runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain has left this machine; the other agent is the one that sees it."""
    monkeypatch.setattr(operations, "_state", lambda domain: "")
    real = client.AgentClient.call

    def call(self: Any, name: str, **facts: Any) -> Any:
        found = real(self, name, **{**facts, **({"domain": None} if "domain" in facts else {})})
        return {**found, "state": "running"} if name == "directory.examine" else found

    monkeypatch.setattr(client.AgentClient, "call", call)
    monkeypatch.setattr(virsh.Domain, "state", lambda self: "")


@pytest.mark.usefixtures("runs_there")
@pytest.mark.parametrize("lost", ["disk.0", "disk.2", "disk.0.snap/123", "disk.2.snap/0", UNKNOWN])
def test_D16_nothing_is_removed_that_is_not_there_too(place: Place, lost: str) -> None:
    names = {"disk.0", "disk.0.snap/123", *KEPT}
    place.write(*names)
    place.arrive(*(names - {lost, "disk.0.base"}))
    with pytest.raises(NotAllowed, match=f"{lost} missing there"):
        place.retire(moved_host=True)
    assert (place.source / lost).exists()
    place.arrive(lost)
    assert place.retire(moved_host=True)["removed"]
    assert not place.source.exists()


@pytest.mark.usefixtures("runs_there")
def test_D14_with_another_datastore_on_the_same_host_the_rest_follows(place: Place) -> None:
    """Nobody prepares that one: the hypervisor brings the disks, and perhaps their snapshots."""
    place.write(*KEPT, "disk.0.snap/0")
    (place.source / "disk.0.snap/disk.0.base").symlink_to("../disk.0.base")
    base = place.source / "disk.0.base"
    inode = base.stat().st_ino
    place.arrive("disk.0")
    assert place.retire(moved_host=False)["removed"]
    wanted = {name: f"content of {name}" for name in (*KEPT, "disk.0", "disk.0.snap/0")}
    found = place.there()
    assert found.pop("disk.0.snap/disk.0.base") == "content of disk.0.base"
    assert found == wanted
    assert (place.target / "disk.0.base").stat().st_ino == inode


@pytest.mark.usefixtures("runs_there")
def test_D20_what_the_guest_still_writes_to_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrive("disk.0")
    used = virsh.Disk("vda", str(place.source / "disk.0"), False, False, "")
    monkeypatch.setattr(virsh.Domain, "state", lambda self: "running")
    monkeypatch.setattr(virsh.Domain, "disks", lambda self: [used])
    with pytest.raises(NotAllowed, match="the VM uses it"):
        place.retire(moved_host=False)
    assert (place.source / "disk.0").exists()


def test_D16_a_vm_that_runs_nowhere_keeps_both_directories(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrive("disk.0")
    monkeypatch.setattr(operations, "_state", lambda domain: "")
    real = client.AgentClient.call

    def call(self: Any, name: str, **facts: Any) -> Any:
        return real(self, name, **{**facts, **({"domain": None} if "domain" in facts else {})})

    monkeypatch.setattr(client.AgentClient, "call", call)
    with pytest.raises(NotAllowed, match="runs nowhere"):
        place.run("abandon", domain=DOMAIN)
    assert (place.source / "disk.0").exists() and (place.target / "disk.0").exists()


RUNNING = {**DOMAIN, "domain": "test"}


@pytest.mark.parametrize(
    ("moved_host", "domain", "cause"),
    [
        (True, DOMAIN, "the VM does not run there"),
        (False, DOMAIN, "the VM does not run there"),
        (True, RUNNING, "the VM is running here"),
    ],
)
def test_D16_a_source_stays_unless_the_vm_has_left_it(
    place: Place, moved_host: bool, domain: dict[str, str], cause: str
) -> None:
    """Even where the target has all of it: what oned says of the VM is not what libvirt says."""
    place.arrive("disk.0")
    with pytest.raises(NotAllowed, match=cause):
        place.run("retire", domain=domain, moved_host=moved_host)
    assert os.listdir(place.source) == ["disk.0"] and os.listdir(place.target) == ["disk.0"]


def test_D12_a_target_stays_while_the_vm_runs_there(place: Place) -> None:
    place.arrive("disk.0")
    with pytest.raises(NotAllowed, match="the VM is running there"):
        place.run("abandon", domain=RUNNING)
    assert os.listdir(place.source) == ["disk.0"] and os.listdir(place.target) == ["disk.0"]


@pytest.mark.parametrize("what", ["marker", "disk.0"])
def test_D3_D5_a_name_that_cannot_be_looked_up_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """An unreliable network file system must not pass for another directory."""
    look = Path.lstat

    def broken(path: Path) -> os.stat_result:
        if path.name == what:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return look(path)

    monkeypatch.setattr(Path, "lstat", broken)
    with pytest.raises(OSError, match="Input/output error"):
        operations.examine(
            place.call, path=str(place.source), marker="marker", disks=["disk.0"], domain=None
        )


def test_L13_what_is_used_instead_is_told(place: Place) -> None:
    place.arrive("disk.0")
    os.utime(place.target / "disk.0", (0, 0))
    (place.source / "disk.0").unlink()
    assert place.run("move", **HOW) == {"done": "already", "sent": 0}
    (warning,) = place.warnings()
    assert "disk.0 missing" in warning and f"{place.target}, last written" in warning
    (place.target / "disk.0").unlink()
    with pytest.raises(Missing, match=r"disk\.0 missing"):
        place.run("move", **HOW)


def made_by(directory: Path, placement: object, disk: str = "disk.0") -> None:
    vm_directory.write_record(directory / disk, {"sequence": str(placement)})


def test_G1_what_was_left_behind_goes_before_anything_comes(place: Place) -> None:
    """And the front-end, which may end at any moment, has taken note by then."""
    place.arrive("disk.0")
    made_by(place.target, 3)

    def refuse(question: dict[str, Any]) -> dict[str, Any]:
        assert question == {"ask": "cleared"}
        assert not place.target.exists() and (place.source / "disk.0").exists()
        raise OnestorError("take note", "no room")

    place.call.on_ask = refuse
    with pytest.raises(OnestorError, match="no room"):
        place.run("move", notes={"target": 3, "domain": DOMAIN}, **HOW)
    assert not place.target.exists() and (place.source / "disk.0").exists()


def test_G1_what_was_left_behind_is_never_used(place: Place) -> None:
    place.arrive("disk.0")
    (place.source / "disk.0").unlink()
    with pytest.raises(Missing, match=r"disk\.0 missing"):
        place.run("move", notes={"target": 3, "domain": DOMAIN}, **HOW)
    assert (place.target / "disk.0").exists()


def test_G1_what_was_left_behind_stays_while_the_vm_runs_there(place: Place) -> None:
    place.arrive("disk.0")
    with pytest.raises(NotAllowed, match="the VM is running there"):
        place.run("move", notes={"target": 3, "domain": RUNNING}, **HOW)
    assert (place.target / "disk.0").exists()


@pytest.mark.parametrize("placement", [4, "damaged"])
def test_G1_what_was_made_since_is_not_what_was_left_behind(
    place: Place, placement: object
) -> None:
    place.arrive("disk.0")
    made_by(place.target, placement)
    (place.source / "disk.0").unlink()
    done = place.run("move", notes={"target": 3, "domain": DOMAIN}, **HOW)
    assert done["done"] == "already"


def test_G1_D1_a_source_that_was_left_behind_replaces_nothing(place: Place) -> None:
    """An earlier move to it failed and was declared a success."""
    made_by(place.source, 3)
    with pytest.raises(Missing, match="older than the VM"):
        place.run("move", notes={"source": 3}, **HOW)
    place.arrive("disk.0")
    (place.target / "disk.0").write_text("newer")
    assert place.run("move", notes={"source": 3}, **HOW)["done"] == "already"
    assert place.there() == {"disk.0": "newer"}
    assert (place.source / "disk.0").exists()


def test_G1_D1_a_source_that_was_left_behind_and_started_is_nobody_s_choice_but_a_person_s(
    place: Place,
) -> None:
    """There are two states of the VM now: neither may replace the other by itself."""
    place.write("disk.1")
    made_by(place.source, 3)
    made_by(place.source, 4, "disk.1")  # the context that it was started with
    place.arrive("disk.0")
    with pytest.raises(NotAllowed, match="used since"):
        place.run("move", notes={"source": 3}, **HOW)
    assert (place.source / "disk.0").exists() and (place.target / "disk.0").exists()


def test_G1_one_directory_by_two_names_needs_no_note(place: Place) -> None:
    place.target.parent.mkdir()
    place.target.symlink_to(place.source)
    asked = []

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question["ask"])
        return {}

    place.call.on_ask = answer
    assert place.run("move", notes={"source": 3}, **HOW)["done"] == "same"
    assert asked == ["cleared"]


@pytest.mark.parametrize("placement", [None, 4])
def test_G1_a_source_that_was_made_since_is_moved(place: Place, placement: int | None) -> None:
    if placement:
        made_by(place.source, placement)
    assert place.run("move", notes={"source": 3}, **HOW)["done"] == "renamed"


def test_D6_one_file_system_mounted_twice_is_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("disk.0.snap/1")

    def refuse(new: Path, directory: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(moving, "take_place", refuse)
    done = place.run("move", **HOW)
    assert done["done"] == "moved" and not place.source.exists()
    assert place.there() == {name: f"content of {name}" for name in ("disk.0", "disk.0.snap/1")}


def test_D6_within_a_file_system_it_is_renamed(place: Place) -> None:
    inode = (place.source / "disk.0").stat().st_ino
    assert place.run("move", **HOW)["done"] == "renamed"
    assert (place.target / "disk.0").stat().st_ino == inode


def test_D2_between_the_two_names_the_old_directory_is_not_lost(tmp_path: Path) -> None:
    """Ended by a signal just then: whatever had the name has it again."""
    new, old = tmp_path / "new", tmp_path / "old"
    for directory in (new, old):
        directory.mkdir()
        (directory / "disk.0").write_text(directory.name)
    real = Path.rename
    renames = []

    def ended(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", ended)
        moving.take_place(new, old)
    assert (old / "disk.0").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_K5_what_the_receiver_met_arrives_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error comes where the sender expects frames."""
    place.target.parent.mkdir()
    place.target.parent.chmod(0o755)
    monkeypatch.setattr(operations, "_is_one_file_system", lambda one, two: False)
    real = tree.listing

    def too_large(*words: Any) -> list[Any]:
        return [item._replace(allocated=1 << 60) for item in real(*words)]

    monkeypatch.setattr(tree, "listing", too_large)
    with pytest.raises(OnestorError) as caught:
        place.run("move", **HOW)
    assert type(caught.value).__name__ == "NoSpace"
    assert "MB needed" in caught.value.cause and caught.value.path
