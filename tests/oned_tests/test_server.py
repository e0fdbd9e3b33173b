"""The API over real XML-RPC."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import pytest

from tests.oned.cloud import Cloud
from tests.oned.objects import ACTIVE, DONE, RUNNING
from tests.oned.server import AUTHENTICATION, INTERNAL, NO_EXISTS, Server

SESSION = "oneadmin:opennebula"


class Api:
    """Calls as a client makes them, each over a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, *arguments: Any, session: str = SESSION) -> Any:
        with ServerProxy(f"http://127.0.0.1:{self.port}/RPC2") as proxy:
            return getattr(proxy, method)(session, *arguments)

    def ids(self, method: str, *arguments: Any) -> list[int]:
        ok, answer, _ = self.call(method, *arguments)
        assert ok
        return [int(element.findtext("ID", "")) for element in ElementTree.fromstring(answer)]


@pytest.fixture
def api(cloud: Cloud) -> Iterator[Api]:
    with Server(cloud.root, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Api(server.server_address[1])
        server.shutdown()
        thread.join()


def test_info_answers_the_file_as_it_is_now(cloud: Cloud, api: Api) -> None:
    vm = cloud.add_vm()
    assert api.call("one.vm.info", vm.id) == [True, vm.xml(cloud.version), 0]
    cloud.set_state(vm, ACTIVE, RUNNING)
    tree = ElementTree.fromstring(api.call("one.vm.info", vm.id, False)[1])
    assert tree.findtext("LCM_STATE") == "3"


def test_every_kind_has_info_and_pool(cloud: Cloud, api: Api) -> None:
    cloud.add_host("host01")
    cloud.add_image(cloud.add_image_datastore())
    for kind, number in (("host", 0), ("image", 0), ("datastore", 100), ("cluster", 0)):
        ok, answer, _ = api.call(f"one.{kind}.info", number)
        assert ok
        assert answer.startswith(f"<{kind.upper()}>")
        ok, answer, _ = api.call(f"one.{kind}pool.info", *([-2, -1, -1] if kind == "image" else []))
        assert ElementTree.fromstring(answer).tag == f"{kind.upper()}_POOL"
        assert api.ids(f"one.{kind}pool.info") == [number]
    assert api.call("one.system.version") == [True, "6.10.0.1", 0]


def test_unknown_id(api: Api) -> None:
    answer = api.call("one.vm.info", 7)
    assert answer == [False, "[one.vm.info] Error getting virtual machine [7].", NO_EXISTS, 7]


def test_a_datastore_gets_another_driver(cloud: Cloud, api: Api) -> None:
    system = cloud.add_system_datastore(TM_MAD="ssh", SHARED="NO", REPLICA_HOST="host03")
    system.total_mb, system.free_mb = 7, 5
    cloud.save(system)
    method, template = "one.datastore.update", 'TM_MAD = "onestor"\nMORE="a b"'
    assert api.call(method, system.id, template, 1) == [True, system.id, 0]
    cloud.reread(system)
    assert system.tm_mad == system.template["TM_MAD"] == "onestor"
    assert (system.template["REPLICA_HOST"], system.template["MORE"]) == ("host03", "a b")
    tree = ElementTree.fromstring(api.call("one.datastore.info", system.id)[1])
    assert (tree.findtext("TOTAL_MB"), tree.findtext("TEMPLATE/SHARED")) == ("0", "NO")
    system.total_mb = system.free_mb = 0
    answer = api.call("one.datastore.info", system.id)[1]
    expected = ElementTree.canonicalize(system.xml(cloud.version))
    assert ElementTree.canonicalize(answer) == expected
    images = cloud.add_image_datastore(DS_MAD="fs", TM_MAD="ssh")
    assert api.call(method, images.id, "DS_MAD=onestor TM_MAD=onestor")[0]
    cloud.reread(images)
    assert (images.ds_mad, images.tm_mad) == ("onestor", "onestor")
    assert "SAFE_DIRS" not in images.template  # replaced, not merged


def test_a_datastore_gets_no_driver_that_oned_does_not_know(cloud: Cloud, api: Api) -> None:
    system = cloud.add_system_datastore(TM_MAD="ssh")
    (cloud.root / "tm_mads").write_text("ssh shared\n")
    method = "one.datastore.update"
    cause = 'Cannot update template. TM_MAD named "onestor" is not defined in oned.conf'
    expected = [False, f"[{method}] {cause}", INTERNAL, system.id]
    assert api.call(method, system.id, "TM_MAD=onestor", 1) == expected
    assert api.call(method, 7, "", 1)[1] == f"[{method}] Error getting datastore [7]."
    assert api.call(method, system.id, "TM_MAD=", 1)[2] == INTERNAL
    assert api.call("one.datastore.info", system.id)[1] == system.xml(cloud.version)


def test_wrong_session(cloud: Cloud, api: Api) -> None:
    ok, message, code, _ = api.call("one.vm.info", cloud.add_vm().id, session="oneadmin:wrong")
    assert (ok, code) == (False, AUTHENTICATION)
    assert message == "[one.vm.info] User couldn't be authenticated, aborting call."


def test_unknown_method(api: Api) -> None:
    with pytest.raises(Fault, match="not defined"):
        api.call("one.vm.frobnicate", 1)


def test_vm_pool_filters(cloud: Cloud, api: Api) -> None:
    vms = [cloud.add_vm(user_template={"COLOUR": colour}) for colour in ("red", "blue", "red")]
    cloud.set_state(vms[1], ACTIVE, RUNNING)
    cloud.set_state(vms[2], DONE)
    for method in ("one.vmpool.info", "one.vmpool.infoextended"):
        assert api.ids(method, -2, -1, -1, -1) == [0, 1]
        assert api.ids(method, -2, -1, -1, -2) == [0, 1, 2]
        assert api.ids(method, -2, -1, -1, 3) == [1]
        assert api.ids(method, -2, 1, 2, -2) == [1, 2]
        assert api.ids(method, -2, 1, -2, -2) == [1, 2]
        assert api.ids(method, 0, -1, -1, -1) == [0, 1]
        assert api.ids(method, 5, -1, -1, -1) == []
        assert api.ids(method, -2, -1, -1, -2, "COLOUR=red") == [0, 2]


def test_calls_are_counted(cloud: Cloud, api: Api) -> None:
    api.call("one.vm.info", cloud.add_vm().id)
    api.call("one.hostpool.info")
    log = [json.loads(line) for line in (cloud.root / "calls.log").read_text().splitlines()]
    assert [(call["method"], call["id"]) for call in log] == [
        ("one.vm.info", 0),
        ("one.hostpool.info", None),
    ]
    assert all(abs(call["time"] - time.time()) < 60 for call in log)


def test_callers_are_answered_in_parallel(cloud: Cloud, api: Api) -> None:
    vm = cloud.add_vm()
    (cloud.root / "delay").write_text("0.3\n")
    begin = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: api.call("one.vm.info", vm.id)[0], range(20)))
    assert answers == [True] * 20
    assert 0.3 <= time.monotonic() - begin < 3
    assert len((cloud.root / "calls.log").read_text().splitlines()) == 20


def test_refuse_closes_without_an_answer(cloud: Cloud, api: Api) -> None:
    (cloud.root / "refuse").touch()
    with pytest.raises(RemoteDisconnected):
        api.call("one.system.version")
    (cloud.root / "refuse").unlink()
    assert api.call("one.system.version")[0]


def test_a_reader_never_sees_half_an_object(cloud: Cloud, api: Api) -> None:
    vm = cloud.add_vm()
    stop = threading.Event()

    def rewrite() -> None:
        for length in range(10_000):
            vm.user_template["NOTE"] = "x" * (length * 100)
            cloud.save(vm)
            if stop.is_set():
                return

    writer = threading.Thread(target=rewrite)
    writer.start()
    for _ in range(30):
        ElementTree.fromstring(api.call("one.vm.info", vm.id)[1])
    stop.set()
    writer.join()


def test_program(cloud: Cloud) -> None:
    argv = [sys.executable, "-m", "tests.oned.server", "--root", str(cloud.root), "--port", "0"]
    checkout = Path(__file__).parent.parent.parent
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=checkout) as server:
        assert server.stdout
        port = int(server.stdout.readline().split(":")[-1].split("/")[0])
        assert Api(port).call("one.system.version")[0]
        server.kill()
