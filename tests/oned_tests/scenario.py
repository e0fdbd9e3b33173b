"""The clouds of the recordings, built anew (6.10: VM 10 and 12; 7.4: VM 1)."""

from __future__ import annotations

from pathlib import Path

from tests.oned.cloud import Cloud
from tests.oned.objects import DATABLOCK, DATASTORES, Snapshots, Vm


class Recorded:
    """The recorded cloud of one version, with its images and the VM that went through it all."""

    def __init__(self, root: Path, version: str = "6.10.0.1") -> None:
        new = version.startswith("7")
        first, stamp = (4, "1795189621") if new else (19, "1795187232")
        self.cloud = Cloud(root, version)
        self.hosts = [self.cloud.add_host(f"host0{number}") for number in (1, 2, 3)]
        number = 100 if new else 101
        self.images = self.cloud.add_image_datastore(id=number)
        self.system = self.cloud.add_system_datastore(id=number + 1, REPLICA_HOST="host01")
        names = (
            ("57a000cd0c2d26c9d99e30e3972a90e1", "49f1441fce7e6c83a7ae6e2bf96e01f1"),
            ("e3521338d0122ea23a32f437bc013237", "b950c870bc57212c349a301505c5ee65"),
            ("c9bad6a2123f585cee84f9ee2189be5f", "5974808eca5c2fbd1e18c9ccaca60c89"),
            ("51920e4aa34592dccf3ca4dd3e5b6ae0", "acf28d4bafb46e725691c661253dd53d"),
        )
        sources = [f"{DATASTORES}/{number}/{pair[0 if new else 1]}" for pair in names]
        add = self.cloud.add_image
        self.os = add(
            self.images,
            f"os{stamp}",
            first,
            source=sources[0],
            path="/var/tmp/base.qcow2",
            format="qcow2",
            size=4096,
        )
        self.raw = add(
            self.images,
            f"pr{stamp}",
            first + 1,
            source=sources[1],
            format="raw",
            fs="ext4",
            size=64,
            persistent=True,
            type=DATABLOCK,
        )
        self.qcow2 = add(
            self.images,
            f"pq{stamp}",
            first + 2,
            source=sources[2],
            format="qcow2",
            size=64,
            persistent=True,
            type=DATABLOCK,
        )
        self.clone = add(
            self.images,
            f"clone{stamp}",
            first + 3,
            source=sources[3],
            path=sources[0],
            format="qcow2",
            size=4096,
        )

    def add_vm(self, id: int) -> Vm:
        """The VM of the recorded life, still PENDING."""
        return self.cloud.add_vm(
            id=id,
            disks=[
                self.cloud.image_disk(self.os),
                self.cloud.image_disk(self.raw),
                self.cloud.image_disk(self.qcow2),
                self.cloud.volatile_disk(32, FS="ext4", TARGET="vdx"),
                self.cloud.volatile_disk(16, "swap", TARGET="vdy"),
            ],
            context={"NETWORK": "YES", "SET_HOSTNAME": "x"},
        )


def snapshots(disk_id: int, size: int, date: int) -> Snapshots:
    """The snapshots of a disk that has one, as recorded at the live migration."""
    made = Snapshots(allow_orphans="YES", disk_id=disk_id)
    made.add("s0", size, date)
    return made
