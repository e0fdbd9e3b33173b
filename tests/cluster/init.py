"""The first process of a node: builds what the node sees, then becomes its sshd.

    init DIRECTORY REPORT_FD SWITCH_FD

Runs as process 1 of the node's fresh namespaces. DIRECTORY holds the node's plan and disk,
SWITCH_FD is the network namespace to plug the node's link into. The end is reported through the
socket REPORT_FD: either a pidfd of this process or the reason why there is no node.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import measuring
from tests.cluster import disk, link, report
from tests.cluster.link import AT_NODE, SWITCH
from tests.cluster.plan import (
    DATASTORES,
    DATASTORES_IMAGE,
    ONEADMIN_ID,
    ONEADMIN_KEY,
    SSH_AGENT_SOCKET,
    NodePlan,
)

SSHD = ["/usr/sbin/sshd", "-D", "-e"]


def main(argv: Sequence[str]) -> None:
    directory = argv[0]
    report_fd, switch = (int(number) for number in argv[1:])
    for fd in (report_fd, switch):
        os.set_inheritable(fd, False)
    waiting = socket.socket(fileno=report_fd)
    try:
        plan = NodePlan.load(directory)
        socket.sethostname(plan.name)
        _plug_in(plan, switch)
        _mount_root(plan)
        _enter_root(plan.root)
        _fill_run()
        if Path(DATASTORES_IMAGE).exists():
            _run(["mount", "-o", "loop", DATASTORES_IMAGE, DATASTORES])
        if plan.is_frontend:
            _start_ssh_agent()
        for daemon in plan.daemons:
            _run(daemon)
        report.send_ready(waiting)
        os.execv(SSHD[0], SSHD)
    except BaseException:
        report.send_failure(waiting)
        raise


def _plug_in(plan: NodePlan, switch: int) -> None:
    """Connect the node to the switch, by a link that bears the node's name there.

    Neighbours are entered for good: a node that is cut off or without power then lets packets
    vanish, where a failed address resolution would tell the sender at once.
    """
    switch_path = f"/proc/self/fd/{switch}"
    at_switch = ["nsenter", f"--net={switch_path}"]
    link.disable_ipv6()
    peer = ["peer", "name", plan.name, "netns", switch_path]
    _run(
        ["ip", "link", "add", AT_NODE, "address", plan.address.mac, "type", "veth", *peer],
        pass_fds=[switch],
    )
    _run(
        [*at_switch, "ip", "link", "set", plan.name, "master", SWITCH, "up"],
        pass_fds=[switch],
    )
    commands = [f"address add {plan.address.ip}/24 dev {AT_NODE}"]
    commands += [f"link set {device} up" for device in ("lo", AT_NODE)]
    commands += [
        f"neighbour replace {other.ip} lladdr {other.mac} dev {AT_NODE} nud permanent"
        for other in plan.peers
        if other != plan.address
    ]
    _run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")


def _mount_root(plan: NodePlan) -> None:
    root = plan.root
    _run(["mount", "--bind", str(root), str(root)])
    _mount_overlay(plan, "usr", "/usr")
    _mount_overlay(plan, "etc", str(disk.shared_etc(plan.lab)))
    _run(["mount", "-t", "proc", "proc", str(root / "proc")])
    _run(["mount", "-t", "sysfs", "sysfs", str(root / "sys")])
    _mount_tmpfs(root / "run", "mode=755")
    _mount_tmpfs(root / "tmp", "mode=1777")
    _mount_dev(root)
    for target, source in plan.binds.items():
        _bind(source, root / target.lstrip("/"), "bind,ro")
    if plan.measured:
        _bind(plan.measured, root / measuring.AT_NODES.lstrip("/"), "bind")


def _mount_overlay(plan: NodePlan, name: str, lower: str) -> None:
    upper, work = plan.overlay(name, "upper"), plan.overlay(name, "work")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    _run(["mount", "-t", "overlay", "overlay", "-o", options, str(plan.root / name)])


def _mount_tmpfs(target: Path, options: str) -> None:
    _run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)])


def _mount_dev(root: Path) -> None:
    """The real devices, but terminals, shared memory and the access to /dev/kvm are our own."""
    dev = root / "dev"
    _run(["mount", "--rbind", "/dev", str(dev)])
    _run(["mount", "-t", "devpts", "-o", "mode=620,ptmxmode=666,gid=5", "devpts", f"{dev}/pts"])
    _mount_tmpfs(dev / "shm", "mode=1777")
    kvm = dev / "kvm"
    if kvm.exists():
        private = root / "run/dev-kvm"
        os.mknod(private, 0o020666, kvm.stat().st_rdev)
        private.chmod(0o666)
        _run(["mount", "--bind", str(private), str(kvm)])


def _bind(source: str, target: Path, options: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _run(["mount", "-o", options, source, str(target)])


def _enter_root(root: Path) -> None:
    """Make the disk the root of the mount namespace, and let go of the real one."""
    os.chdir(root)
    Path("old-root").mkdir(exist_ok=True)
    _run(["pivot_root", ".", "old-root"])
    os.chdir("/")
    _run(["umount", "--lazy", "/old-root"])
    Path("/old-root").rmdir()


def _fill_run() -> None:
    for path in ("/run/sshd", "/run/libvirt"):
        Path(path).mkdir()
    Path("/run/lock").mkdir()
    Path("/run/lock").chmod(0o1777)
    for path in ("/run/one", "/run/one/ssh-socks", "/run/lock/one"):
        Path(path).mkdir()
        os.chown(path, ONEADMIN_ID, ONEADMIN_ID)


def _start_ssh_agent() -> None:
    """As opennebula-ssh-agent.service does: oneadmin's key for everything oned starts."""
    _run(["ssh-agent", "-a", SSH_AGENT_SOCKET], user=ONEADMIN_ID)
    environment = {**os.environ, "SSH_AUTH_SOCK": SSH_AGENT_SOCKET}
    _run(["ssh-add", "-q", ONEADMIN_KEY], user=ONEADMIN_ID, env=environment)


def _run(
    argv: Sequence[str],
    *,
    user: int = 0,
    env: dict[str, str] | None = None,
    stdin: str = "",
    pass_fds: Sequence[int] = (),
) -> None:
    subprocess.run(
        argv,
        check=True,
        input=stdin,
        text=True,
        user=user,
        group=user,
        extra_groups=[],
        env=env,
        pass_fds=pass_fds,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
