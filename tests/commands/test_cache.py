"""onestor cache: list, show, verify, prune, warm and drop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onestor_lib.agent import companions
from onestor_lib.agent.cache import record
from onestor_lib.agent.cache.entry import Entry
from onestor_lib.agent.transfer import digests_of
from onestor_lib.agent.version import Version
from tests.cluster import Node
from tests.commands.conftest import Desk
from tests.drivers.conftest import (
    BIG,
    MEDIUM_QCOW2,
    agents,
    cached_names,
    companion,
    digest,
    entry_of,
    lock_held,
)
from tests.oned.objects import OFFLINE, Cluster, Host, Image
from tests.sampling import one_of
from tests.testbed import AGENT, DATASTORES
from tests.waiting import wait_until

MB = 1 << 20
ALL = "host01,host02,host03,host04"


def use_replica(desk: Desk, name: str = "host04") -> None:
    desk.bed.system.template["REPLICA_HOST"] = name
    desk.bed.cloud.save(desk.bed.system)


def damage(node: Node, image: Image) -> None:
    script = (
        f"chmod u+w {entry_of(image)}; printf damage | dd of={entry_of(image)} bs=1 seek=700000"
    )
    node.run(["sh", "-c", f"{script} conv=notrunc 2>/dev/null; chmod 444 {entry_of(image)}"])


def forge(node: Node, image: Image) -> None:
    """Give the entry other bytes, and a record that says just these were filled and verified."""
    damage(node, image)
    path = node.path(entry_of(image))
    sidecar = Entry(path).sidecar
    known = record.read(sidecar)
    assert known
    with path.open("rb") as file:
        manifest = digests_of(file.fileno(), known.version.size)
    local = Version.of(path.stat())
    known._replace(digest=manifest.digest(), local=local).write(sidecar, manifest)


def is_opened(node: Node, path: str) -> bool:
    """Whether an agent on a node has opened a file."""
    for pid in agents(node):
        with contextlib.suppress(FileNotFoundError):
            directory = node.path(f"/proc/{pid}/fd")
            if path in [os.readlink(directory / each) for each in os.listdir(directory)]:
                return True
    return False


def test_I9_list_and_show(desk: Desk) -> None:
    use_replica(desk)
    image = desk.bed.image(MEDIUM_QCOW2)
    desk.started(image)
    rows = {row["host"]: row for row in desk.rows("cache", "list")}
    assert set(rows) == {"host01", "host04"}
    assert rows["host04"]["tier"] == "replica" and rows["host01"]["tier"] == "host"
    assert rows["host01"]["image"] == image.id and rows["host01"]["state"] == "complete"
    assert rows["host01"]["shared"] == 1 and rows["host04"]["shared"] == 0
    assert isinstance(rows["host04"]["bytes"], int), "a plain number, not a text with a unit"
    assert rows["host01"]["bytes"] >= 2 * MB and rows["host01"]["source"] == "host04"
    assert desk.rows("cache", "list", "--host", "host02") == []
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 3 2M 64k", image.source]
    desk.bed.frontend.run(write)
    shown = {row["host"]: row["state"] for row in desk.rows("cache", "show", image.name)}
    assert shown == dict.fromkeys(rows, "old version")


def test_wrong_input_is_named(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    for words, complaint in (
        (("cache", "show", "nosuch"), "there is no image 'nosuch'"),
        (("cache", "list", "--host", "host99"), "host99: neither a host"),
        (("cache", "warm", str(image.id)), "give either --hosts or --cluster"),
        (("cache", "warm", str(image.id), "--cluster", "77"), "cluster 77 has no host"),
    ):
        assert desk.run(*words, status=1) == ""
        assert complaint in desk.complaints
    kept = desk.bed.image(MEDIUM_QCOW2, persistent=True)
    desk.run("cache", "warm", str(kept.id), "--hosts", "host01", status=1)
    assert "persistent" in desk.complaints


def test_a_host_that_does_not_answer(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    desk.started(image)
    desk.bed.configure('CONNECT_TIMEOUT="2"\n')
    desk.node("host03").cut()
    (row,) = desk.rows("cache", "list", "--host", "host01", "--host", "host03", status=1)
    assert row["host"] == "host01" and "host03" in desk.complaints


@contextlib.contextmanager
def added_host(desk: Desk, name: str, cluster: Cluster) -> Iterator[Host]:
    """oned knows one more host for the time of the block."""
    host = desk.bed.cloud.add_host(name, cluster)
    try:
        yield host
    finally:
        cluster.hosts.remove(host.id)
        desk.bed.cloud.save(cluster)
        desk.bed.cloud.delete(host)


@contextlib.contextmanager
def offline(desk: Desk, *names: str) -> Iterator[None]:
    """Hosts are offline, and get no packets, for the time of the block."""
    hosts = [host for host in desk.bed.cloud.hosts.values() if host.name in names]
    states = [host.state for host in hosts]
    for host in hosts:
        host.state = OFFLINE
        desk.node(host.name).cut()
    desk.bed.cloud.save(*hosts)
    try:
        yield
    finally:
        for host, host.state in zip(hosts, states):
            desk.node(host.name).heal()
        desk.bed.cloud.save(*hosts)


def test_nobody_expects_an_answer_of_hosts_that_cannot_give_one(desk: Desk) -> None:
    """Not of those that are offline, a replica among them, nor of those of other drivers' clusters.

    Of a name that no host can have, as those of VMware, it is told that it is left out.
    """
    use_replica(desk, "host03")
    cloud = desk.bed.cloud
    elsewhere = cloud.add_cluster("elsewhere")
    with (
        offline(desk, "host02", "host03"),
        added_host(desk, "host99", elsewhere),
        added_host(desk, "vcenter one", cloud.clusters[0]) as host,
    ):
        rows = desk.rows("cache", "prune")
    cloud.delete(elsewhere)
    assert {row["host"] for row in rows} == {"host01", "host04"}
    (line,) = desk.complaints.splitlines()
    assert f"host {host.id} is left out: " in line and "'vcenter one' is no host" in line


def test_a_name_of_several_images(desk: Desk) -> None:
    """As those of two owners may be called; an id is that of one, whatever others are called."""
    image, kept = desk.bed.image(MEDIUM_QCOW2), desk.bed.image(MEDIUM_QCOW2, persistent=True)
    for each in (image, kept):
        each.name = "debian"
        desk.bed.cloud.save(each)
    desk.run("cache", "show", "debian", status=1)
    assert f"'debian' is the name of several: {image.id}, {kept.id}" in desk.complaints
    image.name = str(kept.id)
    desk.bed.cloud.save(image)
    desk.run("cache", "warm", str(kept.id), "--hosts", "host01", status=1)
    assert "persistent" in desk.complaints


def test_verify_repairs_what_it_can(desk: Desk) -> None:
    """What it cannot repair has failed; what is not damaged is well all the same."""
    image, node = desk.bed.image(MEDIUM_QCOW2), desk.node("host01")
    desk.run("cache", "warm", str(image.id), "--hosts", "host01,host02")
    only = ("--host", "host01", "--host", "host02")  # nothing is on the others
    damage(node, image)
    rows = {row["host"]: row for row in desk.rows("cache", "verify", *only)}
    assert rows["host01"]["result"] == "repaired" and rows["host02"]["result"] == "ok"
    assert "chunk" in rows["host01"]["detail"]
    assert digest(node, entry_of(image)) == digest(desk.bed.frontend, image.source)
    damage(node, image)
    desk.bed.configure('HOST_CACHE_MAX_SIZE_MB="1"\n')
    found = desk.rows("cache", "verify", str(image.id), *only, status=1)
    assert {row["host"]: row["result"] for row in found} == {"host01": "failed", "host02": "ok"}


def test_what_leaves_while_others_are_read_has_not_failed(desk: Desk) -> None:
    """Neither is it brought again."""
    images = [desk.bed.image(MEDIUM_QCOW2) for _ in range(2)]
    for image in images:
        desk.started(image)
    node = desk.node("host01")
    first, second = sorted(images, key=entry_of)
    lock = companion(first, "lock")
    with ThreadPoolExecutor(1) as pool:
        with lock_held(node, lock):
            verified = pool.submit(desk.rows, "cache", "verify", "--host", "host01")
            wait_until(lambda: is_opened(node, lock), "verify has come to the first one")
            Entry(node.path(entry_of(second))).drop()
        rows = {row["image"]: row["result"] for row in verified.result()}
    assert rows == {first.id: "ok", second.id: "gone"}
    assert not node.exists(entry_of(second))


def test_a_word_that_is_no_host_does_not_stop_the_others(desk: Desk) -> None:
    use_replica(desk, "host04 -oProxyCommand=id")
    image = desk.bed.image(MEDIUM_QCOW2)
    rows = desk.rows("cache", "warm", str(image.id), "--hosts", "host04")
    assert rows[0]["result"] == "filled" and "-oProxyCommand=id" in desk.complaints


def test_prune_and_drop(desk: Desk) -> None:
    image, gone = desk.bed.image(MEDIUM_QCOW2), desk.bed.image(MEDIUM_QCOW2)
    desk.started(image)
    # In no VM: its blocks are free afterwards.
    desk.run("cache", "warm", str(gone.id), "--hosts", "host01")
    node = desk.node("host01")
    desk.bed.cloud.delete(gone)
    (freed,) = desk.rows("cache", "prune", "--host", "host01")
    assert freed["freed"] >= 2 * MB
    assert cached_names(desk.bed, node) == {entry_of(image).rpartition("/")[2]}
    (dropped,) = desk.rows("cache", "drop", str(image.id), "--host", "host01")
    assert dropped["dropped"] and cached_names(desk.bed, node) == set()


class TestWarm:
    def test_all_hosts_from_one_copy_that_leaves_the_front_end_and_from_each_other(
        self, desk: Desk
    ) -> None:
        image = desk.bed.image(BIG)
        before = desk.bed.frontend.bytes_sent()
        rows = desk.rows("cache", "warm", str(image.id), "--cluster", "0")
        assert {row["host"]: row["result"] for row in rows} == dict.fromkeys(
            ALL.split(","), "filled"
        )
        assert desk.bed.frontend.bytes_sent() - before < 26 * MB  # of 16 MB, and 10 agents
        wanted = digest(desk.bed.frontend, image.source)
        for name in ALL.split(","):
            assert digest(desk.node(name), entry_of(image)) == wanted
        lacking = desk.node("host03")
        Entry(lacking.path(entry_of(image))).drop()
        before = desk.bed.frontend.bytes_sent()
        others = sum(node.bytes_sent() for node in desk.bed.hosts if node is not lacking)
        rows = desk.rows("cache", "warm", str(image.id), "--hosts", ALL)
        found = {row["host"]: row["result"] for row in rows}
        assert found.pop("host03") == "filled" and set(found.values()) == {"hit"}
        sent = sum(node.bytes_sent() for node in desk.bed.hosts if node is not lacking)
        assert sent - others > 16 * MB, "hosts that have it send it"
        assert desk.bed.frontend.bytes_sent() - before < 16 * MB
        assert digest(lacking, entry_of(image)) == wanted

    def test_A8_a_host_is_not_believed(self, desk: Desk) -> None:
        """One that was broken into could give its whole cluster another image.

        Also where the front-end does not know yet what the image is.
        """
        image, names = desk.bed.image(BIG), ("host03", "host04")
        wanted = digest(desk.bed.frontend, image.source)
        desk.run("cache", "warm", str(image.id), "--hosts", "host02")
        forge(desk.node("host02"), image)
        for known in (True, False):
            if not known:
                desk.bed.frontend.path(str(companions.manifest(Path(entry_of(image))))).unlink()
                for name in names:
                    Entry(desk.node(name).path(entry_of(image))).drop()
            rows = desk.rows("cache", "warm", str(image.id), "--hosts", "host02,host03,host04")
            assert [row["result"] for row in rows] == ["hit", "filled", "filled"]
            forged = digest(desk.node("host02"), entry_of(image))
            assert forged != wanted  # else this would prove nothing
            for name in names:
                assert digest(desk.node(name), entry_of(image)) == wanted
            assert ("not that of the image" in desk.complaints) == known

    def test_A5_who_waits_for_a_fill_hears_of_its_progress(self, desk: Desk) -> None:
        """On every machine of the chain, also where the front-end is two machines away."""
        image = desk.bed.image(BIG)
        desk.bed.configure('REPLICA_COPY_LOCK_TIMEOUT="5"\n')
        for name in ("host01", "host02"):
            desk.node(name).limit_rate(10)
        with desk.bed.frontend.popen(
            ["onestor", "cache", "warm", str(image.id), "--hosts", "host01,host02"], env=AGENT
        ) as warm:
            wait_until(
                lambda: any(".part" in name for name in desk.bed.files(desk.node("host02"))),
                "the fill has begun",
            )
            desk.started(image, "host02")  # it takes longer than anybody waits without progress
            assert warm.wait(timeout=60) == 0
        assert "still held by" not in desk.bed.log()  # else it came past the cache

    def test_a_dead_host_and_one_that_cannot_cache_it_cost_only_themselves(
        self, desk: Desk
    ) -> None:
        """Those behind them in the chain have it all the same."""
        image = desk.bed.image(BIG)
        desk.bed.configure('CONNECT_TIMEOUT="2"\n')
        desk.node("host02").cut()
        node = desk.node("host03")
        node.run(["mkdir", "-p", f"{DATASTORES}/101"])
        node.run(["chmod", "555", f"{DATASTORES}/101"])
        try:
            rows = desk.rows("cache", "warm", str(image.id), "--hosts", ALL, status=1)
        finally:
            node.run(["chmod", "755", f"{DATASTORES}/101"])
        found = {row["host"]: row["result"] for row in rows}
        failed = dict.fromkeys(("host02", "host03"), "failed")
        assert found == {"host01": "filled", **failed, "host04": "filled"}


@pytest.mark.parametrize("word", one_of(3, ["list", "show", "verify", "prune", "warm", "drop"]))
def test_help(desk: Desk, word: str) -> None:
    assert "Usage: onestor cache" in desk.run("cache", word, "--help")
