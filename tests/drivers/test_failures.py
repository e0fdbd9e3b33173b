"""What goes wrong goes wrong cleanly: one line, a status, everything as before, nothing left."""

from __future__ import annotations

import base64
import itertools
import random
import re
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.cluster import Node
from tests.drivers.conftest import (
    BIG,
    RAW,
    SMALL,
    SOURCES,
    cached_names,
    digest,
    impatient,
    part_bytes,
    vm_files,
)
from tests.oned import objects
from tests.oned.mads import PATH
from tests.oned.oned import RequestFailed
from tests.oned.reply import Reply
from tests.sampling import one_of, sample
from tests.testbed import AGENT, DATASTORES, LOG, REMOTES, Testbed
from tests.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

BASE = "/var/lib/one//datastores"


def run(
    bed: Testbed, action: str, *argv: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """An entry script, run as the mads do but with whatever words and stdin a test likes."""
    return bed.frontend.run(
        [f"{REMOTES}/{action}", *argv],
        env={"PATH": PATH, **AGENT},
        input=stdin,
        check=False,
        timeout=60,
    )


def assert_clean_failure(done: subprocess.CompletedProcess[str]) -> str:
    """One line on stderr without a traceback, nothing on stdout, a status oned understands."""
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert 1 <= done.returncode <= 254
    assert len([line for line in lines if not line.startswith(("INFO:", "WARN:"))]) == 1, lines
    assert "Traceback" not in done.stderr
    assert not lines[-1].startswith(("-", "ERROR"))
    return lines[-1]


def message(**elements: str) -> bytes:
    image = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    datastore = f"<ID>101</ID><BASE_PATH>{BASE}/101</BASE_PATH><TYPE>0</TYPE><TEMPLATE></TEMPLATE>"
    text = (
        f"<DS_DRIVER_ACTION_DATA><IMAGE>{image}</IMAGE>"
        f"<DATASTORE>{datastore}</DATASTORE></DS_DRIVER_ACTION_DATA>"
    )
    return base64.b64encode(text.encode())


ENTITIES = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<DS_DRIVER_ACTION_DATA><IMAGE><ID>1</ID><PATH>&x;</PATH></IMAGE></DS_DRIVER_ACTION_DATA>"
)
LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'
    "<DS_DRIVER_ACTION_DATA>&c;</DS_DRIVER_ACTION_DATA>"
)

BAD_MESSAGES = {
    "nothing": b"",
    "no base64": b"<xml/>, not base64!",
    "no XML": base64.b64encode(b"\x00\x01 no xml"),
    "other XML": base64.b64encode(b"<OTHER/>"),
    "entities": base64.b64encode(ENTITIES.encode()),
    "billion laughs": base64.b64encode(LAUGHS.encode()),
    "no elements": base64.b64encode(b"<DS_DRIVER_ACTION_DATA/>"),
    "cut": message(ID="1", PATH=SMALL)[:200],
    "a megabyte of rubbish": b"\xff" * (1 << 20),
}


# Each of them is read by the same code, so it goes to one of the actions.
@pytest.mark.parametrize(
    ("what", "action"), one_of(3, list(itertools.product(BAD_MESSAGES, ["cp", "stat", "rm"])))
)
def test_bad_messages(bed: Testbed, action: str, what: str) -> None:
    done = run(bed, f"datastore/onestor/{action}", "7", stdin=BAD_MESSAGES[what])
    assert_clean_failure(done)
    assert bed.files(bed.frontend) == {}


@pytest.mark.parametrize("argv", [[], ["x"], ["-1"], ["a", "b", "c"], ["7; touch /tmp/x"]])
def test_bad_words_of_a_datastore_action(bed: Testbed, argv: list[str]) -> None:
    assert_clean_failure(run(bed, "datastore/onestor/cp", *argv, stdin=message(ID="1", PATH=SMALL)))


BAD_PATHS = {
    "parent": "/var/tmp/../../etc/passwd",
    "newline": "/var/tmp/a&#10;b",
    "relative": "var/tmp/small.img",
    "missing": "/var/tmp/is not there",
    "quotes": "/var/tmp/'\"`id`$(id);touch /tmp/pwned",
    "directory": "/var/tmp",
    "device": "/dev/zero",
    "url": "http://localhost/image",
    "scheme": "docker://alpine",
    "restricted": "/etc/hostname",
    "restricted and missing": "/etc/is-not-there",
    "prefix of a safe directory": "/var/tmpfoo/x",
}


@pytest.mark.parametrize(
    ("what", "action"), one_of(2, list(itertools.product(BAD_PATHS, ["cp", "stat"])))
)
def test_J2_J7_J8_J10_bad_sources(bed: Testbed, action: str, what: str) -> None:
    stdin = message(ID="1", PATH=BAD_PATHS[what].replace("&i", "&amp;i"))
    line = assert_clean_failure(run(bed, f"datastore/onestor/{action}", "7", stdin=stdin))
    assert bed.files(bed.frontend) == {}
    if "restricted" in what:
        # J8, J14: the rule and the attribute, but neither size nor existence.
        assert "RESTRICTED_DIRS" in line
        assert "no such file" not in line.lower()
    if what == "scheme":
        assert "docker" in line
    assert not bed.frontend.exists("/tmp/pwned")


def test_paths_with_blanks_and_special_characters_are_taken_literally(bed: Testbed) -> None:
    """K17, J2: the file is there, so it is registered, and nothing else happens."""
    name = "/var/tmp/my 'image'; [touch] $(id) *?.img"
    bed.frontend.write(name, b"content of it" * 1000)
    image = bed.image(name)
    assert bed.frontend.read(image.source) == b"content of it" * 1000


def test_J8_stat_and_cp_refuse_with_the_same_text(bed: Testbed) -> None:
    with pytest.raises(RequestFailed, match="RESTRICTED_DIRS"):
        bed.oned.create_image("/etc/hostname", bed.images)
    lines = [
        assert_clean_failure(run(bed, f"datastore/onestor/{action}", "7", stdin=message(
            ID="1", PATH="/etc/hostname"
        )))
        for action in ("stat", "cp")
    ]  # fmt: skip
    assert lines[0].partition(" ")[2].endswith(lines[1].rpartition("/etc/hostname")[2])


def test_J6_images_that_name_other_files_are_refused(bed: Testbed) -> None:
    bed.frontend.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", SMALL, "/var/tmp/evil.qcow2"]
    )
    for action in ("stat", "cp"):
        done = run(bed, f"datastore/onestor/{action}", "7", stdin=message(
            ID="1", PATH="/var/tmp/evil.qcow2"
        ))  # fmt: skip
        assert "backing file" in assert_clean_failure(done)
    assert bed.files(bed.frontend) == {}


def test_unreadable_source(bed: Testbed) -> None:
    bed.frontend.write("/var/tmp/secret.img", b"x" * 4096, mode=0o600, owner="root")
    done = run(bed, "datastore/onestor/cp", "7", stdin=message(ID="1", PATH="/var/tmp/secret.img"))
    assert "Permission denied" in assert_clean_failure(done)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fe:/a", "host01:/b", "1"],
        ["fe:/a", "host01:/var/lib/one/datastores/102/1/../2/disk.0", "1", "101"],
        ["fe:/a", "host01:/var/lib/one/datastores/102/2/disk.0", "1", "101"],
        ["fe:/a", "host01:/var/lib/one/datastores/102/1/passwd", "1", "101"],
        ["fe:/a", "host01:/disk.0", "1", "101"],
        ["fe:/a", "-oProxyCommand=id:/var/lib/one/datastores/102/1/disk.0", "1", "101"],
        ["fe:/a", "host01;id:/var/lib/one/datastores/102/1/disk.0", "1", "101"],
        ["fe:/a\nb", "host01:/var/lib/one/datastores/102/1/disk.0", "1", "101"],
        ["fe:a", "host01:/var/lib/one/datastores/102/1/disk.0", "1", "101"],
        ["fe:/a", "host01:/var/lib/one/datastores/102/1/disk.0", "x", "101"],
        ["fe:/a", "host01:/var/lib/one/datastores/102/1/disk.0", "1", "1;1"],
    ],
)
def test_J4_bad_words_of_clone(bed: Testbed, argv: list[str]) -> None:
    assert_clean_failure(run(bed, "tm/onestor/clone", *argv))
    assert bed.files(bed.hosts[0]) == {}


@pytest.mark.parametrize(
    "argv",
    [
        ["host01:/", "1", "102"],
        ["host01:/var/lib/one/datastores/102", "1", "102"],
        ["host01:/var/lib/one/datastores/102/2", "1", "102"],
        ["host01:/var/lib/one/datastores/102/1/../2", "1", "102"],
        ["host01:/var/lib/one/1", "1", "102"],
    ],
)
def test_delete_removes_nothing_but_what_belongs_to_its_vm(bed: Testbed, argv: list[str]) -> None:
    files = [f"{DATASTORES}/102/{vm}/disk.0" for vm in (1, 2)]
    for file in files:
        bed.hosts[0].write(file, "data")
    assert_clean_failure(run(bed, "tm/onestor/delete", *argv))
    assert all(bed.hosts[0].exists(file) for file in files)


def failing_prolog(bed: Testbed, host: str = "host01", source: str = RAW) -> Reply:
    vm = bed.vm(bed.image(source))
    reply = bed.oned.instantiate(vm, host, bed.system)
    assert not reply.success
    assert vm.lcm_state == objects.PROLOG_FAILURE
    # 6.10 shows the user all of stderr: it is the one line (contract section 1.5).
    assert len(reply.result.stderr.splitlines()) == 1
    return reply


def test_unknown_host(bed: Testbed) -> None:
    assert "nowhere" in failing_prolog(bed, "nowhere").error


def test_host_down(bed: Testbed) -> None:
    bed.configure("CONNECT_TIMEOUT=2\n")
    host = bed.hosts[1]
    host.kill()
    try:
        begin = time.monotonic()
        reply = failing_prolog(bed, "host02")
        vm = next(iter(bed.cloud.vms.values()))
        deleted = run(bed, "tm/onestor/delete", f"host02:{BASE}/102/{vm.id}", str(vm.id), "102")
        assert time.monotonic() - begin < 30
    finally:
        host.start()
    assert "host02" in reply.error
    # T24: in the epilog a dead host is a failure; oned shows it and lets the user retry.
    assert "host02" in assert_clean_failure(deleted)


def test_network_cut_before(bed: Testbed) -> None:
    bed.configure("CONNECT_TIMEOUT=2\n")
    bed.hosts[0].cut()
    begin = time.monotonic()
    assert "host01" in failing_prolog(bed).error
    assert time.monotonic() - begin < 30


def test_K7_K8_network_cut_in_the_middle_of_a_transfer(bed: Testbed) -> None:
    """Neither side hangs, and the host, when it is back, has nothing half-done."""
    bed.configure("CONNECT_TIMEOUT=2\nSTALL_TIMEOUT=2\n")
    host = bed.hosts[0]
    image = bed.image(BIG)
    vm = bed.vm(image)
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    host.limit_rate(20)
    with impatient(bed):
        call = bed.oned.transfer_mad.start_line(
            f"CLONE onestor fe:{image.source} host01:{bed.disk_path(vm)} {vm.id} 101"
        )
        wait_until(lambda: part_bytes(host) > 1 << 20, "data arrives")
        host.cut()
        begin = time.monotonic()
        reply = call.wait()
        assert time.monotonic() - begin < 45
        assert not reply.success
        assert "host01" in reply.error
        host.heal()
        wait_until(lambda: bed.leftovers() == [], "the host has cleaned up", timeout=90)
    assert vm_files(bed, host) == {}
    assert cached_names(bed, host) == set()


def test_C1_C8_system_datastore_full_whose_room_nobody_checks(bed: Testbed) -> None:
    """With the check, test_cache_faults.py shows it for each way the image may come."""
    host = bed.hosts[0]
    image = bed.image(BIG)
    bed.configure("CHECK_FREE_SPACE=NO\n")
    host.mount_datastores(12)
    try:
        vm = bed.vm(image)
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        assert not reply.success
        left = [*vm_files(bed, host), *cached_names(bed, host)]
    finally:
        host.unmount_datastores()
    assert "No space left on device" in reply.error
    assert "host01" in reply.error
    assert left == []


def test_image_datastore_full(bed: Testbed) -> None:
    bed.configure("CHECK_FREE_SPACE=NO\n", "datastore/onestor/onestor.conf")
    bed.frontend.mount_datastores(12)
    try:
        image = bed.oned.create_image(BIG, bed.images)
        left = [name for name in bed.files(bed.frontend) if "lost+found" not in name]
    finally:
        bed.frontend.unmount_datastores()
    assert "No space left on device" in str(image.template["ERROR"])
    assert left == []


def test_image_missing_and_unreadable(bed: Testbed) -> None:
    image = bed.image(RAW)
    bed.frontend.run(["chmod", "000", image.source])
    vm = bed.vm(image)
    assert "Permission denied" in bed.oned.instantiate(vm, "host01", bed.system).error
    bed.frontend.run(["rm", "-f", image.source])
    reply = bed.oned.retry_prolog(vm)
    assert "no such file" in reply.error
    assert image.source.replace("//", "/") in reply.error
    assert bed.files(bed.hosts[0]) == {}


def broken_program(node: Node, name: str, script: str) -> Callable[[], object]:
    """Put a program before the real one in a node's PATH; returns what takes it away again."""
    path = f"/usr/local/bin/{name}"
    node.write(path, f"#!/bin/sh\n{script}\n", mode=0o755, owner="root")
    return lambda: node.run(["rm", path], user="root")


@pytest.mark.parametrize("command", ["info", "resize", "convert"])
def test_C2_C6_K1_each_qemu_img_step_that_fails_is_the_one_that_is_named(
    bed: Testbed, command: str
) -> None:
    image = bed.image(f"{SOURCES}/disk.qcow2")
    bed.images.template["SPARSE"] = "NO"
    bed.cloud.save(bed.images)
    script = f'case " $* " in *" {command} "*) echo planted failure >&2; exit 1;; esac\n'
    restore = broken_program(bed.hosts[0], "qemu-img", script + 'exec /usr/bin/qemu-img "$@"')
    try:
        vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100")])
        reply = bed.oned.instantiate(vm, "host01", bed.system)
    finally:
        restore()
    assert not reply.success
    step = {"info": "inspect disk", "resize": "resize disk", "convert": "allocate disk"}[command]
    assert reply.error.startswith(step)
    assert "planted failure" in reply.error  # K6
    assert vm_files(bed, bed.hosts[0]) == {}


def test_K12_missing_tool_is_named(bed: Testbed) -> None:
    restore = broken_program(bed.hosts[0], "python3", "echo 'python3: not found' >&2; exit 127")
    try:
        assert "python3: not found" in failing_prolog(bed).error
    finally:
        restore()


def test_python_of_the_host_is_too_old(bed: Testbed) -> None:
    script = 'exec /usr/bin/python3 -c "import sys; sys.version_info=(3,6,8,0,0); '
    script += 'sys.version=\'3.6.8 (x)\'; exec(sys.argv[1])" "$3"'
    restore = broken_program(bed.hosts[0], "python3", script)
    try:
        assert "python3 here is 3.6.8, onestor needs 3.9" in failing_prolog(bed).error
        bed.configure("HOST_PYTHON=/usr/bin/python3\n")
        assert bed.oned.retry_prolog(next(iter(bed.cloud.vms.values()))).success
    finally:
        restore()


def test_changed_host_key_is_refused(bed: Testbed) -> None:
    known = "/var/lib/one/.ssh/known_hosts"
    before = bed.frontend.read(known)
    key = bed.hosts[1].read("/etc/ssh/ssh_host_ed25519_key.pub").decode().split()[:2]
    other = re.sub(rb"(?m)^host01[ ,].*$", f"host01 {' '.join(key)}".encode(), before)
    bed.frontend.write(known, other)
    try:
        reply = failing_prolog(bed)
    finally:
        bed.frontend.write(known, before)
    assert "host01" in reply.error
    assert "key" in reply.error


def test_unknown_host_key_follows_the_ssh_configuration(bed: Testbed) -> None:
    frontend = bed.frontend
    files = {name: frontend.read(f"/var/lib/one/.ssh/{name}") for name in ("known_hosts", "config")}
    frontend.write("/var/lib/one/.ssh/known_hosts", "")
    try:
        strict = files["config"].replace(b"accept-new", b"yes")
        frontend.write("/var/lib/one/.ssh/config", strict)
        assert "host key" in failing_prolog(bed).error
        frontend.write("/var/lib/one/.ssh/config", files["config"])
        assert bed.oned.retry_prolog(next(iter(bed.cloud.vms.values()))).success
        assert frontend.read("/var/lib/one/.ssh/known_hosts").startswith(b"host01 ")
    finally:
        for name, content in files.items():
            frontend.write(f"/var/lib/one/.ssh/{name}", content)


def test_oned_does_not_answer(bed: Testbed) -> None:
    vm = bed.vm(bed.image(SMALL))
    bed.frontend.write("/var/lib/one/oned/refuse", "")
    try:
        reply = bed.oned.instantiate(vm, "host01", bed.system)
    finally:
        bed.frontend.run(["rm", "-f", "/var/lib/one/oned/refuse"], user="root")
    assert "ask oned for vm" in reply.error
    assert bed.files(bed.hosts[0]) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("STALL_TIMEOUT=soon\n", "STALL_TIMEOUT"),
        ("SPARSE=perhaps\n", "SPARSE"),
        ("HOST_PYTHON='python3; id'\n", "HOST_PYTHON"),
        ("this is no assignment\n", "line "),
        ("SPARSE='YES\n", "line "),
    ],
)
def test_J3_bad_configuration_names_the_attribute(bed: Testbed, text: str, expected: str) -> None:
    bed.configure(text)
    reply = failing_prolog(bed, source=SMALL)
    assert expected in reply.error
    assert "onestorrc" in reply.error


def test_J3_bad_attribute_in_a_template(bed: Testbed) -> None:
    image = bed.image(SMALL)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SPARSE="$(id)")])
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert "SPARSE of disk.0 of VM" in reply.error


def test_oned_6_0_gets_the_message_between_markers(bed: Testbed) -> None:
    bed.use_version("6.0.0")
    image = bed.image(SMALL)
    bed.frontend.run(["rm", image.source])
    vm = bed.vm(image)
    assert "no such file" in bed.oned.instantiate(vm, "host01", bed.system).error


def test_K15_sigterm_cleans_up_everywhere(bed: Testbed) -> None:
    check_interrupted(bed, 15)


def test_A3_sigkill_of_the_frontend_side_ends_the_work_on_the_host(bed: Testbed) -> None:
    check_interrupted(bed, 9)


def check_interrupted(bed: Testbed, signum: int) -> None:
    host = bed.hosts[0]
    image = bed.image(BIG)
    vm = bed.vm(image)
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    host.limit_rate(40)
    call = bed.oned.transfer_mad.start_line(
        f"CLONE onestor fe:{image.source} host01:{bed.disk_path(vm)} {vm.id} 101"
    )
    wait_until(lambda: part_bytes(host) > 1 << 20, "data arrives")
    call.kill(signum)
    assert not call.wait().success
    host.unlimit_rate()
    wait_until(lambda: bed.leftovers() == [], "everybody has cleaned up", timeout=10)
    assert vm_files(bed, host) == {}
    assert cached_names(bed, host) == set()
    assert bed.oned.retry_prolog(vm).success
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, BIG)


def test_failures_are_in_onestors_own_log(bed: Testbed) -> None:
    reply = failing_prolog(bed, "nowhere")
    assert f"ERROR clone: {reply.error}" in bed.frontend.read(LOG).decode()


@pytest.mark.parametrize("seed", sample(range(12), 2))
def test_K15_sigterm_at_a_random_moment(bed: Testbed, seed: int) -> None:
    """Any action, ended anywhere: nothing half-done stays, and the repeat succeeds."""
    chance = random.Random(seed)
    image = bed.image(RAW)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100")])
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    target = f"host01:{BASE}/102/{vm.id}"
    clone = f"CLONE onestor fe:{image.source} {target}/disk.0 {vm.id} 101"
    delete = f"DELETE onestor {target} {vm.id} 102"
    for line in (clone, delete):
        call = bed.oned.transfer_mad.start_line(line)
        time.sleep(chance.uniform(0, 0.9))  # not to synchronise: any moment will do
        call.kill(15)
        call.wait()
        wait_until(lambda: bed.leftovers() == [], "everybody has cleaned up", timeout=5)
        assert bed.oned.transfer_mad.run_line(line).success
        if line is clone:
            disk = bed.disk_path(vm)
            argv = ["qemu-img", "info", "-f", "raw", "--output=json", disk]
            assert f'"virtual-size": {100 << 20}' in bed.hosts[0].run(argv).stdout
    assert vm_files(bed, bed.hosts[0]) == {"102/.monitor": 8}
