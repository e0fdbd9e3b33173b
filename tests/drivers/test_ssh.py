"""The control connection and OpenSSH agree: whatever ssh_config(5) says counts for both."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.cluster import Node
from tests.drivers.conftest import (
    SOURCES,
    agents,
    bridged,
    companion,
    configure_system,
    digest,
    lock_held,
    start_clone,
)
from tests.sampling import one_of
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

CONFIG = "/var/lib/one/.ssh/config"
KNOWN = "/var/lib/one/.ssh/known_hosts"
SMALL, BIG = f"{SOURCES}/small.img", f"{SOURCES}/big.img"


@contextlib.contextmanager
def ssh_files(node: Node, **files: str) -> Iterator[None]:
    """Put these files into ~/.ssh for the block; config gets its text before what it had."""
    before = {"config": node.read(CONFIG), "known_hosts": node.read(KNOWN)}
    for name, text in files.items():
        old = before["config"].decode() if name == "config" else ""
        mode = 0o600 if name.startswith("id_") else 0o644
        node.write(f"/var/lib/one/.ssh/{name}", text + old, mode=mode)
    try:
        yield
    finally:
        for name in files:
            node.run(["rm", "-f", f"/var/lib/one/.ssh/{name}"])
        node.write(CONFIG, before["config"])
        node.write(KNOWN, before["known_hosts"])


def works(bed: Testbed, host: str = "host01") -> bool:
    """Whether a clone of an image that comes anew succeeds: control and bulk connection."""
    vm = bed.vm(bed.image(SMALL))
    reply = bed.oned.instantiate(vm, host, bed.system)
    assert len(reply.result.stderr.splitlines()) <= 1, reply.result.stderr
    return reply.success


def refusal(bed: Testbed) -> str:
    line = f"DELETE onestor host01:{DATASTORES}/102/5 5 102"
    reply = bed.oned.transfer_mad.run_line(line)
    assert not reply.success
    assert len(reply.result.stderr.splitlines()) == 1
    return reply.error


def host_key(node: Node) -> str:
    return " ".join(node.read("/etc/ssh/ssh_host_ed25519_key.pub").decode().split()[:2])


@contextlib.contextmanager
def second_sshd(node: Node, port: int) -> Iterator[None]:
    argv = ["/usr/sbin/sshd", "-D", "-p", str(port), "-o", "PidFile=none"]
    with node.popen(argv, user="root") as server:
        try:
            probe = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
            wait_until(lambda: node.run(probe, check=False).returncode == 0, "sshd listens")
            yield
        finally:
            server.kill_tree()


def test_another_port_and_an_alias_for_the_key(bed: Testbed) -> None:
    config = "Host host01\n  Port 2222\n  HostKeyAlias the-first\n"
    key = host_key(bed.hosts[0])
    with second_sshd(bed.hosts[0], 2222):
        with ssh_files(bed.frontend, config=config, known_hosts=f"the-first {key}\n"):
            assert works(bed)
        wrong = f"the-first {host_key(bed.hosts[1])}\n"
        with ssh_files(bed.frontend, config=config, known_hosts=wrong):
            assert "host key is not the one" in refusal(bed)
        with ssh_files(
            bed.frontend, config="Host host01\n  Port 2222\n", known_hosts=f"[host01]:2222 {key}\n"
        ):
            assert works(bed)


@pytest.mark.parametrize("pattern", one_of(2, ["host?1", "*,!host02", "host*"]))
def test_wildcards_in_known_hosts(bed: Testbed, pattern: str) -> None:
    with ssh_files(bed.frontend, known_hosts=f"{pattern} {host_key(bed.hosts[0])}\n"):
        assert works(bed)
    with ssh_files(bed.frontend, known_hosts=f"{pattern} {host_key(bed.hosts[1])}\n"):
        assert "host key is not the one" in refusal(bed)


def test_revoked_keys(bed: Testbed) -> None:
    key = host_key(bed.hosts[0])
    with ssh_files(bed.frontend, known_hosts=f"host01 {key}\n@revoked * {key}\n"):
        assert "revoked" in refusal(bed)


def test_hashed_names(bed: Testbed) -> None:
    with ssh_files(bed.frontend, known_hosts=f"host01 {host_key(bed.hosts[0])}\n"):
        bed.frontend.run(["ssh-keygen", "-q", "-H", "-f", KNOWN])
        assert b"host01" not in bed.frontend.read(KNOWN)
        assert works(bed)
        bed.frontend.run(["rm", f"{KNOWN}.old"])


def test_a_new_key_is_a_line_of_its_own(bed: Testbed) -> None:
    with ssh_files(bed.frontend, known_hosts=f"host02 {host_key(bed.hosts[1])}"):
        assert works(bed)
        lines = bed.frontend.read(KNOWN).decode().splitlines()
        assert f"host01 {host_key(bed.hosts[0])}" in lines


@pytest.mark.parametrize(
    "config",
    [
        "Host host01\n  ProxyJump oneadmin@host02:22\n",
        "Host host01\n  ProxyCommand ssh -W %h:%p host02\n",
        "Host edge\n  HostName host01\n  ProxyJump host02\n",
        "Match host host01\n  User oneadmin\n",
    ],
)
def test_ways_to_a_host(bed: Testbed, config: str) -> None:
    with ssh_files(bed.frontend, config=config):
        assert works(bed, "edge" if "edge" in config else "host01")


def test_a_way_that_leads_nowhere_is_one_line(bed: Testbed) -> None:
    with ssh_files(bed.frontend, config="Host host01\n  ProxyCommand false\n"):
        assert "host01" in refusal(bed)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("kind", "passphrase"),
    one_of(3, list(itertools.product(["rsa", "ecdsa", "ed25519"], ["", "secret"]))),
)
def test_other_keys_beside_the_right_one(bed: Testbed, kind: str, passphrase: str) -> None:
    """A key nobody accepts, or one that is encrypted, must not stand in the way of the agent."""
    frontend = bed.frontend
    own = frontend.read("/var/lib/one/.ssh/id_ed25519")
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", "/tmp/other"]
    frontend.run(argv)
    other = frontend.read("/tmp/other").decode()
    frontend.run(["rm", "/tmp/other", "/tmp/other.pub"])
    try:
        with ssh_files(frontend, **{f"id_{kind}": other}):
            assert works(bed)
    finally:
        frontend.write("/var/lib/one/.ssh/id_ed25519", own, mode=0o600)


def test_G16_only_the_agent_has_the_key(bed: Testbed) -> None:
    frontend = bed.frontend
    key = frontend.read("/var/lib/one/.ssh/id_ed25519")
    frontend.run(["rm", "/var/lib/one/.ssh/id_ed25519"])
    try:
        assert works(bed)
        # The front-end under another of its names: an agent there sends, with ours lent to it.
        vm = bed.vm(bed.image(SMALL))
        bed.cloud.place(vm, "host01", bed.system)
        bed.cloud.set_state(vm, 3, 1)
        source = next(iter(bed.cloud.images.values())).source
        address = frontend.address
        reply = bed.oned.transfer_mad.run_line(
            f"CLONE onestor {address}:{source} host01:{bed.disk_path(vm)} {vm.id} 101"
        )
        assert reply.success, reply.error
        assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(frontend, SMALL)
    finally:
        frontend.write("/var/lib/one/.ssh/id_ed25519", key, mode=0o600)


def test_no_key_at_all(bed: Testbed) -> None:
    frontend = bed.frontend
    key = frontend.read("/var/lib/one/.ssh/id_ed25519")
    frontend.run(["rm", "/var/lib/one/.ssh/id_ed25519"])
    try:
        argv = [f"{REMOTES}/tm/onestor/delete", f"host01:{DATASTORES}/102/5", "5", "102"]
        done = frontend.run(argv, check=False)  # without SSH_AUTH_SOCK
    finally:
        frontend.write("/var/lib/one/.ssh/id_ed25519", key, mode=0o600)
    assert "permission denied for oneadmin: there is no key" in done.stderr


def test_K7_a_host_that_accepts_and_says_nothing(bed: Testbed) -> None:
    """Connections are accepted by the kernel of a frozen host, and nothing else happens."""
    script = "import socket, time; s = socket.create_server(('', 2200)); time.sleep(60)"
    config = "Host host01\n  Port 2200\n"
    bed.configure("CONNECT_TIMEOUT=1\n")
    with bed.hosts[0].popen(["/usr/bin/python3", "-c", script]) as server:
        try:
            with ssh_files(bed.frontend, config=config):
                argv = [f"{REMOTES}/tm/onestor/delete", f"host01:{DATASTORES}/102/5", "5", "102"]
                done = bed.frontend.run(argv, env=AGENT, check=False, timeout=60)
        finally:
            server.kill_tree()
    assert "host01" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_C12_the_hop_that_fails_is_named_with_both_ends(bed: Testbed) -> None:
    bed.configure(
        "REPLICA_SSH_FE_OPTS='-oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=yes'\n"
    )
    vm = bed.vm(bed.image(SMALL))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert "from fe to host01" in reply.error
    assert "Host key verification failed" in reply.error


def lent(node: Node) -> list[bool]:
    """Of each agent at work on a node, whether it has been lent the front-end's ssh-agent."""
    return sorted(
        b"SSH_AUTH_SOCK=" in node.path(f"/proc/{pid}/environ").read_bytes() for pid in agents(node)
    )


def test_C12_the_ssh_agent_is_lent_only_to_who_fetches(bed: Testbed) -> None:
    """Clones that wait for a lock, so that their agents can be looked at."""
    configure_system(bed, REPLICA_HOST="host03")
    host, replica = bed.hosts[0], bed.hosts[2]
    image = bed.image(SMALL)
    with lock_held(replica, companion(image, "lock")):
        cold = start_clone(bed, image, host)
        wait_until(lambda: agents(replica), "the replica is asked")
        assert lent(host) == [False, True], "one places the disk, the other fetches the image"
        assert lent(replica) == [False]
    assert cold.wait().success
    wait_until(lambda: not agents(host), "that one has ended")
    with lock_held(host, companion(image, "lock")):
        warm = start_clone(bed, image, host)
        wait_until(lambda: agents(host), "the disk is placed")
        assert lent(host) == [False]
    assert warm.wait().success


def test_C12_the_ssh_agent_is_lent_to_a_bridge_host_when_it_sends(bed: Testbed) -> None:
    host, bridge = bed.hosts[0], bed.hosts[1]
    image = bed.image(BIG)
    bridged(bed, image, bridge)
    with lock_held(host, companion(image, "lock")):
        running = start_clone(bed, image, host)
        wait_until(lambda: agents(host), "the disk is placed")
        assert lent(bridge) == [False], "it has described the image"
        host.limit_rate(40)
    before = host.bytes_received()
    wait_until(lambda: host.bytes_received() - before > 1 << 20, "the image comes", timeout=30)
    assert lent(bridge) == [False, True]
    host.unlimit_rate()
    assert running.wait().success
    assert digest(host, bed.disk_path(running.vm)) == digest(bed.frontend, BIG)


def test_odd_comments_in_key_files(bed: Testbed) -> None:
    frontend = bed.frontend
    public = frontend.read("/var/lib/one/.ssh/id_ed25519.pub")
    frontend.write(
        "/var/lib/one/.ssh/id_ed25519.pub", public.rstrip() + " Jürgen".encode("latin-1")
    )
    known = f"# Jürgen\nhost02 {host_key(bed.hosts[1])}\n"
    try:
        with ssh_files(frontend, known_hosts=known):
            assert works(bed)
    finally:
        frontend.write("/var/lib/one/.ssh/id_ed25519.pub", public)


def test_many_keys_in_the_agent(bed: Testbed) -> None:
    """sshd hangs up after MaxAuthTries: the configured key must be among the first."""
    frontend = bed.frontend
    own = "/var/lib/one/.ssh/id_ed25519"
    frontend.run(["ssh-add", "-q", "-D"], env=AGENT)
    for number in range(8):
        file = f"/tmp/key{number}"
        frontend.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file])
        frontend.run(["ssh-add", "-q", file], env=AGENT)
    frontend.run(["ssh-add", "-q", own], env=AGENT)
    public = frontend.read(f"{own}.pub")
    try:
        assert works(bed)
        # Without the public key at hand nobody can tell which it is: one line says so.
        with ssh_files(frontend, config="Host *\n  IdentityFile /nowhere\n"):
            frontend.run(["rm", f"{own}.pub"])
            assert "host01" in refusal(bed)
    finally:
        frontend.write(f"{own}.pub", public)
        frontend.run(["ssh-add", "-q", "-D"], env=AGENT)
        frontend.run(["ssh-add", "-q", own], env=AGENT)


def test_identity_agent(bed: Testbed) -> None:
    frontend = bed.frontend
    key = frontend.read("/var/lib/one/.ssh/id_ed25519")
    frontend.run(["rm", "/var/lib/one/.ssh/id_ed25519"])
    config = f"Host *\n  IdentityAgent {AGENT['SSH_AUTH_SOCK']}\n"
    argv = [f"{REMOTES}/tm/onestor/delete", f"host01:{DATASTORES}/102/5", "5", "102"]
    try:
        with ssh_files(frontend, config=config):
            assert frontend.run(argv, check=False).returncode == 0
        with ssh_files(frontend, config=config.replace(AGENT["SSH_AUTH_SOCK"], "none")):
            assert "no key" in frontend.run(argv, env=AGENT, check=False).stderr
    finally:
        frontend.write("/var/lib/one/.ssh/id_ed25519", key, mode=0o600)


def test_K7_an_ssh_agent_that_says_nothing(bed: Testbed) -> None:
    script = (
        "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/mute'); "
        "s.listen(9); print(flush=True); time.sleep(60)"
    )
    argv = [f"{REMOTES}/tm/onestor/delete", f"host01:{DATASTORES}/102/5", "5", "102"]
    with bed.frontend.popen(["/usr/bin/python3", "-c", script]) as mute:
        try:
            assert mute.stdout is not None
            mute.stdout.readline()
            done = bed.frontend.run(argv, env={"SSH_AUTH_SOCK": "/tmp/mute"}, timeout=60)
        finally:
            mute.kill_tree()
            bed.frontend.run(["rm", "-f", "/tmp/mute"])
    assert done.returncode == 0, "the key's file is enough"


@pytest.mark.parametrize("jump", ["oneadmin@host02:2200", "nowhere"])
def test_a_jump_host_that_leads_nowhere(bed: Testbed, jump: str) -> None:
    """Named with its own words, and no ssh stays behind, not even one that still connects."""
    bed.configure("CONNECT_TIMEOUT=1\n")
    script = "import socket, time; s = socket.create_server(('', 2200)); time.sleep(60)"
    with bed.hosts[1].popen(["/usr/bin/python3", "-c", script]) as server:
        try:
            with ssh_files(bed.frontend, config=f"Host host01\n  ProxyJump {jump}\n"):
                error = refusal(bed)
        finally:
            server.kill_tree()
    assert "host01" in error
    assert "nowhere" in error or "host02" in error or "ssh" in error
    assert not [argv for _, argv in bed.frontend.processes() if "-W" in argv]
