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
    assert {row["host"] for row in desk.rows("cache", "show", str(image.id))} == set(rows)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 3 2M 64k", image.source]
    desk.bed.frontend.run(write)
    assert {row["state"] for row in desk.rows("cache", "show", image.name)} == {"old version"}


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
    (row,) = desk.rows("cache", "list", status=1)
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


def test_nobody_expects_an_answer_of_hosts_that_are_offline(desk: Desk) -> None:
    """Neither of a replica among them, nor of the hosts of other drivers' clusters."""
    use_replica(desk, "host03")
    elsewhere = desk.bed.cloud.add_cluster("elsewhere")
    with offline(desk, "host02", "host03"), added_host(desk, "host99", elsewhere):
        rows = desk.rows("cache", "prune")
    desk.bed.cloud.delete(elsewhere)
    assert {row["host"] for row in rows} == {"host01", "host04"}
    assert desk.complaints == ""


def test_a_host_by_a_name_that_no_host_can_have(desk: Desk) -> None:
    """As those of VMware: the others are asked, and it is told."""
    with added_host(desk, "vcenter one", desk.bed.cloud.clusters[0]) as host:
        rows = desk.rows("cache", "prune")
    assert {row["host"] for row in rows} == set(ALL.split(","))
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


def test_verify_repairs(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    desk.run("cache", "warm", str(image.id), "--hosts", "host01,host02")
    assert {row["result"] for row in desk.rows("cache", "verify")} == {"ok"}
    node = desk.node("host01")
    damage(node, image)
    rows = {row["host"]: row for row in desk.rows("cache", "verify", str(image.id))}
    assert rows["host01"]["result"] == "repaired" and rows["host02"]["result"] == "ok"
    assert "chunk" in rows["host01"]["detail"]
    assert digest(node, entry_of(image)) == digest(desk.bed.frontend, image.source)


def test_what_leaves_while_others_are_read_has_not_failed(desk: Desk) -> None:
    """Neither is it brought again."""
    images = [desk.bed.image(MEDIUM_QCOW2) for _ in range(2)]
    for image in images:
        desk.run("cache", "warm", str(image.id), "--hosts", "host01")
    node = desk.node("host01")
    first, second = sorted(images, key=entry_of)
    lock = companion(first, "lock")
    with ThreadPoolExecutor(1) as pool:
        with lock_held(node, lock):
            verified = pool.submit(desk.rows, "cache", "verify")
            wait_until(lambda: is_opened(node, lock), "verify has come to the first one")
            Entry(node.path(entry_of(second))).drop()
        rows = {row["image"]: row["result"] for row in verified.result()}
    assert rows == {first.id: "ok", second.id: "gone"}
    assert not node.exists(entry_of(second))


def test_what_cannot_be_repaired_has_failed(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    desk.run("cache", "warm", str(image.id), "--hosts", "host01,host02")
    damage(desk.node("host01"), image)
    desk.bed.configure('HOST_CACHE_MAX_SIZE_MB="1"\n')
    rows = {row["host"]: row for row in desk.rows("cache", "verify", status=1)}
    assert rows["host01"]["result"] == "failed" and rows["host02"]["result"] == "ok"


def test_a_word_that_is_no_host_does_not_stop_the_others(desk: Desk) -> None:
    use_replica(desk, "host04 -oProxyCommand=id")
    image = desk.bed.image(MEDIUM_QCOW2)
    rows = desk.rows("cache", "warm", str(image.id), "--hosts", "host04")
    assert rows[0]["result"] == "filled" and "-oProxyCommand=id" in desk.complaints


def test_prune_and_drop(desk: Desk) -> None:
    image, gone = desk.bed.image(MEDIUM_QCOW2), desk.bed.image(MEDIUM_QCOW2)
    for each in (image, gone):
        desk.run("cache", "warm", str(each.id), "--hosts", "host01")
    node = desk.node("host01")
    desk.bed.cloud.delete(gone)
    (freed,) = desk.rows("cache", "prune", "--host", "host01")
    assert freed["freed"] >= 2 * MB
    assert cached_names(desk.bed, node) == {entry_of(image).rpartition("/")[2]}
    rows = {row["host"]: row["dropped"] for row in desk.rows("cache", "drop", str(image.id))}
    assert rows["host01"] and cached_names(desk.bed, node) == set()


class TestWarm:
    def test_all_hosts_from_one_copy_that_leaves_the_front_end(self, desk: Desk) -> None:
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
        again = desk.rows("cache", "warm", str(image.id), "--hosts", ALL)
        assert {row["result"] for row in again} == {"hit"}

    def test_hosts_that_have_it_send_it(self, desk: Desk) -> None:
        image = desk.bed.image(BIG)
        desk.run("cache", "warm", str(image.id), "--hosts", "host02")
        before = desk.node("host02").bytes_sent()
        (row,) = desk.rows("cache", "warm", str(image.id), "--hosts", "host03")
        assert row["result"] == "filled"
        assert desk.node("host02").bytes_sent() - before > 16 * MB

    @pytest.mark.parametrize("known", [True, False])
    def test_A8_a_host_is_not_believed(self, desk: Desk, known: bool) -> None:
        """One that was broken into could give its whole cluster another image."""
        image = desk.bed.image(BIG)
        desk.run("cache", "warm", str(image.id), "--hosts", "host02")
        forge(desk.node("host02"), image)
        if not known:
            desk.bed.frontend.path(str(companions.manifest(Path(entry_of(image))))).unlink()
        rows = desk.rows("cache", "warm", str(image.id), "--hosts", "host02,host03,host04")
        assert [row["result"] for row in rows] == ["hit", "filled", "filled"]
        wanted = digest(desk.bed.frontend, image.source)
        assert (
            digest(desk.node("host02"), entry_of(image)) != wanted
        )  # else this would prove nothing
        for name in ("host03", "host04"):
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

    def test_a_dead_host_costs_only_itself(self, desk: Desk) -> None:
        image = desk.bed.image(BIG)
        desk.bed.configure('CONNECT_TIMEOUT="2"\n')
        desk.node("host02").cut()
        rows = desk.rows("cache", "warm", str(image.id), "--hosts", ALL, status=1)
        found = {row["host"]: row["result"] for row in rows}
        assert found.pop("host02") == "failed" and set(found.values()) == {"filled"}

    def test_one_that_cannot_cache_it_does_not_stop_those_behind(self, desk: Desk) -> None:
        image = desk.bed.image(BIG)
        node = desk.node("host02")
        node.run(["mkdir", "-p", f"{DATASTORES}/101"])
        node.run(["chmod", "555", f"{DATASTORES}/101"])
        try:
            rows = desk.rows("cache", "warm", str(image.id), "--hosts", ALL, status=1)
        finally:
            node.run(["chmod", "755", f"{DATASTORES}/101"])
        found = {row["host"]: row["result"] for row in rows}
        assert found.pop("host02") == "failed" and set(found.values()) == {"filled"}


@pytest.mark.parametrize("word", ["list", "show", "verify", "prune", "warm", "drop"])
def test_help(desk: Desk, word: str) -> None:
    assert "Usage: onestor cache" in desk.run("cache", word, "--help")
