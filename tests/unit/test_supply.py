"""frontend.services.supply: who is asked for an image, and what happens when that fails."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from onestor_lib.agent import publish
from onestor_lib.agent.errors import (
    CacheFailed,
    HostUnreachable,
    InvalidInput,
    Missing,
    NoSpace,
    NotAllowed,
    OnedUnavailable,
    OnestorError,
    TransferFailed,
)
from onestor_lib.frontend import arguments, config, xml
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import supply as supplies
from onestor_lib.frontend.services import transfer
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.supply import Supply

MB = 1 << 20
FACTS: dict[str, Any] = {"digest": "",
         "version": {"size": 5, "mtime_ns": 6, "inode": 7}, "allocated": 4096,
         "snapshots": {"10": 5, "123": 6}}  # fmt: skip
WRITTEN = {"size": 5, "mtime_ns": 8, "inode": 9}  # what the receiver has written
PART = f"/d/1/.0a.{'b' * 16}.part"
IMAGE = {"ask": "content", "item": "image", "temporary": PART, "manifest": f"{PART}.chunks",
         "reuse": False}  # fmt: skip


def temporary(final: str) -> str:
    """The path of something unfinished that will be called `final`."""
    directory, name = os.path.split(final)
    return f"{directory}/{publish.temporary_name(name)}"


def asked(item: str, **changed: Any) -> dict[str, Any]:
    """What a host asks that puts disk 0 of VM 7 in place."""
    where = "/d/100/7/disk.0" if item == "disk" else f"{temporary('/d/100/7/disk.0.snap')}/{item}"
    question = {"item": item, "temporary": temporary(where), "manifest": "", "reuse": False}
    return {**(IMAGE if item == "image" else {"ask": "content", **question}), **changed}


class Origin:
    """The machine that has the image."""

    def __init__(self, host: str) -> None:
        self.host, self.path, self.is_here = host, "/d/1/0a", host == "localhost"
        self.asked: list[tuple[str, list[str]]] = []

    def agent(self) -> str:
        return f"agent of {self.host}"

    def missing(self, directory: str, names: list[str]) -> list[str]:
        self.asked.append((directory, names))
        return names[:1]


class Oned:
    """Knows the hosts' templates, or nothing."""

    def __init__(self, text: str | None = "<HOST_POOL/>") -> None:
        self.text = text

    def hosts(self) -> xml.Element:
        if self.text is None:
            raise OnedUnavailable("ask oned", "down")
        return xml.parse(self.text.encode(), "hosts")


class World:
    """Hosts whose transfers are only noted; `failing` says what a host's transfer raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stderr = io.StringIO()
        self.calls: list[tuple[str, ...]] = []
        self.targets: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.failing: dict[str, OnestorError] = {}
        self.values: dict[str, str] = {}
        self.meanwhile: Callable[[], object] = lambda: None  # while a host pulls
        self.oned = Oned()
        self.origin = Origin("localhost")
        monkeypatch.setattr(transfer, "pull", self.pull)
        monkeypatch.setattr(transfer, "bring", self.bring)

    def pull(
        self, hosts: Hosts, replica: str, address: str, *, host: str, image: dict[str, Any],
        answer: object, **target: Any,
    ) -> dict[str, Any]:  # fmt: skip
        self.calls.append(("pull", replica, address, host))
        self.targets.append(target)
        self.images.append(image)
        self.meanwhile()
        if replica in self.failing:
            raise self.failing[replica]
        return {"sent": 3, "digest": "d", "written": WRITTEN}

    def bring(
        self, hosts: Hosts, source: str, path: str, *, host: str, **target: Any
    ) -> dict[str, Any]:
        self.calls.append(("bring", source, path, host))
        self.targets.append(target)
        if "origin" in self.failing:
            raise self.failing["origin"]
        return {"sent": 7, "digest": "e", "written": WRITTEN}

    def supply(self, replicas: str = "", *, use_replica: bool = True, host: str = "h1") -> Supply:
        values = {"REPLICA_HOST": replicas, **self.values}
        hosts = Hosts(
            config.Settings(config.TM_ATTRIBUTES, values), Log("clone", stderr=self.stderr)
        )
        target = arguments.vm_path(f"{host}:/d/100/7/disk.0", 7)
        return Supply(
            hosts, self.oned, self.origin, target, FACTS,  # type: ignore[arg-type]
            purpose="clone of image 4", use_replica=use_replica,
        )  # fmt: skip

    @property
    def asked(self) -> list[str]:
        """Who was asked, in order."""
        return [call[1] for call in self.calls]

    @property
    def warned(self) -> list[str]:
        return [line for line in self.stderr.getvalue().splitlines() if line.startswith("WARN")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield World(monkeypatch)


FROM_ORIGIN = "agent of localhost"


@pytest.mark.parametrize("item", ["image", "disk"])
def test_the_replica_serves(world: World, item: str) -> None:
    supply = world.supply("r1")
    question = asked(item)
    answer = supply.answer(question)
    assert answer == {"digest": "d", "source": "r1", "written": WRITTEN}
    assert world.calls == [("pull", "r1", "r1", "h1")]
    assert world.targets == [{name: question[name] for name in ("temporary", "manifest", "reuse")}]
    assert (supply.sent, supply.way) == (3, ["r1"])


def test_A17_A23_without_a_replica_it_comes_from_the_origin(world: World) -> None:
    supply = world.supply("")
    answer = supply.answer(IMAGE)
    assert answer == {"digest": "e", "source": "localhost", "written": WRITTEN}
    assert world.calls == [("bring", FROM_ORIGIN, "/d/1/0a", "h1")]
    assert world.targets[0]["version"] == FACTS["version"]
    assert (supply.sent, supply.way) == (7, ["localhost"])
    assert world.warned == []


def test_A15_persistent_images_do_not_go_by_the_replica(world: World) -> None:
    world.supply("r1", use_replica=False).answer(asked("disk"))
    assert world.asked == [FROM_ORIGIN]


def test_A24_a_replica_does_not_ask_itself(world: World) -> None:
    supply = world.supply("r1 h1")
    assert supply.is_replica
    supply.answer(IMAGE)
    assert world.asked == [FROM_ORIGIN]
    assert supply.cached()["is_replica"]


@pytest.mark.parametrize("origin", ["localhost", "bridge1"])
def test_A24_a_replica_that_is_the_origin_has_nothing_to_cache(world: World, origin: str) -> None:
    world.origin = Origin(origin)
    world.supply(origin).answer(IMAGE)
    assert world.asked == [f"agent of {origin}"]


def test_A24_the_front_end_under_its_other_name_is_the_origin_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "fe.example")
    world.origin = Origin("localhost")
    world.supply("fe").answer(IMAGE)
    assert world.asked == [FROM_ORIGIN]


def test_the_replica_s_own_fill_comes_from_the_origin(world: World) -> None:
    """Its questions arrive through the host that pulls, with its name."""
    supply = world.supply("r1")
    part = f"/d/1/.0a.{'c' * 16}.part"
    filled = {**IMAGE, "host": "r1", "temporary": part, "manifest": f"{part}.chunks"}
    world.meanwhile = lambda: supply.answer(filled)
    supply.answer(IMAGE)
    assert world.calls == [
        ("pull", "r1", "r1", "h1"), ("bring", FROM_ORIGIN, "/d/1/0a", "r1")
    ]  # fmt: skip
    assert [target["temporary"] for target in world.targets] == [PART, part]
    assert (supply.sent, supply.way) == (7 + 3, ["localhost", "r1"])


def test_snapshots_come_from_the_origin(world: World) -> None:
    world.supply("r1").answer(asked("123"))
    assert world.calls == [("bring", FROM_ORIGIN, "/d/1/0a.snap/123", "h1")]
    assert world.targets[0]["version"] is None


ANY_FAILURE = [
    CacheFailed("use the replica", "it is the host itself"), HostUnreachable("ask", "down"),
    TransferFailed("receive", "cut"), NoSpace("receive", "full"), Missing("open", "gone"),
]  # fmt: skip


@pytest.mark.parametrize("error", ANY_FAILURE, ids=lambda error: type(error).__name__)
def test_A18_the_next_replica_then_the_origin_and_one_warning_each(
    world: World, error: OnestorError
) -> None:
    world.failing = {"r1": error}
    supply = world.supply("r1 r2 r3")
    supply.answer(IMAGE)
    assert world.asked == ["r1", "r2"]
    assert supply.way == ["r2"]
    assert world.warned == [f"WARN: clone: replica r1 is not used: {error}"]
    world.failing |= {"r2": error, "r3": error}
    supply.answer(IMAGE)
    assert world.asked[2:] == ["r1", "r2", "r3", FROM_ORIGIN]
    assert supply.way == ["r2", "localhost"]
    assert len(world.warned) == 4
    assert supply.sent == 3 + 7


def test_A8_a_replica_that_has_other_bytes_than_the_image_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the origin knows what is in the image; size and time may be right by chance."""
    monkeypatch.setitem(FACTS, "digest", "e")
    supply = world.supply("r1")
    answer = supply.answer(IMAGE)
    assert world.asked == ["r1", FROM_ORIGIN] and answer["digest"] == "e"
    assert world.targets[1]["reuse"] and "not that of the image" in world.warned[0]


@pytest.mark.parametrize("item", ["image", "disk"])
def test_A3_what_a_failing_replica_has_brought_is_taken_up(world: World, item: str) -> None:
    """In the part of a fill as in the temporary of a disk."""
    world.failing = {"r1": TransferFailed("receive", "cut")}
    world.supply("r1").answer(asked(item))
    assert [target["reuse"] for target in world.targets] == [False, True]


def test_C2_a_failing_origin_fails(world: World) -> None:
    world.failing = {"origin": TransferFailed("send", "cut"), "r1": HostUnreachable("ask", "down")}
    supply = world.supply("r1")
    with pytest.raises(TransferFailed, match="cut"):
        supply.answer(IMAGE)
    assert supply.way == []


def test_J4_a_replica_is_the_name_of_a_host(world: World) -> None:
    for value in ("-oProxyCommand=id", "r1 $(id)", "a;b"):
        with pytest.raises(InvalidInput, match="is no host"):
            world.supply(value)


def test_B15_the_origin_is_asked_which_images_are_gone(world: World) -> None:
    answer = world.supply("r1").answer({"ask": "gone", "directory": "/d/1", "names": ["a", "b"]})
    assert answer == {"names": ["a"]}
    assert world.origin.asked == [("/d/1", ["a", "b"])]


OTHER = f"/d/1/.0b.{'b' * 16}.part"  # of another image
WRONG: dict[str, dict[str, Any]] = {
    "another host": {**IMAGE, "host": "h2"},
    "a replica that is not asked": {**IMAGE, "host": "r1"},
    "an image of the same name": {**IMAGE, "temporary": OTHER, "manifest": f"{OTHER}.chunks"},
    "the entry itself": {**IMAGE, "temporary": "/d/1/0a", "manifest": "/d/1/0a.chunks"},
    "its sidecar": {
        **IMAGE,
        "temporary": "/d/1/.0a.sidecar",
        "manifest": "/d/1/.0a.sidecar.chunks",
    },
    "a part elsewhere": {
        **IMAGE,
        "temporary": PART.replace("/d/1/", "/d/2/"),
        "manifest": PART.replace("/d/1/", "/d/2/") + ".chunks",
    },
    "a parent": {
        **IMAGE,
        "temporary": PART.replace("/d/1/", "/d/1/../1/"),
        "manifest": PART.replace("/d/1/", "/d/1/../1/") + ".chunks",
    },
    "a line behind the name": {**IMAGE, "temporary": f"{PART}\n", "manifest": f"{PART}\n.chunks"},
    "a manifest elsewhere": {**IMAGE, "manifest": "/root/.ssh/authorized_keys"},
    "no manifest": {**IMAGE, "manifest": ""},
    "a disk for a replica": asked("disk", host="r1"),
    "a disk with a manifest": asked("disk", manifest="/root/.ssh/authorized_keys"),
    "a disk by its name": asked("disk", temporary="/d/100/7/disk.0"),
    "a disk of another VM": asked("disk", temporary=temporary("/d/100/8/disk.0")),
    "a disk by a parent": asked("disk", temporary=temporary("/d/100/7/../8/disk.0")),
    "a disk as an image": {**IMAGE, "temporary": temporary("/d/100/7/disk.0"), "manifest": ""},
    "an image as a disk": {**IMAGE, "item": "disk"},
    "a file of the system": asked("disk", temporary="/etc/shadow"),
    "an unknown snapshot": asked("9"),
    "a snapshot by a parent": asked("../0b", temporary=temporary("/d/100/7/disk.0")),
    "a snapshot in the VM's directory": asked("10", temporary=temporary("/d/100/7/10")),
    "a snapshot of another VM": asked(
        "10", temporary=temporary(temporary("/d/100/8/disk.0.snap") + "/10")
    ),
    "a snapshot by its name": asked("10", temporary=temporary("/d/100/7/disk.0.snap") + "/10"),
    "a snapshot below no temporary": asked("10", temporary=temporary("/d/100/7/disk.0.snap/10")),
    "a snapshot for a replica": asked("10", host="r1"),
    "a snapshot with a manifest": asked("10", manifest="/d/100/7/x"),
}


@pytest.mark.parametrize("question", WRONG.values(), ids=WRONG)
def test_J4_a_host_has_nothing_but_this_image_in_its_own_files(
    world: World, question: dict[str, Any]
) -> None:
    supply = world.supply("r1")
    with pytest.raises(NotAllowed, match="the host asks for what it must not have"):
        supply.answer(question)
    assert world.calls == []


def test_J4_a_replica_has_no_say_once_it_is_not_asked_any_more(world: World) -> None:
    for failing in ({}, {"r1": TransferFailed("receive", "cut")}):
        world.failing = dict(failing)
        supply = world.supply("r1")
        supply.answer(IMAGE)
        with pytest.raises(NotAllowed):
            supply.answer({**IMAGE, "host": "r1"})


def test_J4_a_replica_that_is_asked_gets_the_image_and_no_disk(world: World) -> None:
    supply = world.supply("r1")

    def ask() -> None:
        for question in (asked("disk", host="r1"), asked("10", host="r1"), {**IMAGE, "host": "h2"}):
            with pytest.raises(NotAllowed):
                supply.answer(question)

    world.meanwhile = ask
    supply.answer(IMAGE)
    assert world.asked == ["r1"]


def test_J4_names_are_looked_for_in_the_image_s_datastore_only(world: World) -> None:
    world.supply().answer({"ask": "gone", "directory": "/etc", "names": ["passwd"]})
    assert world.origin.asked == [("/d/1", ["passwd"])]


class TestStorageAddress:
    POOL = (
        "<HOST_POOL><HOST><NAME>r2</NAME><TEMPLATE><REPLICA_STORAGE_IP>10.0.0.2"
        "</REPLICA_STORAGE_IP></TEMPLATE></HOST><HOST><NAME>r1</NAME><TEMPLATE>{}</TEMPLATE></HOST>"
        "</HOST_POOL>"
    )

    def address(self, world: World, template: str | None) -> str:
        world.oned = Oned(None if template is None else self.POOL.format(template))
        world.supply("r1").answer(IMAGE)
        return world.calls[0][2]

    def test_L8_the_one_of_the_replica_s_template(self, world: World) -> None:
        template = "<REPLICA_STORAGE_IP>10.0.0.1</REPLICA_STORAGE_IP>"
        assert self.address(world, template) == "10.0.0.1"

    @pytest.mark.parametrize("template", ["", "<REPLICA_STORAGE_IP/>", None])
    def test_L8_else_its_name(self, world: World, template: str | None) -> None:
        assert self.address(world, template) == "r1"
        assert world.warned == []

    def test_J4_one_that_is_no_address_is_never_used(self, world: World) -> None:
        template = "<REPLICA_STORAGE_IP>-oProxyCommand=id</REPLICA_STORAGE_IP>"
        world.oned = Oned(self.POOL.format(template))
        world.supply("r1").answer(IMAGE)
        assert world.asked == [FROM_ORIGIN]
        assert "'-oProxyCommand=id' is no host" in world.warned[0]


class TestLimits:
    VALUES = {
        "REPLICA_MAX_SIZE_MB": "100", "REPLICA_MAX_USED_PERC": "80",
        "HOST_CACHE_MAX_SIZE_MB": "50", "HOST_CACHE_MAX_USED_PERC": "70",
        "CACHE_MIN_AGE": "9", "CACHE_ORPHAN_AGE": "99", "REPLICA_RECOVERY_SNAPS_DIR": "/snaps",
    }  # fmt: skip

    def test_B7_a_host_and_a_replica_have_their_own(self, world: World) -> None:
        world.values = self.VALUES
        assert world.supply("r1").cached()["limits"] == {
            "max_bytes": 50 * MB, "max_used_percent": 70, "min_age": 9.0, "orphan_age": 99.0,
            "counted": "",
        }  # fmt: skip
        expected = {
            "max_bytes": 100 * MB, "max_used_percent": 80, "min_age": 9.0, "orphan_age": 99.0,
            "counted": "/snaps",
        }  # fmt: skip
        supply = world.supply("r1")
        supply.answer(IMAGE)
        assert world.images[0]["limits"] == expected
        assert world.supply("h1").cached()["limits"] == expected, "a host that is the replica"

    def test_what_the_caches_are_asked_for(self, world: World) -> None:
        supply = world.supply("r1")
        supply.answer(IMAGE)
        wanted = supply.cached()
        assert (wanted["is_replica"], wanted["needed"]) == (False, 4096)
        pulled = world.images[0]
        assert pulled["is_replica"]
        for each in (wanted, pulled):
            assert each["path"] == "/d/1/0a"
            assert each["version"] == FACTS["version"]
            assert each["purpose"] == "clone of image 4"

    def test_A21_a_bad_limit_is_named(self, world: World) -> None:
        world.values = {"HOST_CACHE_MAX_USED_PERC": "all"}
        with pytest.raises(InvalidInput, match=r"HOST_CACHE_MAX_USED_PERC .* is 'all'"):
            world.supply().cached()
        assert supplies.limits(config.Settings(config.TM_ATTRIBUTES, {}), "REPLICA")["min_age"] == 0
