"""A removed image leaves the caches of all replicas, as well as that can be done."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import locks
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import HostUnreachable, InvalidInput, OnedUnavailable
from onestor_lib.agent.operations import cache as operations
from onestor_lib.frontend import boundary, config, oned, xml
from onestor_lib.frontend import oned as api
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import replicas
from onestor_lib.frontend.services.hosts import Hosts
from tests.tool.conftest import Oned, draw, listing
from tests.tool.placing import LocalCall
from tests.unit.caching import fill

NAME = "0a1b2c"
POOL = (
    "<DATASTORE_POOL>"
    "<DATASTORE><TYPE>1</TYPE><TEMPLATE><REPLICA_HOST>r1 r2</REPLICA_HOST></TEMPLATE></DATASTORE>"
    "<DATASTORE><TYPE>0</TYPE><TEMPLATE><REPLICA_HOST>image</REPLICA_HOST></TEMPLATE></DATASTORE>"
    "<DATASTORE><TYPE>1</TYPE><TEMPLATE/></DATASTORE>"
    "<DATASTORE><TYPE>1</TYPE><TEMPLATE><REPLICA_HOST>r2 r3</REPLICA_HOST></TEMPLATE></DATASTORE>"
    "</DATASTORE_POOL>"
)


class Removing:
    """The front-end that has removed an image, and its replicas: agents of this machine."""

    def __init__(self, root: Path) -> None:
        self.remotes = root / "remotes"
        self.rc = self.remotes / "etc" / "tm" / "onestor" / "onestorrc"
        self.rc.parent.mkdir(parents=True)
        self.said = io.StringIO()
        self.values = {"CONNECT_TIMEOUT": "5"}
        self.pool: str | Exception = POOL
        self.asked: list[str] = []
        self.down: dict[str, Exception] = {}
        self.hanging = threading.Event()
        self.image = root / "datastores" / "1" / NAME

    @property
    def request(self) -> Request:
        settings = config.Settings(config.DATASTORE_ATTRIBUTES, self.values)
        log = Log("rm", stderr=self.said)
        return Request("datastore", "rm", [], io.BytesIO(), settings, log)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said.getvalue().splitlines() if line.startswith("WARN")]

    def datastores(self) -> xml.Element:
        if isinstance(self.pool, Exception):
            raise self.pool
        return xml.parse(self.pool.encode(), "the datastores")

    @contextlib.contextmanager
    def agent(self, hosts: Hosts, host: str) -> Iterator[AgentClient]:
        self.asked.append(host)
        if host in self.down:
            raise self.down[host]
        if host == "hangs":
            self.hanging.wait(20)
            return
        with hosts.local_agent() as agent:
            yield agent


@pytest.fixture
def removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Removing]:
    found = Removing(tmp_path)
    monkeypatch.setattr(boundary, "remotes_directory", lambda: found.remotes)
    monkeypatch.setattr(oned.Client, "datastores", lambda client: found.datastores())
    monkeypatch.setattr(Hosts, "agent", lambda hosts, host: found.agent(hosts, host))
    yield found
    found.hanging.set()


def test_all_replicas_there_are(removing: Removing) -> None:
    removing.rc.write_text('REPLICA_HOST="own r1"\n')
    assert replicas.known(removing.request) == ["own", "r1", "r2", "r3"]
    assert removing.warnings == []


@pytest.mark.parametrize("pool", [OnedUnavailable("x", "down"), InvalidInput("x", "odd")])
def test_an_oned_that_cannot_be_asked_is_a_warning(removing: Removing, pool: Exception) -> None:
    removing.rc.write_text("REPLICA_HOST=own\n")
    removing.pool = pool
    assert replicas.known(removing.request) == ["own"]
    assert len(removing.warnings) == 1


def test_words_that_are_no_hosts_are_left_out(removing: Removing) -> None:
    removing.rc.write_text("REPLICA_HOST='-oX r9 $(id)'\n")
    removing.pool = "<DATASTORE_POOL/>"
    assert replicas.known(removing.request) == ["r9"]
    assert len(removing.warnings) == 2


def test_H8_the_image_leaves_every_replica(removing: Removing) -> None:
    entry = fill(removing.image)
    replicas.drop(removing.request, str(removing.image))
    assert sorted(removing.asked) == ["r1", "r2", "r3"]
    assert removing.warnings == [] and not entry.image.exists()
    assert f"INFO: rm: {removing.image} left the cache: its image was removed" in (
        removing.said.getvalue()
    )
    replicas.drop(removing.request, str(removing.image))
    assert removing.warnings == [], "also twice"


def test_the_machine_that_had_the_image_is_not_asked(removing: Removing) -> None:
    removing.pool = POOL.replace("r1", "localhost")
    replicas.drop(removing.request, str(removing.image))
    assert sorted(removing.asked) == ["r2", "r3"]
    removing.asked.clear()
    replicas.drop(removing.request, str(removing.image), origin="r2")
    assert sorted(removing.asked) == ["localhost", "r3"]


def test_trouble_with_one_is_a_warning_and_stops_no_other(removing: Removing) -> None:
    removing.down = {"r1": HostUnreachable("start the agent", "no route"), "r3": KeyError("bug")}
    entry = fill(removing.image)
    replicas.drop(removing.request, str(removing.image))
    assert not entry.image.exists()
    first, second = removing.warnings
    assert "r1 may keep" in first and "no route" in first
    assert "r3 may keep" in second


def test_K7_one_that_hangs_holds_nobody_up(removing: Removing) -> None:
    removing.values["CONNECT_TIMEOUT"] = "2"
    removing.pool = POOL.replace("r1", "hangs")
    entry = fill(removing.image)
    begin = time.monotonic()
    replicas.drop(removing.request, str(removing.image))
    assert time.monotonic() - begin < 4
    assert not entry.image.exists()
    (warning,) = removing.warnings
    assert warning.endswith(
        "hangs may keep " + str(removing.image) + ": ask hangs: no answer in time"
    )


class TestDrop:
    """The operation on a replica."""

    def drop(self, path: Path) -> Any:
        return operations.drop(LocalCall(lambda question: {}), path=str(path))["dropped"]

    def test_what_somebody_uses_stays(self, removing: Removing) -> None:
        entry = fill(removing.image)
        with locks.shared(entry.lock, purpose="test", timeout=1):
            assert self.drop(removing.image) is False
        assert entry.image.exists()
        assert self.drop(removing.image) is True
        assert listing(removing.image.parent) == [entry.lock.name]

    def test_what_is_not_ours_is_not_touched(self, removing: Removing) -> None:
        draw(removing.image, "A")
        assert self.drop(removing.image) is False
        assert listing(removing.image.parent) == [NAME], "and no lock is made"
        entry = fill(removing.image)
        assert entry.is_hidden
        assert self.drop(removing.image) is True
        assert listing(removing.image.parent) == [entry.lock.name, NAME]

    def test_a_cache_that_is_not_there(self, removing: Removing) -> None:
        assert self.drop(removing.image) is False
        assert not removing.image.parent.exists()

    @pytest.mark.parametrize("path", ["etc/passwd", "1/.hidden", "x/0a", "1/0a.image", "1/a b"])
    def test_only_what_can_be_an_entry(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(InvalidInput):
            self.drop(tmp_path / path)


def test_oned_is_asked_for_all_datastores(oned: Oned, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dispatch(method: str, params: tuple[Any, ...]) -> Any:
        calls.append((method, *params))
        return [True, POOL, 0]

    monkeypatch.setattr(oned, "_dispatch", dispatch)
    found = api.Client().datastores()
    assert calls == [("one.datastorepool.info", "oneadmin:secret")]
    assert len(found.all("DATASTORE")) == 4
