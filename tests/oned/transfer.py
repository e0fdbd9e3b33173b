"""Transfer scripts: the lines oned writes for its transfer manager (contract 2.2 and 2.5)."""

from __future__ import annotations

from collections.abc import Mapping

from tests.oned.objects import DATASTORES, Disk, History, Vm


def prolog(vm: Vm, front_end: str) -> list[str]:
    """Bring every disk, then kernel and ramdisk, to the VM's host."""
    lines = [_create(vm, disk, front_end) for disk in vm.disks]
    os_section = vm.template.get("OS")
    if isinstance(os_section, Mapping):
        for base in ("KERNEL", "INITRD"):
            if f"{base}_DS_SOURCE" in os_section:
                source = _source(str(os_section[f"{base}_DS_SOURCE"]), front_end)
                target = f"{_directory(vm)}/{base.lower()}"
                driver, datastore = os_section[f"{base}_DS_TM"], os_section[f"{base}_DS_DSID"]
                lines.append(f"CLONE {driver} {source} {target} {vm.id} {datastore}")
    return lines


def epilog(vm: Vm) -> list[str]:
    """Save the persistent disks, delete the others, then the directory."""
    return [*(_dismiss(vm, disk) for disk in vm.disks), _delete_directory(vm)]


def delete(vm: Vm) -> list[str]:
    """Delete everything, without saving."""
    return [*(_delete(vm, disk) for disk in vm.disks), _delete_directory(vm)]


def prolog_attach(vm: Vm, disk: Disk, front_end: str) -> list[str]:
    """Bring one disk to a VM that is powered off; the name has a suffix (contract 2.9)."""
    return [_create(vm, disk, front_end, _suffix(vm))]


def epilog_detach(vm: Vm, disk: Disk) -> list[str]:
    """Save or delete one disk of a VM that is powered off."""
    return [_dismiss(vm, disk, _suffix(vm))]


def move(vm: Vm, source: str, target: str, *, old_datastore: int | None = None) -> list[str]:
    """Move every disk, then the directory, from one host to another (contract section 2.5)."""
    record = vm.history[-1]
    old = record.ds_id if old_datastore is None else old_datastore
    ends = [f"{source}:{DATASTORES}/{old}/{vm.id}", f"{target}:{DATASTORES}/{record.ds_id}/{vm.id}"]
    lines = []
    for disk in vm.disks:
        files = " ".join(f"{end}/disk.{disk.id}" for end in ends)
        attributes = disk.attributes
        lines.append(f"MV {attributes['TM_MAD']} {files} {vm.id} {attributes['DATASTORE_ID']}")
    return [*lines, f"MV {record.tm_mad} {' '.join(ends)} {vm.id} {record.ds_id}"]


def save_as(vm: Vm, disk: Disk, source: str, snapshot: int, host: str = "") -> list[str]:
    """Save a disk, or a snapshot of it, as the image that will be at `source`."""
    attributes = disk.attributes
    record = vm.history[-1]
    file = f"{host or record.hostname}:{DATASTORES}/{record.ds_id}/{vm.id}/disk.{disk.id}"
    end = f"{snapshot} {vm.id} {attributes['DATASTORE_ID']}"
    return [f"CPDS {attributes['TM_MAD']} {file} {source} {end}"]


def resize(vm: Vm, disk: Disk, size: int) -> list[str]:
    """Make a disk `size` MB large."""
    attributes = disk.attributes
    end = f"{size} {vm.id} {attributes['DATASTORE_ID']}"
    return [f"RESIZE {attributes['TM_MAD']} {_file(vm, disk)} {end}"]


def snapshot(vm: Vm, disk: Disk, action: str, number: int) -> str:
    """One of the actions on a snapshot of a disk: SNAP_CREATE and so on."""
    attributes = disk.attributes
    end = f"{number} {vm.id} {attributes['DATASTORE_ID']}"
    return f"{action} {attributes['TM_MAD']} {_file(vm, disk)} {end}"


def migration(vm: Vm, step: str, source: str, target: str) -> str:
    """The step (PREMIGRATE and so on) of a live migration."""
    record = vm.history[-1]
    directory = f"{DATASTORES}/{record.ds_id}/{vm.id}"
    return f"{step} {record.tm_mad} {source} {target} {directory} {vm.id} {record.ds_id}"


def context(vm: Vm, script: str) -> str:
    """The step of a deployment that builds the context disk."""
    record = vm.history[-1]
    target = f"{_directory(vm)}/disk.{vm.context['DISK_ID']}"
    return f"CONTEXT {record.tm_mad} {script} {target} {vm.id} {record.ds_id}"


def _create(vm: Vm, disk: Disk, front_end: str, suffix: str = "") -> str:
    attributes = disk.attributes
    end = f"{_file(vm, disk)} {vm.id} {attributes['DATASTORE_ID']}"
    driver = attributes["TM_MAD"]
    if disk.image_id is not None:
        name = "CLONE" if attributes["CLONE"] == "YES" else "LN"
        return f"{name}{suffix} {driver} {_source(attributes['SOURCE'], front_end)} {end}"
    if attributes["TYPE"] == "swap":
        return f"MKSWAP {driver} {attributes['SIZE']} {end}"
    return f"MKIMAGE {driver} {attributes['SIZE']} {attributes['FORMAT']} {end}"


def _dismiss(vm: Vm, disk: Disk, suffix: str = "") -> str:
    if not disk.saved:
        return _delete(vm, disk, suffix)
    attributes = disk.attributes
    ends = f"{_file(vm, disk)} {attributes['SOURCE']}"
    return f"MVDS{suffix} {attributes['TM_MAD']} {ends} {vm.id} {attributes['DATASTORE_ID']}"


def _delete(vm: Vm, disk: Disk, suffix: str = "") -> str:
    attributes = disk.attributes
    target = f"{_file(vm, disk)} {vm.id} {attributes['DATASTORE_ID']}"
    return f"DELETE{suffix} {attributes['TM_MAD']} {target}"


def _delete_directory(vm: Vm) -> str:
    record = vm.history[-1]
    return f"DELETE {record.tm_mad} {_directory(vm)} {vm.id} {record.ds_id}"


def _suffix(vm: Vm) -> str:
    return f".{vm.history[-1].tm_mad}"


def _source(source: str, front_end: str) -> str:
    return source if ":" in source else f"{front_end}:{source}"


def _directory(vm: Vm) -> str:
    record: History = vm.history[-1]
    return f"{record.hostname}:{DATASTORES}/{record.ds_id}/{vm.id}"


def _file(vm: Vm, disk: Disk) -> str:
    return f"{_directory(vm)}/disk.{disk.id}"
