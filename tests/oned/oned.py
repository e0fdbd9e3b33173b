"""The little of oned above its drivers: what a user asks, and the calls that follow.

Contract sections 1.3, 2.1, 2.5 and 2.9; the order of calls is that of the recordings. Each method
returns when the work is done. States change where oned changes them, so that a driver that asks
for its VM meanwhile sees what it would see.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence

from tests.oned import objects, reply, transfer
from tests.oned.cloud import Cloud
from tests.oned.mads import HOME, REMOTES, DatastoreMad, Transfer, TransferMad, VmmTransfer
from tests.oned.markup import Value, text
from tests.oned.objects import DATASTORES, SYSTEM_DATASTORE, Datastore, Disk, Image, Vm
from tests.oned.reply import Reply
from tests.oned.runner import Runner
from tests.oned.version import at_least

DELETE, DELETE_RECREATE, TERMINATE_HARD = 13, 14, 28  # history actions

ON_HYPERVISOR = (objects.BOOT, objects.RUNNING, objects.SHUTDOWN)


class RequestFailed(Exception):
    """What the user is told when oned refuses a request; nothing has been changed."""


class Oned:
    """oned on the front-end `front_end`, its mads started through `runner`.

    `hosts` are the runners of hypervisors: where one is given, a deployment writes vm.xml and
    ds.xml into the VM's directory there. No VM ever runs: the hypervisor is not played.
    """

    def __init__(
        self,
        cloud: Cloud,
        runner: Runner,
        *,
        front_end: str = "fe",
        remotes: str = REMOTES,
        home: str = HOME,
        hosts: Mapping[str, Runner] | None = None,
        datastore_timeout: float | None = None,
    ) -> None:
        self.cloud = cloud
        self.front_end = front_end
        self.runner = runner
        self.home = home
        self.hosts = hosts or {}
        self.datastore_mad = DatastoreMad(
            runner, cloud.version, remotes, home, timeout=datastore_timeout
        )
        self.transfer_mad = TransferMad(runner, cloud.version, remotes, home)
        self.vmm = VmmTransfer(runner, cloud.version, remotes, home)
        self._requests = itertools.count()
        self._in_flight: dict[int, Transfer] = {}
        self._lock = threading.Lock()

    # Images

    def create_image(
        self,
        path: str,
        datastore: Datastore,
        name: str = "",
        type: int = objects.OS,
        persistent: bool = False,
        **template: Value,
    ) -> Image:
        """oneimage create: STAT, CP, MONITOR. The image is READY in the end, or in ERROR."""
        size = self._size(path, datastore)
        image = self.cloud.add_image(
            datastore,
            name,
            path=path,
            size=size,
            type=type,
            persistent=persistent,
            state=objects.LOCKED,
            prev_state=0,
            template={"DEV_PREFIX": "vd", **template},
            listed=False,
        )
        answer = self.image_action("cp", image)
        self.cloud.list_image(image)
        prefix = "Error copying image in the datastore"
        if not answer.success:
            self._image_error(image, answer.failure(prefix))
            return image
        try:
            image.source, image.format = reply.source_and_format(self.cloud.version, answer)
        except reply.UnusableReply as unusable:
            self._image_error(image, f"{prefix}: {unusable}")
            return image
        image.set_state(objects.READY)
        self.cloud.save(image)
        self.monitor_datastore(datastore)
        return image

    def delete_image(self, image: Image) -> Reply:
        """oneimage delete: RM, MONITOR. A failure keeps the image from 6.6 on, in ERROR."""
        datastore = self.cloud.datastores[image.datastore_id]
        answer = self.image_action("rm", image)
        if not answer.success and at_least(self.cloud.version, "6.6"):
            self._image_error(image, answer.failure("Error removing image from datastore"))
            return answer
        datastore.images.remove(image.id)
        self.cloud.save(datastore)
        self.cloud.delete(image)
        self.monitor_datastore(datastore)
        return answer

    def create_datablock(
        self, size: int, datastore: Datastore, format: str = "raw", fs: str = ""
    ) -> Image:
        """oneimage create of an empty image of `size` MB: MKFS, MONITOR."""
        image = self.cloud.add_image(
            datastore, size=size, format=format, fs=fs, type=objects.DATABLOCK,
            state=objects.LOCKED, prev_state=0,
        )  # fmt: skip
        answer = self.image_action("mkfs", image)
        if answer.success:
            image.source = reply.made_source(self.cloud.version, answer)
        return self._made(image, answer, "Error creating datablock")

    def clone_image(self, source: Image, datastore: Datastore | None = None) -> Image:
        """oneimage clone: CLONE, MONITOR; PATH is what SOURCE is for the other one."""
        version = self.cloud.version
        target = datastore or self.cloud.datastores[source.datastore_id]
        image = self.cloud.add_image(
            target, path=source.source, size=source.size, format=source.format, type=source.type,
            cloning_id=source.id, state=objects.LOCKED, prev_state=0,
        )  # fmt: skip
        extra = ""
        if at_least(version, "7.4"):
            bridges = self.cloud.datastores[source.datastore_id].template.get("BRIDGE_LIST", "")
            extra = text("SOURCE_BRIDGE_LIST", str(bridges))
        answer = self.image_action("clone", image, extra)
        if answer.success:
            image.source = reply.cloned_source(version, answer)
            image.format = reply.cloned_format(version, answer) or source.format
        return self._made(image, answer, "Error cloning from image")

    def snapshot_action(self, action: str, image: Image, snapshot: int) -> Reply:
        """oneimage snapshot-delete, -revert or -flatten; the id is in TARGET_SNAPSHOT."""
        image.target_snapshot = snapshot
        answer = self.image_action(action, image)
        image.target_snapshot = -1
        if answer.success and action == "snap_delete":
            image.snapshots.remove(snapshot)
        elif answer.success and action == "snap_flatten":
            image.snapshots = objects.Snapshots()
        self.cloud.save(image)
        return answer

    def image_action(self, action: str, image: Image, extra: str = "") -> Reply:
        """One datastore action on an image, with the message oned sends; no state changes."""
        datastore = self.cloud.datastores[image.datastore_id]
        message = self._message(image.xml(self.cloud.version), datastore, extra)
        return self.datastore_mad.call(action, datastore.ds_mad, message, image.id)

    def _made(self, image: Image, answer: Reply, prefix: str) -> Image:
        if answer.success:
            image.set_state(objects.READY)
            self.cloud.save(image)
            self.monitor_datastore(self.cloud.datastores[image.datastore_id])
        else:
            self._image_error(image, answer.failure(prefix))
        return image

    def monitor_datastore(self, datastore: Datastore) -> Reply | None:
        """Ask for a datastore's figures; no driver is asked about system datastores that are not
        shared (contract section 1.6)."""
        extra = ""
        if datastore.type == SYSTEM_DATASTORE:
            if datastore.template.get("SHARED") != "YES":
                return None
            extra = text("DATASTORE_LOCATION", DATASTORES)
        message = self._message("", datastore, extra)
        answer = self.datastore_mad.call("monitor", datastore.ds_mad, message, datastore.id)
        if answer.success:
            figures = reply.monitored(answer)
            datastore.total_mb = figures.get("TOTAL_MB", 0)
            datastore.free_mb = figures.get("FREE_MB", 0)
            datastore.used_mb = figures.get("USED_MB", 0)
            self.cloud.save(datastore)
        return answer

    # VMs

    def instantiate(self, vm: Vm, host: str, datastore: Datastore) -> Reply:
        """Deploy a PENDING VM: prolog, context, RUNNING; or PROLOG_FAILURE, with the message.

        Cancelled is raised if the VM is deleted or recreated meanwhile.
        """
        self.cloud.place(vm, host, datastore)
        return self._prolog(vm)

    def retry_prolog(self, vm: Vm) -> Reply:
        """onevm recover --retry in PROLOG_FAILURE: the same script again."""
        return self._prolog(vm)

    def terminate(self, vm: Vm) -> Reply:
        """onevm terminate --hard: epilog, DONE; or EPILOG_FAILURE, where this is the retry."""
        record = vm.history[-1]
        record.action = TERMINATE_HARD
        record.epilog = (_now(), 0)
        self.cloud.set_state(vm, objects.ACTIVE, objects.EPILOG)
        answer = self._transfer(vm, transfer.epilog(vm))
        if not answer.success:
            self._vm_error(vm, answer)
            self.cloud.set_state(vm, objects.ACTIVE, objects.EPILOG_FAILURE)
            return answer
        record.epilog = (record.epilog[0], _now())
        self._done(vm)
        return answer

    def attach_disk(self, vm: Vm, disk: Disk) -> Reply:
        """onevm disk-attach to a VM in POWEROFF; the disk is gone again if that fails."""
        self.cloud.add_disk(vm, disk)
        self.cloud.settle(disk, self.cloud.datastores[vm.history[-1].ds_id])
        lines = transfer.prolog_attach(vm, disk, self.front_end)
        answer = self._hotplug(vm, disk, objects.HOTPLUG_PROLOG_POWEROFF, lines)
        if not answer.success:
            self.cloud.remove_disk(vm, disk)
        self.cloud.set_state(vm, objects.POWEROFF)
        return answer

    def detach_disk(self, vm: Vm, disk: Disk) -> Reply:
        """onevm disk-detach from a VM in POWEROFF; the disk stays if that fails."""
        lines = transfer.epilog_detach(vm, disk)
        answer = self._hotplug(vm, disk, objects.HOTPLUG_EPILOG_POWEROFF, lines)
        if answer.success:
            self.cloud.remove_disk(vm, disk)
        self.cloud.set_state(vm, objects.POWEROFF)
        return answer

    def recover_delete(self, vm: Vm) -> list[Reply]:
        """onevm recover --delete, also while a transfer runs: it is cancelled, not killed."""
        answers = self._clean_up(vm, objects.CLEANUP_DELETE, DELETE)
        self._done(vm)
        return answers

    def recover_recreate(self, vm: Vm) -> list[Reply]:
        """onevm recover --recreate: as above, but the VM is PENDING afterwards."""
        answers = self._clean_up(vm, objects.CLEANUP_RESUBMIT, DELETE_RECREATE)
        self.cloud.leave(vm, DELETE_RECREATE)
        self.cloud.set_state(vm, objects.PENDING)
        return answers

    def _prolog(self, vm: Vm) -> Reply:
        record = vm.history[-1]
        record.prolog = (_now(), 0)
        self.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
        answer = self._transfer(vm, transfer.prolog(vm, self.front_end))
        if not answer.success:
            self._vm_error(vm, answer)
            self.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_FAILURE)
            return answer
        record.prolog = (record.prolog[0], _now())
        return self._deploy(vm, answer)

    def _deploy(self, vm: Vm, answer: Reply) -> Reply:
        """The storage side of a deployment (contract 2.5); `answer` is what came before it."""
        record = vm.history[-1]
        self.cloud.set_state(vm, objects.ACTIVE, objects.BOOT)
        if vm.context:
            folder = f"{self.home}/vms/{vm.id}"
            self._write(self.runner, folder, "context.sh", context_script(vm))
            answer = self.vmm.run_line(transfer.context(vm, f"{folder}/context.sh"))
            if not answer.success:
                self._vm_error(vm, answer)
                self.cloud.set_state(vm, objects.ACTIVE, objects.BOOT_FAILURE)
                return answer
        host = self.hosts.get(record.hostname)
        if host and at_least(self.cloud.version, "6.0"):
            folder = f"{DATASTORES}/{record.ds_id}/{vm.id}"
            datastore = self.cloud.datastores[record.ds_id]
            self._write(host, folder, "vm.xml", vm.driver_xml(self.cloud.version))
            self._write(host, folder, "ds.xml", datastore.xml(self.cloud.version))
        boot = vm.template.get("OS")
        vm.deploy_id = str(boot.get("UUID", "")) if isinstance(boot, Mapping) else ""
        record.running = (_now(), 0)
        self.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
        return answer

    def _hotplug(self, vm: Vm, disk: Disk, lcm_state: int, lines: Sequence[str]) -> Reply:
        disk.attributes["ATTACH"] = "YES"
        self.cloud.set_state(vm, objects.ACTIVE, lcm_state)
        answer = self._transfer(vm, lines)
        del disk.attributes["ATTACH"]
        if not answer.success:
            self._vm_error(vm, answer)
        return answer

    def _clean_up(self, vm: Vm, lcm_state: int, action: int) -> list[Reply]:
        """Cancel what runs, then delete: line by line and whatever comes of it if the VM is on a
        hypervisor, else by a transfer script, whose failure changes nothing either."""
        on_hypervisor = vm.lcm_state in ON_HYPERVISOR
        vm.history[-1].action = action
        self.cloud.set_state(vm, objects.ACTIVE, lcm_state)
        with self._lock:
            running = self._in_flight.pop(vm.id, None)
        if running:
            running.cancel()
        lines = transfer.delete(vm)
        if on_hypervisor:
            return [self.vmm.run_line(line) for line in lines]
        return [self._transfer(vm, lines)]

    def _done(self, vm: Vm) -> None:
        for disk in vm.disks:
            self.cloud.release(vm, disk)
        vm.etime = _now()
        self.cloud.leave(vm, vm.history[-1].action)
        self.cloud.set_state(vm, objects.DONE)

    def _transfer(self, vm: Vm, lines: Sequence[str]) -> Reply:
        script = self.transfer_mad.start_script(lines)
        with self._lock:
            self._in_flight[vm.id] = script
        try:
            return script.wait()
        finally:
            with self._lock:
                if self._in_flight.get(vm.id) is script:
                    del self._in_flight[vm.id]

    def _size(self, path: str, datastore: Datastore) -> int:
        size = "<SIZE></SIZE>" if at_least(self.cloud.version, "7.4") else ""
        message = self._message(f"<IMAGE>{text('PATH', path)}{size}</IMAGE>", datastore)
        request = next(self._requests)
        answer = self.datastore_mad.call("stat", datastore.ds_mad, message, request)
        if not answer.success:
            raise RequestFailed(f"Cannot determine Image SIZE. {answer.error}".strip())
        try:
            return reply.size_mb(answer)
        except reply.UnusableReply as unusable:
            raise RequestFailed(f"Cannot determine Image SIZE. {unusable}") from unusable

    def _message(self, image: str, datastore: Datastore, extra: str = "") -> str:
        inner = f"{image}{datastore.xml(self.cloud.version)}{extra}"
        return f"<DS_DRIVER_ACTION_DATA>{inner}</DS_DRIVER_ACTION_DATA>"

    def _image_error(self, image: Image, message: str) -> None:
        image.template["ERROR"] = message
        image.set_state(objects.IMAGE_ERROR)
        self.cloud.save(image)

    def _vm_error(self, vm: Vm, answer: Reply) -> None:
        vm.user_template["ERROR"] = answer.failure("Error executing image transfer script")

    def _write(self, runner: Runner, folder: str, name: str, content: str) -> None:
        """Write a file where `runner` is, as oned and its mads leave files for the drivers."""
        script = 'mkdir -p "$1" && cat >"$1/$2"'
        argv = ["/bin/sh", "-c", script, "sh", folder, name]
        process = runner.popen(argv, env={"PATH": "/usr/bin:/bin"}, cwd="/")
        _, errors = process.communicate(content.encode())
        if process.returncode:
            raise RuntimeError(f"cannot write {folder}/{name}: {errors.decode()}")


def context_script(vm: Vm) -> str:
    """context.sh: the variables of the context, quoted for the shell."""
    lines = ["# Context variables generated by OpenNebula"]
    for name in sorted(vm.context):
        value = str(vm.context[name]).replace("'", "'\\''")
        lines.append(f"{name}='{value}'")
    return "\n".join(lines) + "\n"


def _now() -> int:
    return int(time.time())
