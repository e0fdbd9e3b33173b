"""libvirtd on a host, started when the host is up: its first process must collect orphans by then.

Everything is the node's own already but the configuration. QEMU runs as oneadmin, as OpenNebula's
packages set it up; it needs no confinement in a namespace that is thrown away.
"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

START = ["/usr/bin/python3", "-I", "-B", "/src/tests/cluster/libvirt.py"]
"""What root runs on the node; it ends when libvirtd answers."""

_LIBVIRTD = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "oneadmin"
unix_sock_rw_perms = "0770"
host_uuid = "{uuid}"
"""
_QEMU = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
user = "oneadmin"
group = "oneadmin"
dynamic_ownership = 0
"""


def main() -> None:
    etc = Path("/etc/libvirt")
    etc.mkdir(exist_ok=True)
    (etc / "libvirtd.conf").write_text(_LIBVIRTD.format(uuid=uuid.uuid4()))
    (etc / "qemu.conf").write_text(_QEMU)
    # Looked up by libvirtd before it reads who else shall run QEMU.
    _append("/etc/passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin")
    _append("/etc/group", "libvirt-qemu:x:64055:")
    for daemon in ("virtlogd", "libvirtd"):
        subprocess.run([f"/usr/sbin/{daemon}", "-d", "-p", f"/run/{daemon}.pid"], check=True)
    subprocess.run(
        ["/usr/bin/virsh", "-c", "qemu:///system", "version"],
        check=True, stdout=subprocess.DEVNULL, timeout=30,
    )  # fmt: skip


def _append(path: str, line: str) -> None:
    file = Path(path)
    name = line.partition(":")[0]
    if not any(known.startswith(f"{name}:") for known in file.read_text().splitlines()):
        with file.open("a") as known_lines:
            known_lines.write(f"{line}\n")


if __name__ == "__main__":
    main()
