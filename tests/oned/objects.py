"""The objects of an OpenNebula cloud, and their XML.

The XML is that of the recordings: compact as oned writes it, elements in the same order, CDATA
where the recordings have it. What differs by version follows contract section 1.2; where it is
silent on the release in which an element came, the element is there from the oldest release that
can have use for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.oned.markup import Template, Value, cdata, collapsed, ids, template, text
from tests.oned.version import at_least

DATASTORES = "/var/lib/one//datastores"

IMAGE_DATASTORE, SYSTEM_DATASTORE, FILE_DATASTORE = 0, 1, 2
OS, CDROM, DATABLOCK, KERNEL, RAMDISK, CONTEXT = range(6)

# Image states.
READY, USED, LOCKED, IMAGE_ERROR, USED_PERSISTENT = 1, 2, 4, 5, 8

# A host's state.
OFFLINE = 8

# VM states and LCM states.
PENDING, ACTIVE, STOPPED, SUSPENDED, DONE, POWEROFF, UNDEPLOYED = 1, 3, 4, 5, 6, 8, 9
LCM_INIT, PROLOG, BOOT, RUNNING, EPILOG, SHUTDOWN = 0, 1, 2, 3, 11, 12
MIGRATE, PROLOG_MIGRATE, PROLOG_RESUME, EPILOG_STOP = 4, 8, 9, 10
CLEANUP_RESUBMIT, CLEANUP_DELETE = 15, 23
EPILOG_UNDEPLOY, PROLOG_UNDEPLOY = 30, 31
HOTPLUG_SAVEAS, HOTPLUG_SAVEAS_POWEROFF, HOTPLUG_SAVEAS_SUSPENDED = 26, 27, 28
HOTPLUG_SAVEAS_UNDEPLOYED, HOTPLUG_SAVEAS_STOPPED = 67, 68
PROLOG_MIGRATE_UNKNOWN = 60
DISK_SNAPSHOT, DISK_SNAPSHOT_DELETE = 57, 59
DISK_SNAPSHOT_POWEROFF, DISK_SNAPSHOT_REVERT_POWEROFF, DISK_SNAPSHOT_DELETE_POWEROFF = 51, 52, 53
DISK_SNAPSHOT_SUSPENDED, DISK_SNAPSHOT_DELETE_SUSPENDED = 54, 56
DISK_RESIZE, DISK_RESIZE_POWEROFF, DISK_RESIZE_UNDEPLOYED = 62, 63, 64
HOTPLUG_PROLOG_POWEROFF, HOTPLUG_EPILOG_POWEROFF = 33, 34
BOOT_FAILURE, PROLOG_FAILURE, EPILOG_FAILURE = 36, 39, 40

RIGHTS = [f"{who}_{what}" for who in ("OWNER", "GROUP", "OTHER") for what in "UMA"]

HOST_TEMPLATE: Template = {
    "ARCH": "x86_64",
    "CPUSPEED": "0",
    "HYPERVISOR": "kvm",
    "IM_MAD": "kvm",
    "KVM_CPU_FEATURES": "sse4.1,sse4.2",
    "KVM_CPU_MODEL": "kvm64",
    "KVM_CPU_MODELS": "486 pentium",
    "KVM_MACHINES": "pc q35",
    "MODELNAME": "AMD EPYC",
    "RESERVED_CPU": "",
    "RESERVED_MEM": "",
    "VM_MAD": "kvm",
}
NUMA_NODE: Template = {
    "CORE": [
        {"CPUS": "1:-1", "DEDICATED": "NO", "FREE": "1", "ID": "1"},
        {"CPUS": "0:-1", "DEDICATED": "NO", "FREE": "1", "ID": "0"},
    ],
    "HUGEPAGE": [
        {"PAGES": "0", "SIZE": "2048", "USAGE": "0"},
        {"PAGES": "0", "SIZE": "1048576", "USAGE": "0"},
    ],
    "MEMORY": {"DISTANCE": "0", "TOTAL": "21850324", "USAGE": "0"},
    "NODE_ID": "0",
}
HOST_CAPACITY: Template = {
    "FREE_CPU": "148",
    "FREE_MEMORY": "23656984",
    "USED_CPU": "52",
    "USED_MEMORY": "1027108",
}
NUMA_MONITORING: Template = {
    "HUGEPAGE": [{"FREE": "0", "SIZE": "2048"}, {"FREE": "0", "SIZE": "1048576"}],
    "MEMORY": {"FREE": "13953984", "USED": "7896340"},
    "NODE_ID": "0",
}
VM_TEMPLATE: Template = {
    "AUTOMATIC_DS_REQUIREMENTS": '("CLUSTERS/ID" @> 0) & (TM_MAD = "onestor")',
    "AUTOMATIC_NIC_REQUIREMENTS": '("CLUSTERS/ID" @> 0)',
    "AUTOMATIC_REQUIREMENTS": "(CLUSTER_ID = 0) & !(PUBLIC_CLOUD = YES) & !(PIN_POLICY = PINNED)",
    "CPU": "0.1",
    "FEATURES": {"ACPI": "yes"},
    "MEMORY": "64",
    "SUBMIT_ON_HOLD": "YES",
    "TEMPLATE_ID": "7",
    "TM_MAD_SYSTEM": "onestor",
}


def _now() -> int:
    return int(time.time())


def _element(name: str, inner: Sequence[str]) -> str:
    return f"<{name}>{''.join(inner)}</{name}>"


def _owner(name: str, rights: str) -> str:
    """The elements from UID to PERMISSIONS; everything is oneadmin's."""
    granted = "".join(text(right, bit) for right, bit in zip(RIGHTS, rights))
    return (
        "<UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME><GNAME>oneadmin</GNAME>"
        f"{text('NAME', name)}<PERMISSIONS>{granted}</PERMISSIONS>"
    )


@dataclass
class Cluster:
    """A cluster; of its members only the hosts and datastores are of interest."""

    id: int
    name: str = "default"
    hosts: list[int] = field(default_factory=list)
    datastores: list[int] = field(default_factory=list)
    template: dict[str, Value] = field(default_factory=dict)

    def xml(self, version: str) -> str:
        inner = [
            text("ID", self.id),
            text("NAME", self.name),
            ids("HOSTS", self.hosts),
            ids("DATASTORES", self.datastores),
            ids("VNETS", []),
            template("TEMPLATE", self.template),
        ]
        return _element("CLUSTER", inner)


@dataclass
class Host:
    """A hypervisor; `datastores` is what its probe told of each, as DS=[...] (contract 4.1)."""

    id: int
    name: str
    state: int = 2
    cluster_id: int = 0
    cluster: str = "default"
    vms: list[int] = field(default_factory=list)
    datastores: list[Template] = field(default_factory=list)
    free_mb: int = 52149
    total_mb: int = 258020
    template: dict[str, Value] = field(default_factory=lambda: dict(HOST_TEMPLATE))

    def xml(self, version: str) -> str:
        datastores: dict[str, Value] = {
            "DISK_USAGE": "0",
            "DS": self.datastores,
            "FREE_DISK": self.free_mb,
            "MAX_DISK": self.total_mb,
            "USED_DISK": self.total_mb - self.free_mb,
        }
        share = [
            text("MEM_USAGE", 0),
            text("CPU_USAGE", 0),
            text("TOTAL_MEM", 24684092),
            text("TOTAL_CPU", 200),
            text("MAX_MEM", 24684092),
            text("MAX_CPU", 200),
            text("RUNNING_VMS", len(self.vms)),
            text("VMS_THREAD", 1),
            template("DATASTORES", datastores),
            "<PCI_DEVICES/>",
            template("NUMA_NODES", {"NODE": NUMA_NODE}),
        ]
        monitoring = [
            text("TIMESTAMP", _now()),
            text("ID", self.id),
            template("CAPACITY", HOST_CAPACITY),
            template("SYSTEM", {"NETRX": "0", "NETTX": "0"}),
            template("NUMA_NODE", NUMA_MONITORING),
        ]
        inner = [
            text("ID", self.id),
            text("NAME", self.name),
            text("STATE", self.state),
            text("PREV_STATE", self.state),
            cdata("IM_MAD", "kvm"),
            cdata("VM_MAD", "kvm"),
            text("CLUSTER_ID", self.cluster_id),
            text("CLUSTER", self.cluster),
            _element("HOST_SHARE", share),
            ids("VMS", self.vms),
            template("TEMPLATE", {"HOSTNAME": self.name, "VERSION": version, **self.template}),
            _element("MONITORING", monitoring),
        ]
        return _element("HOST", inner)


@dataclass
class Datastore:
    """A datastore: image, system or file by its `type`."""

    id: int
    name: str
    type: int
    ds_mad: str = "onestor"
    tm_mad: str = "onestor"
    state: int = 0
    clusters: list[int] = field(default_factory=lambda: [0])
    total_mb: int = 0
    free_mb: int = 0
    used_mb: int = 0
    images: list[int] = field(default_factory=list)
    template: dict[str, Value] = field(default_factory=dict)

    @property
    def base_path(self) -> str:
        return f"{DATASTORES}/{self.id}"

    def xml(self, version: str) -> str:
        inner = [
            text("ID", self.id),
            _owner(self.name, "110100000"),
            cdata("DS_MAD", self.ds_mad),
            cdata("TM_MAD", self.tm_mad),
            cdata("BASE_PATH", self.base_path),
            text("TYPE", self.type),
            text("DISK_TYPE", 0),
            text("STATE", self.state),
            ids("CLUSTERS", self.clusters),
            text("TOTAL_MB", self.total_mb),
            text("FREE_MB", self.free_mb),
            text("USED_MB", self.used_mb),
            ids("IMAGES", self.images),
            template("TEMPLATE", self.template),
        ]
        return _element("DATASTORE", inner)


@dataclass
class Snapshots:
    """The snapshots of an image, or of the disk `disk_id` of a VM."""

    allow_orphans: str = "NO"
    disk_id: int | None = None
    next_snapshot: int = 0
    current_base: int = -1
    snapshots: list[dict[str, Value]] = field(default_factory=list)

    def add(self, name: str, size: int, date: int | None = None) -> int:
        """Add a snapshot, which is the active one now, and tell its id."""
        number = self.next_snapshot
        for snapshot in self.snapshots:
            snapshot.pop("ACTIVE", None)
        self.snapshots.append(
            {
                "ACTIVE": "YES",
                "DATE": _now() if date is None else date,
                "ID": number,
                "NAME": name,
                "PARENT": "-1",
                "SIZE": size,
            }
        )
        self.next_snapshot += 1
        return number

    def remove(self, number: int) -> None:
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot["ID"] != number]

    def xml(self) -> str:
        attributes: dict[str, Value] = {
            "ALLOW_ORPHANS": self.allow_orphans,
            "CURRENT_BASE": self.current_base,
            "NEXT_SNAPSHOT": self.next_snapshot,
            "SNAPSHOT": self.snapshots,
        }
        if self.disk_id is not None:
            attributes["DISK_ID"] = self.disk_id
        return template("SNAPSHOTS", attributes)


@dataclass
class Image:
    """An image; without a SOURCE as long as no driver has given it one."""

    id: int
    name: str
    datastore_id: int
    datastore: str
    type: int = OS
    persistent: bool = False
    regtime: int = field(default_factory=_now)
    modtime: int | None = None
    source: str = ""
    path: str = ""
    format: str = ""
    fs: str = ""
    size: int = 0
    state: int = LOCKED
    prev_state: int = 0
    cloning_id: int = -1
    target_snapshot: int = -1
    vms: list[int] = field(default_factory=list)
    clones: list[int] = field(default_factory=list)
    template: dict[str, Value] = field(default_factory=lambda: {"DEV_PREFIX": "vd"})
    snapshots: Snapshots = field(default_factory=Snapshots)

    def set_state(self, state: int) -> None:
        """Change the state; PREV_STATE is the same from then on, as in the recordings."""
        self.state = self.prev_state = state

    def xml(self, version: str) -> str:
        """The image as this version shows it (contract section 1.2)."""
        modtime = self.regtime if self.modtime is None else self.modtime
        inner = [
            text("ID", self.id),
            _owner(self.name, "110000000"),
            text("TYPE", self.type),
            text("DISK_TYPE", 0),
            text("PERSISTENT", int(self.persistent)),
            text("REGTIME", self.regtime),
            text("MODTIME", modtime) if at_least(version, "7.0") else "",
            cdata("SOURCE", self.source),
            cdata("PATH", self.path),
            cdata("FORMAT", self.format) if at_least(version, "6.0") else "",
            cdata("FS" if at_least(version, "6.0") else "FSTYPE", self.fs),
            text("SIZE", self.size),
            text("STATE", self.state),
            text("PREV_STATE", self.prev_state) if at_least(version, "6.0") else "",
            text("RUNNING_VMS", len(self.vms)),
            text("CLONING_OPS", 0),
            text("CLONING_ID", self.cloning_id),
            text("TARGET_SNAPSHOT", self.target_snapshot),
            text("DATASTORE_ID", self.datastore_id),
            text("DATASTORE", self.datastore),
            ids("VMS", self.vms),
            ids("CLONES", self.clones),
            ids("APP_CLONES", []),
            template("TEMPLATE", self.template),
            self.snapshots.xml(),
        ]
        if at_least(version, "6.6"):
            inner += [ids("BACKUP_INCREMENTS", []), ids("BACKUP_DISK_IDS", [])]
        return _element("IMAGE", inner)


@dataclass
class Disk:
    """A DISK of a VM: its attributes, with everything it inherited."""

    attributes: dict[str, str]

    @property
    def id(self) -> int:
        return int(self.attributes["DISK_ID"])

    @property
    def image_id(self) -> int | None:
        number = self.attributes.get("IMAGE_ID")
        return None if number is None else int(number)

    @property
    def saved(self) -> bool:
        """Whether the disk goes back to its image in the end."""
        return self.attributes.get("SAVE") == "YES"


@dataclass
class History:
    """A history record: the VM's stay on one host, up to an action."""

    seq: int
    hostname: str
    ds_id: int
    hid: int = 0
    cid: int = 0
    tm_mad: str = "onestor"
    vm_mad: str = "kvm"
    action: int = 0
    stime: int = field(default_factory=_now)
    etime: int = 0
    prolog: tuple[int, int] = (0, 0)
    running: tuple[int, int] = (0, 0)
    epilog: tuple[int, int] = (0, 0)
    uid: int = -1
    gid: int = -1
    request_id: int = -1

    def xml(self, version: str, vm_id: int) -> str:
        plan = [text("PLAN_ID", -2), text("ACTION_ID", -1)] if at_least(version, "7.0") else []
        inner = [
            text("OID", vm_id),
            text("SEQ", self.seq),
            text("HOSTNAME", self.hostname),
            text("HID", self.hid),
            text("CID", self.cid),
            text("STIME", self.stime),
            text("ETIME", self.etime),
            cdata("VM_MAD", self.vm_mad),
            cdata("TM_MAD", self.tm_mad),
            text("DS_ID", self.ds_id),
            *plan,
            text("PSTIME", self.prolog[0]),
            text("PETIME", self.prolog[1]),
            text("RSTIME", self.running[0]),
            text("RETIME", self.running[1]),
            text("ESTIME", self.epilog[0]),
            text("EETIME", self.epilog[1]),
            text("ACTION", self.action),
            text("UID", self.uid),
            text("GID", self.gid),
            text("REQUEST_ID", self.request_id),
        ]
        return _element("HISTORY", inner)


@dataclass
class Vm:
    """A VM. `template` holds what is beside DISK and CONTEXT; `context` includes its DISK_ID."""

    id: int
    name: str
    state: int = PENDING
    lcm_state: int = LCM_INIT
    prev_state: int = PENDING
    prev_lcm_state: int = LCM_INIT
    last_poll: int = 0
    stime: int = field(default_factory=_now)
    etime: int = 0
    deploy_id: str = ""
    monitoring: dict[str, Value] = field(default_factory=dict)
    disks: list[Disk] = field(default_factory=list)
    context: dict[str, Value] = field(default_factory=dict)
    template: dict[str, Value] = field(default_factory=lambda: dict(VM_TEMPLATE))
    user_template: dict[str, Value] = field(default_factory=dict)
    history: list[History] = field(default_factory=list)
    snapshots: list[Snapshots] = field(default_factory=list)
    backup_config: dict[str, Value] = field(default_factory=dict)

    def disk(self, disk_id: int) -> Disk:
        return next(disk for disk in self.disks if disk.id == disk_id)

    def xml(self, version: str) -> str:
        """The VM as the API shows it: with monitoring and its whole history."""
        return self._xml(version, self.monitoring, self.history)

    def driver_xml(self, version: str) -> str:
        """The VM as drivers get it on stdin: no monitoring, the last history record only."""
        return self._xml(version, {}, self.history[-1:])

    def _xml(self, version: str, monitoring: Template, history: Sequence[History]) -> str:
        attributes: dict[str, Value] = {
            **self.template,
            "DISK": [disk.attributes for disk in self.disks],
            "VMID": self.id,
        }
        if self.context:
            attributes["CONTEXT"] = self.context
        backups = [collapsed("BACKUP_CONFIG", self.backup_config), "<BACKUP_IDS/>"]
        records = "".join(record.xml(version, self.id) for record in history)
        inner = [
            text("ID", self.id),
            _owner(self.name, "110000000"),
            text("LAST_POLL", self.last_poll),
            text("STATE", self.state),
            text("LCM_STATE", self.lcm_state),
            text("PREV_STATE", self.prev_state),
            text("PREV_LCM_STATE", self.prev_lcm_state),
            text("RESCHED", 0),
            text("STIME", self.stime),
            text("ETIME", self.etime),
            text("DEPLOY_ID", self.deploy_id),
            collapsed("MONITORING", monitoring),
            "<SCHED_ACTIONS/>",
            template("TEMPLATE", attributes),
            collapsed("USER_TEMPLATE", self.user_template),
            f"<HISTORY_RECORDS>{records}</HISTORY_RECORDS>" if records else "<HISTORY_RECORDS/>",
            *(snapshots.xml() for snapshots in self.snapshots),
        ]
        if at_least(version, "6.6"):
            inner.append(_element("BACKUPS", backups))
        return _element("VM", inner)
