"""A small model of an OpenNebula cloud, which writes the files that `server` answers from.

    cloud = Cloud(root, version="6.10.0.1")
    cloud.add_host("host02")
    images, system = cloud.add_image_datastore(), cloud.add_system_datastore()
    image = cloud.add_image(images, source=..., format="qcow2", size=4096)
    vm = cloud.add_vm(disks=[cloud.image_disk(image)])
    cloud.place(vm, "host02", system)
    cloud.set_state(vm, ACTIVE, RUNNING)

Objects are the caller's to change; nothing is seen through the API before `save`.
"""

from __future__ import annotations

import copy
import string
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Union

from tests.oned.markup import Value
from tests.oned.objects import (
    CDROM,
    FILE_DATASTORE,
    IMAGE_DATASTORE,
    READY,
    SYSTEM_DATASTORE,
    USED,
    USED_PERSISTENT,
    Cluster,
    Datastore,
    Disk,
    History,
    Host,
    Image,
    Snapshots,
    Vm,
)
from tests.oned.version import at_least

# What a disk takes from its datastore and its image, and since when (contract section 3.3).
FROM_DATASTORE = {
    "DISK_TYPE": "5.12",
    "ALLOW_ORPHANS": "5.12",
    "QCOW2_STANDALONE": "6.8",
    "SPARSE": "6.10",
    "LVM_THIN_ENABLE": "7.0",
    "PERSISTENT_SNAPSHOTS": "7.0",
}
FROM_IMAGE = {
    "DISK_TYPE": "5.12",
    "LUKS_SECRET": "6.0",
    "SERIAL": "7.0",
    "MOUNT_POINT": "7.2",
    "MOUNT_TAG": "7.2",
}

Object = Union[Cluster, Host, Datastore, Image, Vm]
AnyObject = TypeVar("AnyObject", Cluster, Host, Datastore, Image, Vm)


class Cloud:
    """The objects of a cloud, kept as files below `root`."""

    def __init__(
        self, root: Path, version: str = "6.10.0.1", session: str = "oneadmin:opennebula"
    ) -> None:
        self.root = root
        self.version = version
        self.clusters: dict[int, Cluster] = {}
        self.hosts: dict[int, Host] = {}
        self.datastores: dict[int, Datastore] = {}
        self.images: dict[int, Image] = {}
        self.vms: dict[int, Vm] = {}
        self._lock = threading.RLock()
        for kind in ("cluster", "host", "datastore", "image", "vm"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        _write(root / "version", version)
        _write(root / "auth", session)
        self.add_cluster("default", id=0)

    def save(self, *objects: Object) -> None:
        """Write objects out, each by rename."""
        with self._lock:
            for thing in objects:
                _write(self._file(thing), thing.xml(self.version))

    def reread(self, datastore: Datastore) -> None:
        """Learn what a user of the API has changed of a datastore."""
        tree = ElementTree.fromstring(self._file(datastore).read_text(encoding="utf-8"))
        datastore.ds_mad = tree.findtext("DS_MAD", "")
        datastore.tm_mad = tree.findtext("TM_MAD", "")
        template = tree.find("TEMPLATE")
        assert template is not None
        datastore.template = {element.tag: element.text or "" for element in template}

    def delete(self, thing: Object) -> None:
        """Forget an object: the API knows it no more."""
        with self._lock:
            self._registry(thing).pop(thing.id)
            self._file(thing).unlink()

    def add_cluster(self, name: str, id: int | None = None) -> Cluster:
        return self._add(self.clusters, Cluster(_free(self.clusters, id, 100), name))

    def add_host(
        self, name: str, cluster: Cluster | None = None, id: int | None = None, **fields: Any
    ) -> Host:
        """Add a hypervisor; `fields` are those of `Host`."""
        cluster = cluster or self.clusters[0]
        host = Host(_free(self.hosts, id), name, **fields)
        host.cluster_id, host.cluster = cluster.id, cluster.name
        cluster.hosts.append(host.id)
        self.save(cluster)
        return self._add(self.hosts, host)

    def add_image_datastore(
        self, name: str = "os_images", id: int | None = None, **template: Value
    ) -> Datastore:
        """Add an image datastore; `template` adds to its template, or overrides it."""
        defaults: dict[str, Value] = {
            "ALLOW_ORPHANS": "YES",
            "CLONE_TARGET": "SYSTEM",
            "DISK_TYPE": "FILE",
            "DS_MAD": "onestor",
            "LN_TARGET": "SYSTEM",
            "SAFE_DIRS": "/var/tmp",
            "TM_MAD": "onestor",
        }
        return self._add_datastore(name, IMAGE_DATASTORE, id, {**defaults, **template})

    def add_system_datastore(
        self, name: str = "os_system", id: int | None = None, **template: Value
    ) -> Datastore:
        """Add a system datastore; REPLICA_HOST and the like go into `template`."""
        defaults: dict[str, Value] = {
            "ALLOW_ORPHANS": "YES",
            "DISK_TYPE": "FILE",
            "DS_MIGRATE": "YES",
            "RESTRICTED_DIRS": "/",
            "SAFE_DIRS": "/var/tmp",
            "SHARED": "NO",
            "TM_MAD": "onestor",
            "TYPE": "SYSTEM_DS",
        }
        return self._add_datastore(name, SYSTEM_DATASTORE, id, {**defaults, **template})

    def add_file_datastore(
        self, name: str = "files", id: int | None = None, **template: Value
    ) -> Datastore:
        """Add a datastore for kernels and ramdisks."""
        defaults: dict[str, Value] = {
            "DS_MAD": "onestor",
            "SAFE_DIRS": "/var/tmp",
            "TM_MAD": "onestor",
            "TYPE": "FILE_DS",
        }
        return self._add_datastore(name, FILE_DATASTORE, id, {**defaults, **template})

    def add_image(
        self,
        datastore: Datastore,
        name: str = "",
        id: int | None = None,
        listed: bool = True,
        **fields: Any,
    ) -> Image:
        """Add an image, READY unless told otherwise; `fields` are those of `Image`."""
        fields = {"state": READY, "prev_state": fields.get("state", READY), **fields}
        with self._lock:
            number = _free(self.images, id)
            image = Image(number, name or f"image{number}", datastore.id, datastore.name, **fields)
            if listed:
                self.list_image(image)
            return self._add(self.images, image)

    def list_image(self, image: Image) -> None:
        """Name an image among its datastore's; oned does so once a driver is at work on it."""
        datastore = self.datastores[image.datastore_id]
        datastore.images.append(image.id)
        self.save(datastore)

    def add_vm(
        self,
        name: str = "",
        disks: Sequence[Disk] = (),
        context: Mapping[str, Value] | None = None,
        kernel: Image | None = None,
        ramdisk: Image | None = None,
        id: int | None = None,
        **fields: Any,
    ) -> Vm:
        """Add a VM, PENDING and on no host; its images are in use from now on.

        Disks are numbered in their order, the context's comes last. `fields` are those of `Vm`.
        """
        number = _free(self.vms, id)
        vm = Vm(number, name or f"vm{number}", **fields)
        for disk in disks:
            self.add_disk(vm, disk)
        if context is not None:
            vm.context = {"DISK_ID": self.free_disk_id(vm), "TARGET": "hda", **context}
        boot: dict[str, Value] = {"UUID": str(uuid.uuid4())}
        for base, image in (("KERNEL", kernel), ("INITRD", ramdisk)):
            if image is not None:
                boot.update(self._os_file(base, image))
        vm.template.setdefault("OS", boot)
        return self._add(self.vms, vm)

    def image_disk(self, image: Image, **attributes: str) -> Disk:
        """A disk made from an image, as a template's DISK=[IMAGE_ID=...] becomes one.

        `attributes` are the user's, such as SIZE or RECOVERY_SNAPSHOT_FREQ; where the user sets an
        attribute, it is not inherited.
        """
        datastore = self.datastores[image.datastore_id]
        cdrom = image.type == CDROM
        disk = {
            "CLONE": "NO" if image.persistent or cdrom else "YES",
            "CLONE_TARGET": str(datastore.template.get("CLONE_TARGET", "SYSTEM")),
            "CLUSTER_ID": ",".join(str(cluster) for cluster in datastore.clusters),
            "DATASTORE": datastore.name,
            "DATASTORE_ID": str(datastore.id),
            "DEV_PREFIX": str(image.template.get("DEV_PREFIX", "vd")),
            "DISK_SNAPSHOT_TOTAL_SIZE": "0",
            "DRIVER": str(image.template.get("DRIVER", image.format)),
            "IMAGE": image.name,
            "IMAGE_ID": str(image.id),
            "LN_TARGET": str(datastore.template.get("LN_TARGET", "SYSTEM")),
            "ORIGINAL_SIZE": str(image.size),
            "READONLY": "YES" if cdrom else "NO",
            "SAVE": "YES" if image.persistent else "NO",
            "SIZE": str(image.size),
            "SOURCE": image.source,
            "TM_MAD": datastore.tm_mad,
            "TYPE": "CDROM" if cdrom else "FILE",
        }
        if at_least(self.version, "6.0"):
            disk["FORMAT"] = image.format
        if image.persistent:
            disk["PERSISTENT"] = "YES"
        disk.update(self._inherited(datastore.template, FROM_DATASTORE))
        disk.update(self._inherited(image.template, FROM_IMAGE))
        return Disk({**disk, **attributes})

    def volatile_disk(self, size: int, type: str = "fs", **attributes: str) -> Disk:
        """A disk without an image: type fs or swap. Its datastore is known once it is placed."""
        disk = {
            "DEV_PREFIX": "sd",
            "DRIVER": "raw",
            "FORMAT": "raw",
            "SIZE": str(size),
            "TYPE": type,
        }
        return Disk({**disk, **attributes})

    def add_disk(self, vm: Vm, disk: Disk) -> None:
        """Give a disk its number and target in the VM, and the VM to the disk's image."""
        disk.attributes.setdefault("DISK_ID", str(self.free_disk_id(vm)))
        taken = {other.attributes["TARGET"] for other in vm.disks}
        prefix = disk.attributes["DEV_PREFIX"]
        free = (prefix + letter for letter in string.ascii_lowercase)
        disk.attributes.setdefault("TARGET", next(name for name in free if name not in taken))
        vm.disks.append(disk)
        if disk.image_id is not None:
            image = self.images[disk.image_id]
            image.vms.append(vm.id)
            image.set_state(USED_PERSISTENT if image.persistent else USED)
            disk.attributes["IMAGE_STATE"] = str(image.state)
            self.save(image)
            if disk.saved and image.snapshots.snapshots:
                vm.snapshots.append(replace(copy.deepcopy(image.snapshots), disk_id=disk.id))

    def remove_disk(self, vm: Vm, disk: Disk) -> None:
        """Take a disk from a VM and give its image back."""
        vm.disks.remove(disk)
        self.release(vm, disk)
        vm.snapshots = [each for each in vm.snapshots if each.disk_id != disk.id]

    def release(self, vm: Vm, disk: Disk) -> None:
        """Give the image of a disk back: it is READY when no VM has it any more.

        A persistent one has the list of snapshots that its disk had last, also where no file went
        back.
        """
        if disk.image_id is not None:
            image = self.images[disk.image_id]
            if disk.saved:
                lists = [each for each in vm.snapshots if each.disk_id == disk.id]
                kept = copy.deepcopy(lists[0]) if lists else Snapshots()
                image.snapshots = replace(kept, disk_id=None)
            image.vms.remove(vm.id)
            if not image.vms:
                image.set_state(READY)
            self.save(image)

    def free_disk_id(self, vm: Vm) -> int:
        taken = [disk.id for disk in vm.disks]
        if vm.context:
            taken.append(int(str(vm.context["DISK_ID"])))
        return max(taken, default=-1) + 1

    def place(self, vm: Vm, host: str, datastore: Datastore, action: int = 0) -> History:
        """Begin a history record: the VM is on this host and system datastore from now on.

        The record before it ends with `action`, if one is given. Volatile disks learn here where
        they are.
        """
        if vm.history:
            self.leave(vm, vm.history[-1].action or action)
        found = next((known for known in self.hosts.values() if known.name == host), None)
        record = History(
            seq=vm.history[-1].seq + 1 if vm.history else 0,
            hostname=host,
            ds_id=datastore.id,
            hid=found.id if found else -1,
            cid=found.cluster_id if found else -1,
            tm_mad=datastore.tm_mad,
        )
        vm.history.append(record)
        for disk in vm.disks:
            self.settle(disk, datastore)
        if found and vm.id not in found.vms:
            found.vms.append(vm.id)
            self.save(found)
        self.save(vm)
        return record

    def leave(self, vm: Vm, action: int) -> None:
        """End the last history record with an action, and take the VM from its host."""
        record = vm.history[-1]
        record.action = action
        record.etime = record.etime or int(time.time())
        host = self.hosts.get(record.hid)
        if host and vm.id in host.vms:
            host.vms.remove(vm.id)
            self.save(host)
        self.save(vm)

    def settle(self, disk: Disk, datastore: Datastore) -> None:
        """Tell a volatile disk the system datastore it lives in."""
        if disk.image_id is None:
            disk.attributes.update(
                {
                    "CLUSTER_ID": ",".join(str(cluster) for cluster in datastore.clusters),
                    "DATASTORE": datastore.name,
                    "DATASTORE_ID": str(datastore.id),
                    "TM_MAD": datastore.tm_mad,
                }
            )
            for name, value in self._inherited(datastore.template, FROM_DATASTORE).items():
                disk.attributes.setdefault(name, value)

    def set_state(
        self,
        vm: Vm,
        state: int,
        lcm_state: int = 0,
        prev_state: int | None = None,
        prev_lcm_state: int | None = None,
    ) -> None:
        """Set a VM's states; the previous ones are the same unless given, as recorded."""
        vm.state, vm.lcm_state = state, lcm_state
        vm.prev_state = state if prev_state is None else prev_state
        vm.prev_lcm_state = lcm_state if prev_lcm_state is None else prev_lcm_state
        self.save(vm)

    def _add_datastore(
        self, name: str, type: int, id: int | None, attributes: dict[str, Value]
    ) -> Datastore:
        if at_least(self.version, "7.0") and type != FILE_DATASTORE:
            attributes.setdefault("PERSISTENT_SNAPSHOTS", "YES")
        datastore = Datastore(
            _free(self.datastores, id, 100),
            name,
            type,
            ds_mad=str(attributes.get("DS_MAD", "-")),
            tm_mad=str(attributes["TM_MAD"]),
            template=attributes,
        )
        self.clusters[0].datastores.append(datastore.id)
        self.save(self.clusters[0])
        return self._add(self.datastores, datastore)

    def _inherited(self, template: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, str]:
        return {
            name: str(template[name])
            for name, since in names.items()
            if name in template and at_least(self.version, since)
        }

    def _os_file(self, base: str, image: Image) -> dict[str, Value]:
        """What OS holds of a kernel or ramdisk from a FILE datastore (not in the recordings)."""
        datastore = self.datastores[image.datastore_id]
        return {
            f"{base}_DS": f"$FILE[IMAGE_ID={image.id}]",
            f"{base}_DS_CLUSTER_ID": ",".join(str(cluster) for cluster in datastore.clusters),
            f"{base}_DS_DSID": datastore.id,
            f"{base}_DS_ID": image.id,
            f"{base}_DS_SOURCE": image.source,
            f"{base}_DS_TM": datastore.tm_mad,
        }

    def _add(self, registry: dict[int, AnyObject], thing: AnyObject) -> AnyObject:
        registry[thing.id] = thing
        self.save(thing)
        return thing

    def _registry(self, thing: Object) -> dict[int, Any]:
        registries: dict[type, dict[int, Any]] = {
            Cluster: self.clusters,
            Host: self.hosts,
            Datastore: self.datastores,
            Image: self.images,
            Vm: self.vms,
        }
        return registries[type(thing)]

    def _file(self, thing: Object) -> Path:
        return self.root / type(thing).__name__.lower() / f"{thing.id}.xml"


def _free(registry: Mapping[int, object], wanted: int | None, first: int = 0) -> int:
    return max([first - 1, *registry]) + 1 if wanted is None else wanted


def _write(path: Path, content: str) -> None:
    """Give `path` its new content by rename, so that every reader sees one or the other."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
