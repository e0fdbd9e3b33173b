"""What a user asks of a VM that exists: move it, save its disks, make them larger.

Contract section 2.5; the order of calls is that of the recordings. Where a hypervisor is given, the
VM runs on it; without one only the drivers are called.
"""

from __future__ import annotations

from typing import Protocol

from tests.oned import objects, transfer
from tests.oned.objects import Datastore, Disk, Image, Vm
from tests.oned.oned import Oned
from tests.oned.reply import Reply, nothing

MIGRATE_ACTION, LIVE_MIGRATE, STOP, UNDEPLOY = 1, 2, 9, 30  # history actions


class Hypervisor(Protocol):
    """What OpenNebula's scripts for a hypervisor do (contract section 2.6)."""

    def deploy(self, vm: Vm) -> None:
        """Start the VM on the host of its last history record."""

    def shutdown(self, vm: Vm, host: str) -> None:
        """End it there."""

    def save(self, vm: Vm, host: str) -> None:
        """Write its memory to the checkpoint in its directory, and end it."""

    def restore(self, vm: Vm) -> None:
        """Let it go on from the checkpoint."""

    def migrate(self, vm: Vm, source: str, target: str) -> bool:
        """Let it go on on another host; whether that worked."""

    def resize(self, vm: Vm, disk: Disk, size: int) -> None:
        """Make a disk `size` MB large while it runs."""


class Life:
    """The requests, put to `oned`."""

    def __init__(self, oned: Oned, hypervisor: Hypervisor | None = None) -> None:
        self.oned, self.cloud, self.hypervisor = oned, oned.cloud, hypervisor

    def instantiate(self, vm: Vm, host: str, datastore: Datastore) -> Reply:
        answer = self.oned.instantiate(vm, host, datastore)
        if answer.success and self.hypervisor:
            self.hypervisor.deploy(vm)
        return answer

    def power_off(self, vm: Vm) -> None:
        if self.hypervisor:
            self.hypervisor.shutdown(vm, vm.history[-1].hostname)
        self.cloud.set_state(vm, objects.POWEROFF)

    def power_on(self, vm: Vm) -> Reply:
        """onevm resume of a VM in POWEROFF or SUSPENDED: on the host where it is."""
        return self._start(vm, nothing("DEPLOY"), restore=vm.state == objects.SUSPENDED)

    def suspend(self, vm: Vm) -> None:
        """onevm suspend: its memory is written beside its disks, which stay where they are."""
        if self.hypervisor:
            self.hypervisor.save(vm, vm.history[-1].hostname)
        self.cloud.set_state(vm, objects.SUSPENDED)

    def retry_prolog(self, vm: Vm) -> Reply:
        """onevm recover --retry of an instantiation in PROLOG_FAILURE."""
        answer = self.oned.retry_prolog(vm)
        if answer.success and self.hypervisor:
            self.hypervisor.deploy(vm)
        return answer

    def retry_move(self, vm: Vm, source: str, after: int, *, restore: bool = False) -> Reply:
        """onevm recover --retry of a migration or resume that has failed: the same script again.

        The VM comes from the host `source` and has the state `after`; it is started if that is
        ACTIVE.
        """
        before, record = vm.history[-2:]
        lines = transfer.move(vm, source, record.hostname, old_datastore=before.ds_id)
        answer = self.oned._transfer(vm, lines)
        if answer.success and after != objects.ACTIVE:
            self.cloud.set_state(vm, after)
            return answer
        return self._start(vm, answer, restore=restore)

    def stop(self, vm: Vm) -> Reply:
        """onevm stop: the VM with its memory goes to the front-end."""
        host = vm.history[-1].hostname
        if self.hypervisor:
            self.hypervisor.save(vm, host)
        return self._to_front_end(vm, objects.EPILOG_STOP, objects.STOPPED)

    def undeploy(self, vm: Vm) -> Reply:
        """onevm undeploy: the VM is shut down and goes to the front-end."""
        host = vm.history[-1].hostname
        if self.hypervisor and vm.state == objects.ACTIVE:
            self.hypervisor.shutdown(vm, host)
        return self._to_front_end(vm, objects.EPILOG_UNDEPLOY, objects.UNDEPLOYED)

    def retry_epilog(self, vm: Vm) -> Reply:
        """onevm recover --retry of a stop or undeploy that has failed: it does not run by now."""
        after = {
            objects.EPILOG_STOP: objects.STOPPED,
            objects.EPILOG_UNDEPLOY: objects.UNDEPLOYED,
        }[vm.lcm_state]
        return self._to_front_end(vm, vm.lcm_state, after)

    def resume(self, vm: Vm, host: str, datastore: Datastore | None = None) -> Reply:
        """onevm resume of a VM that was stopped or undeployed, on any host."""
        was_stopped = vm.state == objects.STOPPED
        record = vm.history[-1]
        self.cloud.place(vm, host, datastore or self.cloud.datastores[record.ds_id])
        state = objects.PROLOG_RESUME if was_stopped else objects.PROLOG_UNDEPLOY
        self.cloud.set_state(vm, objects.ACTIVE, state)
        lines = transfer.move(vm, self.oned.front_end, host, old_datastore=record.ds_id)
        answer = self.oned._transfer(vm, lines)
        return self._start(vm, answer, restore=was_stopped)

    def migrate(self, vm: Vm, host: str, datastore: Datastore | None = None) -> Reply:
        """onevm migrate: saved if it runs, moved, restored."""
        runs = vm.state == objects.ACTIVE
        state = vm.state
        old = vm.history[-1]
        if runs and self.hypervisor:
            self.hypervisor.save(vm, old.hostname)
        target = datastore or self.cloud.datastores[old.ds_id]
        self.cloud.place(vm, host, target, MIGRATE_ACTION)
        self.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_MIGRATE)
        lines = transfer.move(vm, old.hostname, host, old_datastore=old.ds_id)
        answer = self.oned._transfer(vm, lines)
        if runs or not answer.success:
            return self._start(vm, answer, restore=runs)
        self.cloud.set_state(vm, state)
        return answer

    def live_migrate(self, vm: Vm, host: str) -> Reply:
        """onevm migrate --live, with what follows when the hypervisor fails."""
        old = vm.history[-1].hostname
        line = transfer.migration
        record = vm.history[-1]
        self.cloud.set_state(vm, objects.ACTIVE, objects.MIGRATE)
        self.cloud.place(vm, host, self.cloud.datastores[record.ds_id], LIVE_MIGRATE)

        def step(name: str) -> Reply:
            xml = vm.driver_xml(self.cloud.version)
            return self.oned.vmm.run_line(line(vm, name, old, host), xml)

        answer = step("PREMIGRATE")
        moved = answer.success and (not self.hypervisor or self.hypervisor.migrate(vm, old, host))
        if moved:
            self.after = step("POSTMIGRATE")
        else:
            if answer.success:
                self.after = step("FAILMIGRATE")
            self.cloud.place(vm, old, self.cloud.datastores[record.ds_id])
        self.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
        return answer

    def save_as(self, vm: Vm, disk: Disk, snapshot: int = -1) -> Image:
        """onevm disk-saveas: MKFS with the format save_as, then CPDS; READY or in ERROR."""
        assert disk.image_id is not None
        original = self.cloud.images[disk.image_id]
        datastore = self.cloud.datastores[original.datastore_id]
        image = self.cloud.add_image(
            datastore, size=int(disk.attributes["SIZE"]), format="save_as",
            state=objects.LOCKED, prev_state=0,
        )  # fmt: skip
        made = self.oned.image_action("mkfs", image)
        if not made.success:
            self.oned._image_error(image, made.failure("Error saving"))
            return image
        image.source, image.format = made.info.split()[0], disk.attributes["FORMAT"]
        self.cloud.save(image)
        states = {
            objects.ACTIVE: (objects.HOTPLUG_SAVEAS, ""),
            objects.POWEROFF: (objects.HOTPLUG_SAVEAS_POWEROFF, ""),
            objects.SUSPENDED: (objects.HOTPLUG_SAVEAS_SUSPENDED, ""),
            objects.UNDEPLOYED: (objects.HOTPLUG_SAVEAS_UNDEPLOYED, self.oned.front_end),
            objects.STOPPED: (objects.HOTPLUG_SAVEAS_STOPPED, self.oned.front_end),
        }
        state, lcm_state = vm.state, vm.lcm_state
        during, host = states[state]
        self.cloud.set_state(vm, objects.ACTIVE, during)
        answer = self.oned._transfer(vm, transfer.save_as(vm, disk, image.source, snapshot, host))
        self.cloud.set_state(vm, state, lcm_state)
        if answer.success:
            image.set_state(objects.READY)
            self.cloud.save(image)
        else:
            self.oned._image_error(image, answer.failure("Error saving"))
        return image

    def resize(self, vm: Vm, disk: Disk, size: int) -> Reply:
        """onevm disk-resize; of a running VM the hypervisor makes the disk larger."""
        state, lcm_state = vm.state, vm.lcm_state
        during = {
            objects.ACTIVE: objects.DISK_RESIZE,
            objects.POWEROFF: objects.DISK_RESIZE_POWEROFF,
            objects.UNDEPLOYED: objects.DISK_RESIZE_UNDEPLOYED,
        }[state]
        disk.attributes["SIZE"] = str(size)
        self.cloud.set_state(vm, objects.ACTIVE, during)
        lines = transfer.resize(vm, disk, size)
        if during == objects.DISK_RESIZE:
            answer = self.oned.vmm.run_line(lines[0])
            if answer.success and self.hypervisor:
                self.hypervisor.resize(vm, disk, size)
        else:
            answer = self.oned._transfer(vm, lines)
        self.cloud.set_state(vm, state, lcm_state)
        return answer

    def snapshot(self, vm: Vm, disk: Disk) -> Reply:
        """onevm disk-snapshot-create: live where the VM runs; its id is the newest of the disk."""
        during = {
            objects.ACTIVE: objects.DISK_SNAPSHOT,
            objects.POWEROFF: objects.DISK_SNAPSHOT_POWEROFF,
            objects.SUSPENDED: objects.DISK_SNAPSHOT_SUSPENDED,
        }[vm.state]
        kept = self._snapshots_of(vm, disk)
        number = kept.add("", int(disk.attributes["SIZE"]))
        answer = self._on_snapshot(vm, disk, during, "SNAP_CREATE", number)
        if not answer.success:
            self._forget_snapshot(vm, kept, number)
        return answer

    def revert(self, vm: Vm, disk: Disk, number: int) -> Reply:
        """onevm disk-snapshot-revert."""
        assert vm.state == objects.POWEROFF
        during = objects.DISK_SNAPSHOT_REVERT_POWEROFF
        return self._on_snapshot(vm, disk, during, "SNAP_REVERT", number)

    def delete_snapshot(self, vm: Vm, disk: Disk, number: int) -> Reply:
        """onevm disk-snapshot-delete, in any state."""
        during = {
            objects.ACTIVE: objects.DISK_SNAPSHOT_DELETE,
            objects.POWEROFF: objects.DISK_SNAPSHOT_DELETE_POWEROFF,
            objects.SUSPENDED: objects.DISK_SNAPSHOT_DELETE_SUSPENDED,
        }[vm.state]
        answer = self._on_snapshot(vm, disk, during, "SNAP_DELETE", number)
        if answer.success:
            self._forget_snapshot(vm, self._snapshots_of(vm, disk), number)
        return answer

    def _on_snapshot(self, vm: Vm, disk: Disk, during: int, action: str, number: int) -> Reply:
        """Of a VM that runs, only creation is the hypervisor's driver's (contract section 2.5)."""
        state, lcm_state = vm.state, vm.lcm_state
        self.cloud.set_state(vm, objects.ACTIVE, during)
        if during == objects.DISK_SNAPSHOT:
            line = transfer.snapshot(vm, disk, f"{action}_LIVE", number)
            answer = self.oned.vmm.run_line(line)
        else:
            answer = self.oned._transfer(vm, [transfer.snapshot(vm, disk, action, number)])
        self.cloud.set_state(vm, state, lcm_state)
        return answer

    @staticmethod
    def _snapshots_of(vm: Vm, disk: Disk) -> objects.Snapshots:
        for kept in vm.snapshots:
            if kept.disk_id == disk.id:
                return kept
        vm.snapshots.append(objects.Snapshots("YES", disk.id))
        return vm.snapshots[-1]

    def _forget_snapshot(self, vm: Vm, kept: objects.Snapshots, number: int) -> None:
        """The next one of a disk that has none any more is 0 again (known failure F2)."""
        kept.remove(number)
        if not kept.snapshots:
            vm.snapshots.remove(kept)
        self.cloud.save(vm)

    def _to_front_end(self, vm: Vm, during: int, after: int) -> Reply:
        record = vm.history[-1]
        self.cloud.set_state(vm, objects.ACTIVE, during)
        lines = transfer.move(vm, record.hostname, self.oned.front_end)
        answer = self.oned._transfer(vm, lines)
        if answer.success:
            self.cloud.leave(vm, STOP if after == objects.STOPPED else UNDEPLOY)
            self.cloud.set_state(vm, after)
        return answer

    def _start(self, vm: Vm, answer: Reply, *, restore: bool) -> Reply:
        if not answer.success:
            return answer
        answer = self.oned._deploy(vm, answer)
        if answer.success and self.hypervisor:
            if restore:
                self.hypervisor.restore(vm)
            else:
                self.hypervisor.deploy(vm)
        return answer
