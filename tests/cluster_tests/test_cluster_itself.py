"""The test cluster does what the tests on it rely on, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, CommandFailed, Node, NodeProcess, StartError
from tests.cluster.cluster import PROJECT
from tests.cluster.paths import in_root
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

AGENT = {"SSH_AUTH_SOCK": "/var/run/one/ssh-agent.sock"}
DATASTORES = "/var/lib/one/datastores"
MEGABYTE = 1 << 20
SSH = ["ssh", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes"]

USER_OF_A_CLUSTER = """
import json, signal
from tests.cluster import Cluster
cluster = Cluster(hosts=1)
cluster.up()
cluster.frontend.popen(["sleep", "1000"])
stopped = cluster.frontend.popen(["sleep", "1000"])
stopped.kill_program(signal.SIGSTOP)
cluster.node("host01").mount_datastores(20)
pids = [cluster.supervisor_pid, *(node.pid for node in cluster.nodes)]
print(json.dumps({"lab": str(cluster.lab), "pids": pids}), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster for the tests that leave it as they found it."""
    with Cluster(hosts=3, binds={"/data/tests": Path(__file__).parent}) as shared:
        shared.fill_known_hosts()
        yield shared


@pytest.fixture
def fe(cluster: Cluster) -> Node:
    return cluster.frontend


@pytest.fixture
def host(cluster: Cluster) -> Node:
    return cluster.node("host01")


@dataclasses.dataclass(frozen=True)
class Traces:
    """Where a cluster that is up can be seen on the real machine."""

    lab: Path
    namespaces: frozenset[str]
    images: frozenset[int]  # inode numbers of the files behind its loop devices

    @staticmethod
    def of(lab: Path, pids: list[int]) -> Traces:
        """The traces of a cluster with the given first processes."""
        namespaces = frozenset().union(*(namespaces_of(Path(f"/proc/{pid}")) for pid in pids))
        images = frozenset(image.stat().st_ino for image in lab.glob("*/root/disks/*.img"))
        return Traces(lab, namespaces, images)

    @staticmethod
    def of_cluster(cluster: Cluster) -> Traces:
        pids = [cluster.supervisor_pid, *(node.pid for node in cluster.nodes)]
        return Traces.of(cluster.lab, pids)

    def left(self) -> list[str]:
        """What of it is still there."""
        processes = [
            f"process {entry.name}"
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and namespaces_of(entry) & self.namespaces
        ]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        here = [mount for mount in mounts if str(self.lab) in mount]
        loops = [f"loop device of inode {inode}" for inode in self.images & loop_inodes()]
        return processes + here + loops + ([str(self.lab)] if self.lab.exists() else [])


def namespaces_of(process: Path) -> frozenset[str]:
    """The namespaces of a process that are not this process's, too."""
    found = set()
    for name in ("net", "mnt", "pid", "uts", "ipc"):
        try:
            namespace = os.readlink(process / "ns" / name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or one of the machine that nobody may look into
        if namespace != os.readlink(f"/proc/self/ns/{name}"):
            found.add(namespace)
    return frozenset(found)


def loop_inodes() -> set[int]:
    argv = ["losetup", "--list", "--noheadings", "--output", "BACK-INO"]
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {int(inode) for inode in output.split()}


def next_words(process: NodeProcess, timeout: float) -> str | None:
    """What the process says next; None if it stays silent for `timeout` seconds."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], timeout)
    return os.read(process.stdout.fileno(), 4096).decode() if readable else None


def say(process: NodeProcess, words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words.encode())
    process.stdin.flush()


def commands(node: Node) -> list[list[str]]:
    return [argv for _, argv in node.processes()]


def seconds_to_send(source: Node, target: Node, size: int) -> float:
    started = time.monotonic()
    source.run([*SSH, target.name, "cat > /dev/null"], env=AGENT, input=os.urandom(size))
    return time.monotonic() - started


# Up and down


def test_three_hosts_are_up_within_seconds() -> None:
    started = time.monotonic()
    with Cluster(hosts=3) as cluster:
        for host in cluster.hosts:
            assert cluster.frontend.run([*SSH, host.name, "hostname"], env=AGENT).stdout == (
                f"{host.name}\n"
            )
        seconds = time.monotonic() - started
    print(f"three hosts up and answering on ssh after {seconds:.2f} s")
    assert seconds < 5


def test_down_leaves_nothing() -> None:
    with Cluster(hosts=2) as cluster:
        cluster.hosts[0].mount_datastores(20)
        stopped = cluster.hosts[1].popen(["sleep", "1000"])
        stopped.kill_program(signal.SIGSTOP)
        traces = Traces.of_cluster(cluster)
        assert traces.images <= loop_inodes()
        assert len(traces.left()) > 2
    wait_until(lambda: not traces.left(), "the end of the cluster")
    with stopped:
        assert stopped.returncode == -signal.SIGKILL


def test_up_again_after_down() -> None:
    cluster = Cluster(hosts=1)
    for _ in range(2):
        cluster.up()
        cluster.node("host01").run(["true"])
        cluster.down()
    cluster.down()
    with pytest.raises(RuntimeError, match="the cluster is down"):
        cluster.node("host01")


@pytest.fixture
def user(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Traces, int]]:
    """A process with a cluster, the traces and the supervisor of that."""
    with subprocess.Popen(
        [sys.executable, "-c", USER_OF_A_CLUSTER], stdout=subprocess.PIPE, cwd=PROJECT
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            traces = Traces.of(Path(said["lab"]), said["pids"])
            assert len(traces.left()) > 2
            yield process, traces, said["pids"][0]
        finally:
            process.kill()


def test_a_killed_user_leaves_nothing(
    user: tuple[subprocess.Popen[bytes], Traces, int],
) -> None:
    process, traces, _ = user
    process.kill()
    wait_until(lambda: not traces.left(), "the end of the cluster", timeout=5)


def test_sweep_removes_what_a_killed_supervisor_leaves(
    own_base: Path, user: tuple[subprocess.Popen[bytes], Traces, int]
) -> None:
    process, traces, supervisor = user
    assert Cluster.sweep() == [], "the cluster is alive"
    os.kill(supervisor, signal.SIGKILL)
    process.kill()
    wait_until(lambda: traces.left() == [str(traces.lab)], "the end of all but the lab")
    assert Cluster.sweep() == [traces.lab]
    assert traces.left() == []


@pytest.fixture
def own_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for labs where nobody else sweeps."""
    base = Path("/var/tmp") / f"onestor-cluster-test-{os.getpid()}"
    monkeypatch.setenv("ONESTOR_CLUSTER_DIR", str(base))
    yield base
    base.rmdir()


def test_two_clusters_do_not_see_each_other(cluster: Cluster, host: Node) -> None:
    with Cluster(hosts=1) as other:
        assert other.node("host01").address == host.address
        other.node("host01").write("/var/tmp/other", "x")
        assert not host.exists("/var/tmp/other")
        assert other.frontend.run([*SSH, "host01", "ls /var/tmp"], env=AGENT).stdout == "other\n"
        assert cluster.frontend.run([*SSH, "host01", "ls /var/tmp"], env=AGENT).stdout == ""


def test_a_node_that_does_not_start_says_why_and_leaves_nothing(own_base: Path) -> None:
    with pytest.raises(StartError, match="Bad configuration option: Nonsense"):
        Cluster(hosts=1, sshd_options={"Nonsense": "yes"}).up()
    assert list(own_base.iterdir()) == []


def test_daemons_start_on_hosts_and_sshd_options_hold_everywhere() -> None:
    started = ["touch", "/run/daemon-started"]
    with Cluster(hosts=1, host_daemons=[started], sshd_options={"MaxSessions": "77"}) as cluster:
        assert cluster.node("host01").exists("/run/daemon-started")
        assert not cluster.frontend.exists("/run/daemon-started")
        for node in cluster.nodes:
            options = node.run(["sshd", "-T"], user="root").stdout
            assert "maxsessions 77\n" in options


# Isolation


def test_the_real_machine_stays_as_it_is() -> None:
    def real_machine() -> list[object]:
        links = subprocess.run(["ip", "-o", "link"], check=True, stdout=subprocess.PIPE).stdout
        paths = ["/etc/passwd", "/etc/hosts", "/etc/ssh/sshd_config", "/proc/self/mounts"]
        files = [Path(path).read_bytes() for path in paths if Path(path).exists()]
        directories = [sorted(os.listdir(path)) for path in ("/run", "/var/lib", "/usr")]
        kvm = Path("/dev/kvm").stat().st_mode if Path("/dev/kvm").exists() else None
        return [links, files, directories, kvm, os.uname().nodename]

    before = real_machine()
    with Cluster(hosts=1) as cluster:
        cluster.node("host01").write("/usr/local/bin/qemu-img", "#!/bin/sh\n", owner="root")
        cluster.node("host01").mount_datastores(20)
        assert real_machine() == before
    assert real_machine() == before


def test_nodes_do_not_see_the_real_machine(cluster: Cluster) -> None:
    for node in cluster.nodes:
        homes = node.run(["ls", "-A", "/root", "/home"], user="root").stdout
        assert homes == "/home:\n\n/root:\n"
        assert not node.exists("/old-root")
        assert node.run(["uname", "-n"]).stdout == f"{node.name}\n"
        assert sorted(node.run(["ls", "/sys/class/net"]).stdout.split()) == ["eth0", "lo"]
        shadow = node.read("/etc/shadow").decode().splitlines()
        assert {line.split(":")[1] for line in shadow} == {"*"}


def test_the_project_and_binds_are_read_only(host: Node) -> None:
    assert host.exists("/src/tests/cluster/init.py")
    assert host.read("/data/tests/test_cluster_itself.py") == Path(__file__).read_bytes()
    for directory in ("/src", "/data/tests"):
        refused = host.run(["touch", f"{directory}/x"], user="root", check=False)
        assert "Read-only file system" in refused.stderr


def test_every_host_has_a_usr_of_its_own(cluster: Cluster, host: Node) -> None:
    host.write("/usr/local/bin/hello", "#!/bin/sh\necho hello\n", mode=0o755, owner="root")
    assert host.run(["hello"]).stdout == "hello\n"
    assert not cluster.node("host02").exists("/usr/local/bin/hello")
    host.path("/usr/local/bin/hello").unlink()


def test_kvm_is_open_to_oneadmin(host: Node) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    host.run(["python3", "-c", "open('/dev/kvm', 'r+b', buffering=0)"])


# ssh


def test_hosts_have_no_private_key_and_reach_each_other_by_the_agent(cluster: Cluster) -> None:
    fe = cluster.frontend
    assert fe.exists("/var/lib/one/.ssh/id_ed25519")
    for host in cluster.hosts:
        keys = ["find", "/var", "/home", "/root", "/tmp", "-name", "id_*"]
        assert host.run(keys, user="root").stdout == ""
    onward = ["host01", "ssh -o BatchMode=yes host02 hostname"]
    with_agent = fe.run([*SSH, "-o", "ForwardAgent=yes", *onward], env=AGENT)
    assert with_agent.stdout == "host02\n"
    without = fe.run([*SSH, *onward], env=AGENT, check=False)
    assert "Permission denied (publickey)" in without.stderr


def test_the_frontend_reaches_itself_and_is_reached(cluster: Cluster) -> None:
    onward = ["host03", "ssh -o BatchMode=yes fe hostname"]
    fe = cluster.frontend
    assert fe.run([*SSH, "fe", "hostname"], env=AGENT).stdout == "fe\n"
    assert fe.run([*SSH, "-o", "ForwardAgent=yes", *onward], env=AGENT).stdout == "fe\n"


def test_known_hosts_start_empty_and_can_be_filled() -> None:
    with Cluster(hosts=1) as cluster:
        strict = [*SSH, "-o", "StrictHostKeyChecking=yes", "host01", "true"]
        assert not cluster.frontend.exists("/var/lib/one/.ssh/known_hosts")
        refused = cluster.frontend.run(strict, env=AGENT, check=False)
        assert "Host key verification failed" in refused.stderr
        cluster.fill_known_hosts()
        cluster.frontend.run(strict, env=AGENT)


def test_ssh_of_oned_shares_connections_unless_told_otherwise(fe: Node) -> None:
    def masters() -> int:
        return len(fe.run(["ls", "/run/one/ssh-socks"]).stdout.split())

    for told in (["-oControlMaster=no"], ["-o", "controlmaster no"]):
        fe.run(["ssh", *told, "host02", "true"], env=AGENT)
    fe.run(["ssh", "host02", "true"], env={**AGENT, "SSH_OPT_CONTROL_MASTER": "no"})
    assert masters() == 0
    fe.run(["ssh", "host02", "true"], env=AGENT)
    assert masters() == 1
    fe.run(["ssh", "-O", "exit", "host02"])


# Programs


def test_run_gives_a_clean_environment(fe: Node, host: Node) -> None:
    environment = dict(
        line.split("=", 1) for line in host.run(["env"], env={"MORE": "1"}).stdout.splitlines()
    )
    assert environment == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/var/lib/one",
        "USER": "oneadmin",
        "LANG": "C.UTF-8",
        "PWD": "/var/lib/one",
        "MORE": "1",
    } or environment.keys() == {"PATH", "HOME", "USER", "LANG", "MORE"}
    assert fe.run(["which", "ssh"]).stdout == "/usr/lib/one/sh/override/ssh\n"


def test_programs_start_with_default_signals(host: Node) -> None:
    status = host.run(["cat", "/proc/self/status"]).stdout.splitlines()
    fields = dict(line.split(":\t", 1) for line in status)
    assert {int(fields[name], 16) for name in ("SigBlk", "SigIgn")} == {0}
    assert fields["CapEff"] == "0" * 16


def test_run_passes_user_directory_input_and_output(host: Node) -> None:
    assert host.run(["id"]).stdout == (
        "uid=9869(oneadmin) gid=9869(oneadmin) groups=9869(oneadmin)\n"
    )
    assert host.run(["id", "-u"], user="root").stdout == "0\n"
    assert host.run(["pwd"], cwd="/var/tmp").stdout == "/var/tmp\n"
    assert host.run(["cat"], input=b"\xff\0", text=False).stdout == b"\xff\0"
    assert host.run(["cat"]).stdout == ""


def test_a_failing_command_says_where_and_why(host: Node) -> None:
    with pytest.raises(CommandFailed, match=r"on host01: .*exit status 3[^\0]*oh no"):
        host.run(["sh", "-c", "echo oh no >&2; exit 3"])
    assert host.run(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert host.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_a_timeout_kills_the_whole_tree(host: Node) -> None:
    tree = "sleep 1000 & setsid sh -c 'sleep 1000; true' & (sleep 1000 &); echo up; wait"
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        host.run(["sh", "-c", tree], timeout=0.5)
    assert caught.value.output == b"up\n"
    wait_until(lambda: ["sleep", "1000"] not in commands(host), "the end of the tree")


def test_kill_program_ends_the_program_alone(host: Node) -> None:
    with host.popen(["sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo $!; wait"]) as process:
        child = next_words(process, 5)
        process.kill_program()
        assert process.wait(5) == -signal.SIGKILL
    assert child is not None
    left = int(child), ["sleep", "1000"]  # it has that argv when it has come to exec
    wait_until(lambda: left in host.processes(), "the child lives on")
    host.run(["kill", child.strip()])


def test_a_program_can_be_stopped_and_continued(host: Node) -> None:
    with host.popen(["cat"]) as process:
        process.kill_program(signal.SIGSTOP)
        say(process, "hello")
        assert next_words(process, 0.2) is None
        process.kill_program(signal.SIGCONT)
        assert next_words(process, 5) == "hello"
        process.kill_tree()


# Files


def test_files_are_written_and_read_as_the_node_sees_them(host: Node) -> None:
    host.write("/var/tmp/new/file", "text", mode=0o640)
    seen = host.run(["stat", "-c", "%U %G %a", "/var/tmp/new", "/var/tmp/new/file"]).stdout
    assert seen == "oneadmin oneadmin 755\noneadmin oneadmin 640\n"
    assert host.read("/var/tmp/new/file") == b"text"
    host.path("/var/tmp/new/link").symlink_to("/etc/hostname")
    assert host.read("/var/tmp/new/link") == b"host01\n"
    assert host.path("/var/tmp/new/link").is_symlink()
    assert host.path("/var/run/sshd") == Path(f"/proc/{host.pid}/root/run/sshd")
    host.run(["rm", "-r", "/var/tmp/new"])


@pytest.mark.parametrize(("fstype", "size_mb"), [("ext4", 20), ("xfs", 300), ("xfs+reflink", 300)])
def test_a_small_file_system_is_full_soon(fstype: str, size_mb: int) -> None:
    with Cluster(hosts=1) as cluster:
        host = cluster.node("host01")
        host.write(f"{DATASTORES}/before", "before")
        host.mount_datastores(size_mb, fstype)
        assert host.run(["ls", DATASTORES]).stdout == ""
        fill = ["dd", "if=/dev/zero", f"of={DATASTORES}/1/x", "bs=1M", f"count={size_mb}"]
        host.run(["mkdir", f"{DATASTORES}/1"])
        assert os.strerror(errno.ENOSPC) in host.run(fill, check=False).stderr
        host.run(["truncate", "-s", "1M", f"{DATASTORES}/1/x"])
        clone = ["cp", "--reflink=always", f"{DATASTORES}/1/x", f"{DATASTORES}/1/y"]
        assert (host.run(clone, check=False).returncode == 0) == (fstype == "xfs+reflink")

        host.kill()
        host.start()
        assert host.path(f"{DATASTORES}/1/x").stat().st_size == MEGABYTE
        host.unmount_datastores()
        assert host.run(["ls", DATASTORES]).stdout == "before\n"


def test_links_are_followed_as_in_the_node(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to("../../../b")
    (tmp_path / "b").symlink_to("/a/x")
    (tmp_path / "loop").symlink_to("loop")
    assert in_root(tmp_path, "/a/up", follow_last=True) == tmp_path / "a/x"
    assert in_root(tmp_path, "/a/up", follow_last=False) == tmp_path / "a/up"
    assert in_root(tmp_path, "/../b/y", follow_last=False) == tmp_path / "a/x/y"
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        in_root(tmp_path, "/loop/x", follow_last=False)


# Network and power


def test_packets_vanish_while_a_node_is_cut_off(cluster: Cluster, fe: Node, host: Node) -> None:
    connect = [*SSH, "-o", "ConnectTimeout=1", "host01", "true"]
    with fe.popen([*SSH, "host01", "cat"], env=AGENT) as open_connection:
        say(open_connection, "before")
        assert next_words(open_connection, 5) == "before"
        host.cut()
        say(open_connection, "meanwhile")
        assert next_words(open_connection, 0.3) is None
        assert open_connection.poll() is None
        assert "Connection timed out" in fe.run(connect, env=AGENT, check=False).stderr
        fe.run([*SSH, "host02", "true"], env=AGENT)
        host.heal()
        assert next_words(open_connection, 10) == "meanwhile"
        fe.run(connect, env=AGENT)
        open_connection.kill_tree()


def test_a_killed_host_falls_silent_and_keeps_its_disk() -> None:
    with Cluster(hosts=1) as cluster:
        host, fe = cluster.node("host01"), cluster.frontend
        cluster.fill_known_hosts()
        host.write(f"{DATASTORES}/1/x", "kept")
        host.write("/tmp/gone", "x")
        host.write("/usr/local/bin/kept", "x")
        with fe.popen([*SSH, "host01", "echo up; sleep 1000"], env=AGENT) as connection:
            assert next_words(connection, 5) == "up\n"
            traces = Traces(cluster.lab, namespaces_of(Path(f"/proc/{host.pid}")), frozenset())
            host.kill()
            assert next_words(connection, 0.3) is None
            assert connection.poll() is None, "the other side must not learn of a power cut"
            connection.kill_tree()
        with pytest.raises(RuntimeError, match="host01 is down"):
            host.run(["true"])
        wait_until(lambda: traces.left() == [str(cluster.lab)], "the end of the host")

        host.start()
        assert host.read(f"{DATASTORES}/1/x") == b"kept"
        assert host.exists("/usr/local/bin/kept")
        assert not host.exists("/tmp/gone")
        assert fe.run([*SSH, "host01", "hostname"], env=AGENT).stdout == "host01\n"


def test_the_frontend_can_be_killed_and_started(fe: Node) -> None:
    fe.kill()
    fe.start()
    assert fe.run([*SSH, "host01", "hostname"], env=AGENT).stdout == "host01\n"


def test_a_limited_rate_holds_in_both_directions(fe: Node, host: Node) -> None:
    size = 4 * MEGABYTE
    least = size * 8 / 6e6 * 0.75  # seconds at 6 Mbit/s, less what the buckets let through
    received = host.bytes_received()
    unlimited = seconds_to_send(fe, host, size)
    assert size < host.bytes_received() - received < size * 1.2

    host.limit_rate(6)
    assert least < seconds_to_send(fe, host, size)
    sent = host.bytes_sent()
    started = time.monotonic()
    read = [*SSH, "host01", f"head -c {size} /dev/urandom"]
    assert len(fe.run(read, env=AGENT, text=False).stdout) == size
    assert least < time.monotonic() - started
    assert size < host.bytes_sent() - sent < size * 1.2

    host.unlimit_rate()
    assert max(unlimited, seconds_to_send(fe, host, size)) < least
