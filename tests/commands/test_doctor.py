"""onestor doctor: nothing to say of a healthy cloud, and each planted fault is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.cluster import Node
from tests.commands.conftest import Desk
from tests.commands.test_output import expect, masked
from tests.drivers.conftest import (
    MEDIUM_QCOW2,
    host_attribute,
    make_sources,
    of_driver,
    program_before,
)
from tests.hypervisor import Kvm
from tests.install_tests.test_configure import STOCK
from tests.testbed import DATASTORES, REMOTES, register, running_testbed
from tests.waiting import wait_until

VERSION = ["virsh", "-c", "qemu:///system", "version"]
EXECRC = "/etc/one/vmm_exec/vmm_execrc"


@pytest.fixture(scope="module")
def healthy_desk() -> Iterator[Desk]:
    with running_testbed(hosts=3) as bed:
        make_sources(bed.frontend)
        Kvm(bed.frontend, {node.name: node for node in bed.hosts}).start()
        register(bed.frontend, *STOCK["6.10"])
        yield Desk(bed)


@pytest.fixture
def desk(healthy_desk: Desk) -> Iterator[Desk]:
    healthy_desk.bed.clean()
    healthy_desk.bed.configure('CONNECT_TIMEOUT="2"\n')
    yield healthy_desk
    healthy_desk.bed.assert_at_rest()


def found(desk: Desk, *, status: int = 1, **environment: str) -> set[tuple[str, str, str]]:
    """Level, host and check of all that is not well."""
    rows = desk.rows("doctor", status=status, **environment)
    for row in rows:
        assert bool(row["mend"]) == (row["level"] != "ok"), row
    return {(row["level"], row["host"], row["check"]) for row in rows if row["level"] != "ok"}


def test_a_healthy_cloud(desk: Desk) -> None:
    rows = desk.rows("doctor")
    assert {(row["level"], row["mend"]) for row in rows} == {("ok", "")}
    checks = {(row["host"], row["check"]) for row in rows}
    for check in ("ssh", "ssh mesh", "clock", "python3", "qemu-img", "libvirt", "qemu", "space"):
        assert ("host02", check) in checks
    assert {("host02", "hard links"), ("host02", "reflink"), ("host02", "remotes")} <= checks
    assert {("front-end", "oned.conf"), ("front-end", "ssh-agent")} <= checks


Fault = Callable[[Desk], "AbstractContextManager[None]"]
Wanted = set[tuple[str, str, str]]
FAULTS: dict[str, tuple[Fault, Wanted]] = {}


def fault(*wanted: tuple[str, str, str]) -> Callable[[Callable[[Desk], Iterator[None]]], None]:
    """A function that plants a fault and takes it back, and what is to be said of it."""

    def note(plant: Callable[[Desk], Iterator[None]]) -> None:
        @contextlib.contextmanager
        def planted(desk: Desk) -> Iterator[None]:
            work = plant(desk)
            next(work)
            try:
                yield
            finally:
                next(work, None)

        FAULTS[plant.__name__] = planted, set(wanted)

    return note


@contextlib.contextmanager
def changed(node: Node, path: str, old: str, new: str) -> Iterator[None]:
    """A file of a node with other text for a while."""
    before = node.read(path)
    assert old.encode() in before
    node.path(path).write_bytes(before.replace(old.encode(), new.encode()))
    try:
        yield
    finally:
        node.path(path).write_bytes(before)


def names_of(line: str) -> list[str]:
    return line.partition(" ")[0].split(",")


@contextlib.contextmanager
def wrong_key(node: Node, peer: str) -> Iterator[None]:
    """The node knows another host's key under the name of ``peer``."""
    file = "/var/lib/one/.ssh/known_hosts"
    before = node.read(file).decode()
    key = next(line for line in before.splitlines() if "fe" in names_of(line)).split(" ", 1)[1]
    lines = [line for line in before.splitlines() if peer not in names_of(line)]
    node.path(file).write_text("\n".join([*lines, f"{peer} {key}"]) + "\n")
    try:
        yield
    finally:
        node.path(file).write_text(before)


def template(desk: Desk, **attributes: str) -> None:
    desk.bed.system.template.update(attributes)
    desk.bed.cloud.save(desk.bed.system)


@fault(("error", "host02", "ssh"))
def a_host_is_down(desk: Desk) -> Iterator[None]:
    desk.node("host02").cut()
    yield
    desk.node("host02").heal()


@fault(("error", "host02", "host key"))
def the_front_end_knows_another_key(desk: Desk) -> Iterator[None]:
    with wrong_key(desk.bed.frontend, "host02"):
        yield


@fault(("error", "host01", "ssh mesh"))
def a_host_knows_another_key_of_a_host(desk: Desk) -> Iterator[None]:
    with wrong_key(desk.node("host01"), "host03"):
        yield


@fault(*(("error", f"host0{number}", "ssh mesh") for number in (1, 2, 3)))
def an_address_that_nobody_has(desk: Desk) -> Iterator[None]:
    with host_attribute(desk.bed, "host02", REPLICA_STORAGE_IP="10.99.0.99"):
        yield


@fault(("error", "host03", "attributes"))
def an_address_that_is_none(desk: Desk) -> Iterator[None]:
    with host_attribute(desk.bed, "host03", REPLICA_STORAGE_IP="10.0.0.1 x"):
        yield


@fault(("error", "host02", "clock"))
def a_clock_is_ahead(desk: Desk) -> Iterator[None]:
    ahead = 'DONT_FAKE_MONOTONIC=1 exec faketime -f +5m /usr/bin/python3 "$@"'
    with program_before(desk.node("host02"), "python3", ahead):
        yield


@fault(("error", "host02", "python3"))
def no_python(desk: Desk) -> Iterator[None]:
    missing = 'echo "sh: 1: python3: not found" >&2; exit 127'
    with program_before(desk.node("host02"), "python3", missing):
        yield


@fault(("error", "host01", "answer"))
def answers_that_make_no_sense(desk: Desk) -> Iterator[None]:
    """A host may say anything."""
    nonsense = """case "$*" in *-c*) echo 'onestor agent'; echo '{"agent": {}}'
while read line; do echo '{"result": {"clock": 1, "python": "x"}}'; done;; esac"""
    with program_before(desk.node("host01"), "python3", nonsense):
        yield


@fault(("error", "host03", "qemu-img"))
def no_qemu_img(desk: Desk) -> Iterator[None]:
    missing = 'echo "qemu-img: not found" >&2; exit 127'
    with program_before(desk.node("host03"), "qemu-img", missing):
        yield


@fault(("error", "front-end", "qemu-img"))
def no_qemu_img_on_the_front_end(desk: Desk) -> Iterator[None]:
    missing = 'echo "qemu-img: not found" >&2; exit 127'
    with program_before(desk.bed.frontend, "qemu-img", missing):
        yield


@fault(("error", "front-end", "remotes"))
def a_script_is_missing(desk: Desk) -> Iterator[None]:
    script = desk.bed.frontend.path(f"{REMOTES}/tm/onestor/monitor_ds")
    away = script.rename(script.with_suffix(".away"))
    yield
    away.rename(script)


@fault(("error", "host01", "libvirt"))
def libvirt_is_down(desk: Desk) -> Iterator[None]:
    node = desk.node("host01")
    restart(node, "")
    yield
    restart(node)


@fault(("error", "host03", "qemu"))
def qemu_runs_as_another_user(desk: Desk) -> Iterator[None]:
    node = desk.node("host03")
    with changed(node, "/etc/libvirt/qemu.conf", 'user = "oneadmin"', 'user = "libvirt-qemu"'):
        restart(node)
        yield
    restart(node)


def restart(node: Node, program: str = "/usr/sbin/libvirtd") -> None:
    """End the node's libvirtd, and start it again."""
    node.run(["pkill", "-KILL", "-F", "/run/libvirtd.pid"], user="root", check=False)
    node.run(["rm", "-f", "/run/libvirtd.pid"], user="root")
    wait_until(lambda: node.run(VERSION, check=False).returncode != 0, "libvirtd is gone")
    if program:
        node.run([program, "-d", "-p", "/run/libvirtd.pid"], user="root")
        wait_until(lambda: node.run(VERSION, check=False).returncode == 0, "libvirtd answers")


@fault(("error", "host01", "space"))
def no_space(desk: Desk) -> Iterator[None]:
    node = desk.node("host01")
    node.mount_datastores(64)
    node.run(["sh", "-c", f"mkdir {DATASTORES}/9; dd if=/dev/zero of={DATASTORES}/9/x bs=1M"],
             check=False)  # fmt: skip
    yield
    node.unmount_datastores()


@fault(("warning", "host01", "hard links"))
def datastores_on_two_file_systems(desk: Desk) -> Iterator[None]:
    node, path = desk.node("host01"), f"{DATASTORES}/102"
    node.run(["mkdir", "-p", path])
    node.run(["mount", "-t", "tmpfs", "-o", "mode=777", "tmpfs", path], user="root")
    yield
    node.run(["umount", path], user="root")


@fault(("error", "host03", "permissions"))
def a_datastore_that_cannot_be_written_to(desk: Desk) -> Iterator[None]:
    node, path = desk.node("host03"), f"{DATASTORES}/101"
    node.run(["mkdir", "-p", path])
    node.run(["chmod", "555", path])
    yield
    node.run(["chmod", "755", path])


@fault(("error", "front-end", "oned.conf"))
def the_driver_is_not_registered(desk: Desk) -> Iterator[None]:
    with changed(desk.bed.frontend, "/etc/one/oned.conf", ",onestor", ""):
        yield


@fault(("error", "front-end", "vmm_execrc"))
def live_snapshots_are_not_registered(desk: Desk) -> Iterator[None]:
    with changed(desk.bed.frontend, EXECRC, "kvm-onestor", "kvm-other"):
        yield


@fault(("error", "host03", "remotes"))
def a_host_was_not_synchronised(desk: Desk) -> Iterator[None]:
    file = "/var/tmp/one/onestor_lib/agent/usage.py"
    with changed(desk.node("host03"), file, "import os", "import os  # older"):
        yield


@fault(("warning", "datastore 102", "replica"), ("error", "host99", "ssh"))
def a_replica_that_oned_does_not_know(desk: Desk) -> Iterator[None]:
    template(desk, REPLICA_HOST="host99")
    yield


@fault(("warning", "datastore 102", "replica"))
def every_host_is_a_replica(desk: Desk) -> Iterator[None]:
    template(desk, REPLICA_HOST="host01 host02 host03")
    yield


@fault(("error", "datastore 102", "attributes"))
def an_attribute_that_does_not_parse(desk: Desk) -> Iterator[None]:
    template(desk, REPLICA_MAX_USED_PERC="many")
    yield


@fault(("error", "datastore 102", "attributes"))
def a_replica_that_is_no_host(desk: Desk) -> Iterator[None]:
    template(desk, REPLICA_HOST="-oProxyCommand=x")
    yield


@fault(("warning", "host03", "apparmor"))
def apparmor_without_a_rule(desk: Desk) -> Iterator[None]:
    confined = '/usr/bin/virsh "$@"; echo "<secmodel><model>apparmor</model></secmodel>"'
    with program_before(desk.node("host03"), "virsh", confined):
        yield


@fault(("error", "front-end", "recovery"))
def nobody_runs_the_passes(desk: Desk) -> Iterator[None]:
    vm = desk.bed.vm(desk.bed.image(MEDIUM_QCOW2))
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "60"
    desk.bed.cloud.save(vm)
    yield


# Whatever has one of these is not asked for anything else.
SILENCING = {"ssh", "host key", "python3", "answer", "attributes"}


def hide_each_other(one: str, other: str) -> bool:
    """Whether one of two faults may be in the way of what is to be said of the other.

    Not for those that touch the same thing: where directories cannot be written to, nobody learns
    that hard links are not possible, so these two are planted on different machines.
    """
    return any(
        place == there and (check == that or {check, that} & SILENCING)
        for _, place, check in FAULTS[one][1]
        for _, there, that in FAULTS[other][1]
    )


def rounds() -> list[list[str]]:
    """All faults, as many at a time as do not hide each other."""
    found: list[list[str]] = []
    for name in FAULTS:
        for each in found:
            if not any(hide_each_other(name, other) for other in each):
                each.append(name)
                break
        else:
            found.append([name])
    return found


@pytest.mark.fault
@pytest.mark.parametrize("names", rounds(), ids=" and ".join)
def test_faults(desk: Desk, names: list[str]) -> None:
    """Each is found and named as if it were the only one."""
    wanted: Wanted = set()
    with contextlib.ExitStack() as planted:
        for name in names:
            plant, said = FAULTS[name]
            planted.enter_context(plant(desk))
            wanted |= said
        status = int(any(level == "error" for level, _, _ in wanted))
        assert found(desk, status=status) == wanted


def test_connections_that_sshd_drops_are_tried_again(desk: Desk) -> None:
    """Many hosts that try to get to all others at once pass MaxStartups of sshd_config(5).

    That all is well then, as ever, is one line.
    """
    dropped = """
[ -e /var/tmp/dropped ] && exec /usr/bin/ssh "$@"
touch /var/tmp/dropped
echo "kex_exchange_identification: Connection closed by remote host" >&2; exit 255"""
    with program_before(desk.node("host02"), "ssh", dropped):
        said = desk.run("doctor")
    assert said.endswith(" 0 warnings, 0 errors\n") and "\n" not in said[:-1]
    desk.node("host02").run(["rm", "/var/tmp/dropped"])


def test_no_agent_no_oned(desk: Desk) -> None:
    assert ("error", "front-end", "ssh-agent") in found(desk, SSH_AUTH_SOCK="/nosuch")
    assert "Traceback" not in desk.complaints
    url = "http://127.0.0.1:1/RPC2"
    assert found(desk, ONE_XMLRPC=url) == {("error", "front-end", "oned")}


def test_no_datastore_of_onestor(desk: Desk) -> None:
    """There is no host to look at; how to have one is said."""
    with of_driver(desk.bed, desk.bed.system, "ssh"):
        rows = desk.rows("doctor")
    (row,) = [row for row in rows if row["level"] != "ok"]
    assert (row["level"], row["host"], row["check"]) == ("warning", "oned", "datastores")
    assert "TM_MAD = onestor" in row["mend"]


def test_settings_that_cannot_be_read(desk: Desk) -> None:
    """Hosts cannot be asked with them: that alone is told, with the attribute and its file."""
    desk.bed.configure('LIBVIRT_URI="here"\n')
    (row,) = desk.rows("doctor", status=1)
    assert (row["level"], row["check"]) == ("error", "attributes")
    assert "LIBVIRT_URI of" in row["text"] and "onestorrc is 'here'" in row["text"]


def test_how_it_looks(desk: Desk) -> None:
    """Here without hosts to look at, which look no other."""
    frontend = desk.bed.frontend
    with (
        of_driver(desk.bed, desk.bed.system, "ssh"),
        changed(frontend, EXECRC, "kvm-onestor", "kvm-other"),
    ):
        for width in (80, 120):
            expect(f"doctor-{width}", desk.screen(width, "doctor"))
        expect("doctor-piped", desk.run("doctor", status=1))
        plain = desk.screen(120, "doctor", NO_COLOR="1")
        assert "\x1b" not in plain
        assert masked(plain) == masked(desk.screen(120, "doctor", TERM="dumb"))
