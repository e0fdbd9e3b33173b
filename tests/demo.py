"""The demonstration: an image becomes disks of VMs, which move and go back, by the real drivers.

``sudo ./install.sh --demo`` runs this. It builds a front-end and three hosts out of namespaces,
installs onestor there, and prints each action as oned calls it, with its time and its result.
It leaves the machine as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tests.cluster import Node
from tests.oned.life import Life
from tests.oned.mads import DatastoreMad, TransferMad
from tests.oned.objects import Vm
from tests.oned.probe import probe_monitor_ds
from tests.oned.reply import Reply
from tests.oned.runner import Call
from tests.testbed import DATASTORES, Testbed, running_testbed

IMAGE = "/var/tmp/demo.qcow2"
PARTITION = 1 << 20  # bytes into the image
FILES = {
    "etc/motd": "This file lives in an ext4 file system in a partition of a qcow2 image.\n",
    "home/data.txt": "".join(f"line {number}\n" for number in range(20_000)),
}

# Makes the image as an administrator would: partition table, file system with files, qcow2.
MAKE_IMAGE = """
set -e
work=$(mktemp -d -p /var/tmp); cd "$work"
truncate -s 256M disk.raw
echo 'start=2048, type=83' | sfdisk -q disk.raw
mkfs.ext4 -q -d "$1" -E offset="$2" disk.raw 260000k
head -c 48M /dev/urandom | dd of=disk.raw bs=1M seek=192 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 disk.raw "$3"
rm -rf "$work"
"""

READ_FILE = """
set -e
work=$(mktemp -d -p /var/tmp)
qemu-img convert -f qcow2 -O raw "$1" "$work/disk.raw"
debugfs -R "cat /$3" "$work/disk.raw?offset=$2" 2>/dev/null
rm -rf "$work"
"""


class Table:
    """What is shown: a line for each step, with a clock while it is at work on a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        colours = self._terminal and "NO_COLOR" not in os.environ
        self._bold, self._green, self._red, self._dim, self._plain = (
            ("\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m") if colours else ("",) * 5
        )
        self.failures = 0

    def title(self, text: str) -> None:
        print(f"\n{self._bold}{text}{self._plain}")

    def note(self, text: str) -> None:
        print(f"          {text}")

    def check(self, text: str, right: bool) -> None:
        self.failures += not right
        mark = f"{self._green}yes{self._plain}" if right else f"{self._red}NO{self._plain}"
        print(f"          {text}: {mark}")

    def command(self, words: str) -> None:
        width = max(40, shutil.get_terminal_size((110, 24)).columns) - 10
        lines = [""]
        for word in words.split(" "):
            if lines[-1] and len(lines[-1]) + len(word) >= width:
                lines.append("   ")
            lines[-1] += f" {word}" if lines[-1] else word
        for line in lines:
            print(f"        {self._dim}$ {line}{self._plain}" if line is lines[0] else
                  f"          {self._dim}{line}{self._plain}")  # fmt: skip

    def result(self, seconds: float, right: bool, text: str) -> None:
        self.failures += not right
        mark = f"{self._green}ok{self._plain}" if right else f"{self._red}FAILED{self._plain}"
        print(f"{seconds:6.2f} s  {mark}{'  ' if text else ''}{text}")

    @contextlib.contextmanager
    def clock(self, progress: Callable[[], str] = str) -> Iterator[None]:
        """Show seconds and ``progress`` of a long step while it runs, on a terminal only."""
        if not self._terminal:
            yield
            return
        done = threading.Event()

        def tick() -> None:
            begin = time.monotonic()
            while not done.wait(0.2):
                text = f"{time.monotonic() - begin:6.1f} s  ... {progress()}"
                print(f"\r{text:<40}", end="", flush=True)
            print(f"\r{'':<40}\r", end="", flush=True)

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class ShownDatastoreMad(DatastoreMad):
    """one_datastore, telling what it does."""

    def __init__(self, table: Table, bed: Testbed) -> None:
        super().__init__(bed.frontend, bed.cloud.version)
        self._table, self._bed = table, bed

    def call(self, action: str, ds_mad: str, message_xml: str, id: int) -> Reply:
        begin = time.monotonic()
        with self._table.clock(lambda: arrived(self._bed)):
            reply = super().call(action, ds_mad, message_xml, id)
        self._table.command(f"{reply.result.command}   # {len(message_xml)} bytes of XML on stdin")
        answer = " ".join(reply.result.stdout.split())
        self._table.result(time.monotonic() - begin, reply.success, answer or reply.error)
        return reply


class ShownTransferMad(TransferMad):
    """one_tm, telling what it does."""

    def __init__(self, table: Table, bed: Testbed) -> None:
        super().__init__(bed.frontend, bed.cloud.version)
        self._table, self._bed = table, bed

    def answer(self, line: str, call: Call | Reply) -> Reply:
        begin = time.monotonic()
        with self._table.clock(lambda: arrived(self._bed)):
            reply = super().answer(line, call)
        self._table.command(reply.result.command)
        text = "; ".join(entry.text for entry in reply.log) if reply.success else reply.error
        self._table.result(time.monotonic() - begin, reply.success, text)
        return reply


def main() -> int:
    """Run the demonstration; exit status 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(prog="install.sh --demo", description=__doc__)
    parser.parse_args()
    if os.geteuid() != 0:
        print("install.sh --demo: needs root: it builds hosts out of namespaces", file=sys.stderr)
        return 1
    table = Table()
    begin = time.monotonic()
    table.title("A front-end and three hosts on this machine, onestor installed by install.sh")
    with contextlib.ExitStack() as stack:
        with table.clock():
            bed = stack.enter_context(running_testbed(hosts=3, version="7.4.1"))
        table.result(time.monotonic() - begin, True, "fe, host01 to host03: sshd, datastores, oned")
        show(table, bed)
    seconds = time.monotonic() - begin
    verdict = "everything as it should be" if not table.failures else f"{table.failures} FAILURES"
    table.title(f"Done in {seconds:.1f} s, the cluster is gone again: {verdict}.")
    return 1 if table.failures else 0


def show(table: Table, bed: Testbed) -> None:
    """The demonstration itself."""
    oned, cloud, frontend = bed.oned, bed.cloud, bed.frontend
    oned.datastore_mad = ShownDatastoreMad(table, bed)
    oned.transfer_mad = ShownTransferMad(table, bed)

    table.title("An image: qcow2, a partition, ext4 with files in it")
    for name, content in FILES.items():
        frontend.write(f"/var/tmp/files/{name}", content)
    begin = time.monotonic()
    with table.clock():
        argv = ["/bin/sh", "-c", MAKE_IMAGE, "sh", "/var/tmp/files", str(PARTITION), IMAGE]
        frontend.run(argv, timeout=120)
    size = frontend.path(IMAGE).stat().st_size
    table.result(time.monotonic() - begin, True, f"{IMAGE}, {size / 2**20:.0f} MB")

    table.title("oneimage create: stat, cp, monitor")
    image = bed.import_image(IMAGE)
    replica = bed.hosts[-1]
    bed.system.template["REPLICA_HOST"] = replica.name
    cloud.save(bed.system)
    first, second = bed.hosts[0], bed.hosts[1]
    for host, story in (
        (first, f"nobody has the image: it goes to the replica {replica.name} and on at once"),
        (first, "the host has the image"),
        (second, "only the replica has the image"),
    ):
        vm = cloud.add_vm(disks=[cloud.image_disk(image, SIZE="512")])
        table.title(f"onevm instantiate, 512 MB disk, on {host.name}: clone; {story}")
        oned.instantiate(vm, host.name, bed.system)
        disk = bed.disk_path(vm)
        for name, content in FILES.items():
            table.check(f"/{name} in the clone is the same", read(host, disk, name) == content)

    show_life(table, bed, vm)

    table.title("The probe monitor_ds on each host, copied there by onehost sync")
    for host in bed.hosts:
        for entry in probe_monitor_ds(host):
            for line in entry.entries:
                facts = " ".join(f"{name}={value}" for name, value in line.fields.items())
                table.note(f"{host.name}: VM {entry.vm_id}: {line.name} {facts}")

    table.title("onevm terminate, oneimage delete: delete, rm, monitor")
    for vm in list(cloud.vms.values()):
        oned.terminate(vm)
    oned.delete_image(image)
    for node in bed.cluster.nodes:
        left = [name for name in bed.files(node, DATASTORES) if not is_cache(name)]
        table.check(f"nothing is left on {node.name} but its cache", not left)


def show_life(table: Table, bed: Testbed, vm: Vm) -> None:
    """What happens to a VM later: it is off, so that everything can be seen on its disk."""
    life = Life(bed.oned)
    (disk,) = vm.disks
    two, one = bed.hosts[1], bed.hosts[0]
    path = bed.disk_path(vm)
    life.power_off(vm)
    table.title("onevm disk-snapshot-create: snap_create; the guest has written 50 MB of 512")
    write = f"write -q -P 7 {PARTITION + 200 * 2**20} 50M"
    two.run(["qemu-io", "-f", "qcow2", "-c", write, path])
    life.snapshot(vm, disk)
    size = two.path(f"{path}.snap/0").stat().st_blocks / 2048
    table.note(f"disk.0.snap/0 takes {size:.0f} MB")
    table.title(
        "onevm migrate to host01, which has the image: mv; what was written crosses, no more"
    )
    two.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 8 {PARTITION} 16M", path])
    life.migrate(vm, "host01")
    damaged = any(read(one, path, name) != content for name, content in FILES.items())
    table.check("the files in it are damaged by now", damaged)
    table.title("onevm disk-snapshot-revert: snap_revert")
    life.revert(vm, disk, 0)
    for name, content in FILES.items():
        table.check(f"/{name} is as it was", read(one, path, name) == content)


def is_cache(name: str) -> bool:
    """Whether a file below the datastores is one of the cache, or of the probe's markers."""
    return name.startswith(("101/", ".onestor-cache")) or name.endswith(".monitor")


def arrived(bed: Testbed) -> str:
    """How much of what is being copied has arrived."""
    found = 0
    for node in bed.cluster.nodes:
        for pattern in ("*.tmp", "*.part"):
            for path in node.path(DATASTORES).rglob(pattern):
                with contextlib.suppress(OSError):
                    found += path.stat().st_blocks * 512
    return f"{found / 2**20:.0f} MB" if found else ""


def read(host: Node, disk: str, name: str) -> str:
    """A file from the file system in a disk, as a guest would see it; "" for a damaged one."""
    argv = ["/bin/sh", "-c", READ_FILE, "sh", disk, str(PARTITION), name]
    return str(host.run(argv, timeout=120, check=False).stdout)


if __name__ == "__main__":
    sys.exit(main())
