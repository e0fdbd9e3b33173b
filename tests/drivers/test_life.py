"""A VM's disks from image to deletion, on hosts, in every dialect of OpenNebula."""

from __future__ import annotations

import os

import pytest

from tests.cluster import Node
from tests.drivers.conftest import (
    QCOW2,
    RAW,
    SMALL,
    SOURCES,
    digest,
    placed,
    same_content,
    vm_files,
)
from tests.oned import objects
from tests.oned.probe import probe_monitor_ds
from tests.testbed import AGENT, DATASTORES, REMOTES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

VERSIONS = ("6.4.0", "6.8.0", "7.4.1")  # the dialects of contract section 0


@pytest.mark.parametrize("version", VERSIONS)
def test_life_of_a_vm(bed: Testbed, version: str) -> None:
    bed.use_version(version)
    host = bed.hosts[0]
    qcow2, raw = bed.import_image(QCOW2), bed.import_image(RAW)
    assert (qcow2.format, raw.format) == ("qcow2", "raw")
    assert (qcow2.size, raw.size) == (16, 16)  # 15 MiB and 512 bytes, rounded up
    assert os.path.dirname(qcow2.source) == "/var/lib/one//datastores/101"
    assert set(os.path.basename(raw.source)) <= set("-abcdef0123456789")
    assert bed.images.total_mb > 0

    vm = bed.vm(qcow2, raw)
    assert bed.oned.instantiate(vm, host.name, bed.system).success
    assert same_content(bed, host, bed.disk_path(vm, 0), "qcow2", QCOW2)
    assert digest(host, bed.disk_path(vm, 1)) == digest(bed.frontend, RAW)
    assert host.read(f"{DATASTORES}/102/.monitor") == b"onestor\n"

    reported = probe_monitor_ds(host)
    assert [entry.vm_id for entry in reported] == [vm.id]
    assert len(reported[0].entries) == 2

    assert bed.oned.terminate(vm).success
    assert vm_files(bed, host) == {"102/.monitor": 8}
    for image in (qcow2, raw):
        assert bed.oned.delete_image(image).success
    assert bed.files(bed.frontend) == {}


def test_log_lines_reach_the_log_of_the_vm_from_7_0(bed: Testbed) -> None:
    bed.use_version("7.4.1")
    vm = bed.vm(bed.image(SMALL))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert [line.text for line in reply.log if "image 0: cache miss, 1.0 MB sent" in line.text]
    # Trap 1: a number behind the severity would be taken for the id of a VM.
    assert {line.id for line in reply.log} == {-1}


def test_trap_7_what_a_clone_leaves_behind(bed: Testbed) -> None:
    """Nothing but the disk: neither words, nor processes, nor files of its own."""
    before = bed.files(bed.frontend, REMOTES)
    vm = bed.vm(bed.image(RAW))
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert reply.success
    assert reply.result.stderr == "", "before 7.0 success says nothing"
    # OpenNebula's ssh wrapper in PATH would start a master; its pipes would keep ours open.
    assert not [argv for _, argv in bed.frontend.processes() if "[mux]" in " ".join(argv)]
    # Traps 37 and 38: nothing dangling or unreadable, and running actions adds nothing.
    assert bed.files(bed.frontend, REMOTES) == before
    bed.frontend.run(["rsync", "-Lan", ".", "/tmp/copy"], cwd=REMOTES, env=AGENT)


def allocated(node: Node, path: str) -> int:
    return node.path(path).stat().st_blocks * 512


@pytest.mark.parametrize("source", [RAW, QCOW2])
def test_C3_C4_larger_disks_are_grown_before_they_appear_and_keep_their_holes(
    bed: Testbed, source: str
) -> None:
    image = bed.image(source)
    bed.images.template["SPARSE"] = "YES"
    bed.cloud.save(bed.images)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image, SIZE="100")])
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    host, disk = bed.hosts[0], bed.disk_path(vm)
    argv = ["qemu-img", "info", "-f", image.format, "--output=json", disk]
    assert f'"virtual-size": {100 << 20}' in host.run(argv).stdout
    assert allocated(host, disk) < 8 << 20
    assert same_content(bed, host, disk, image.format, source)


@pytest.mark.parametrize("source", [RAW, QCOW2])
def test_C4_SPARSE_NO(bed: Testbed, source: str) -> None:
    image = bed.image(source)
    bed.images.template["SPARSE"] = "NO"  # in the datastore: how it is before 6.10, too
    bed.cloud.save(bed.images)
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert allocated(bed.hosts[0], bed.disk_path(vm)) >= (15 << 20) + 512
    assert same_content(bed, bed.hosts[0], bed.disk_path(vm), image.format, source)


def test_C13_persistent_images_bring_their_snapshots(bed: Testbed) -> None:
    image = bed.image(RAW, persistent=True)
    snapshots = f"{image.source}.snap"
    bed.frontend.run(["mkdir", snapshots])
    for number in ("0", "9", "10", "123"):
        bed.frontend.write(f"{snapshots}/{number}", f"snapshot {number}")
    bed.frontend.write(f"{snapshots}/.hidden", "no snapshot")
    bed.frontend.write(f"{image.source}.tmp", "a stranger beside the image")  # A14
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    disk = bed.disk_path(vm)
    assert digest(bed.hosts[0], disk) == digest(bed.frontend, RAW)
    found = {name for name in bed.files(bed.hosts[0]) if ".snap/" in name}
    assert found == {f"102/{vm.id}/disk.0.snap/{n}" for n in ("0", "9", "10", "123")}
    assert bed.hosts[0].read(f"{disk}.snap/123") == b"snapshot 123"


def test_clones_do_not_bring_snapshots_of_their_image(bed: Testbed) -> None:
    image = bed.image(SMALL)
    bed.frontend.run(["mkdir", f"{image.source}.snap"])
    bed.frontend.write(f"{image.source}.snap/0", "old")
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert not [name for name in bed.files(bed.hosts[0]) if ".snap" in name]


def test_trap_12_kernel_and_initrd(bed: Testbed) -> None:
    kernel = bed.image(SMALL, bed.file_images, type=objects.KERNEL)
    ramdisk = bed.image(SMALL, bed.file_images, type=objects.RAMDISK)
    vm = bed.cloud.add_vm(disks=[], kernel=kernel, ramdisk=ramdisk)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    directory = f"{DATASTORES}/102/{vm.id}"
    for name in ("kernel", "initrd"):
        assert digest(bed.hosts[0], f"{directory}/{name}") == digest(bed.frontend, SMALL)


def test_cdrom_is_taken_and_brought_as_it_is(bed: Testbed) -> None:
    # A CDROM image whose content looks like qcow2 stays raw and untouched.
    image = bed.import_image(QCOW2, type=objects.CDROM)
    assert image.format == "raw"
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, QCOW2)


def test_trap_13_suffixed_names_of_attach_and_detach(bed: Testbed) -> None:
    vm = bed.vm(bed.image(SMALL))
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    disk = bed.cloud.image_disk(bed.image(RAW))
    reply = bed.oned.attach_disk(vm, disk)
    assert reply.success
    assert digest(bed.hosts[0], bed.disk_path(vm, 1)) == digest(bed.frontend, RAW)
    bed.hosts[0].write(bed.disk_path(vm, 1) + ".snap/0", "a snapshot of it")
    assert bed.oned.detach_disk(vm, disk).success
    assert not [name for name in bed.files(bed.hosts[0]) if "disk.1" in name and "lock" not in name]
    assert bed.hosts[0].exists(bed.disk_path(vm, 0))


def test_H1_trap_11_datastores_behind_a_symlink(bed: Testbed) -> None:
    """Alias paths: the system datastore's directory leads elsewhere, with `//` on top."""
    host = bed.hosts[0]
    host.run(["mkdir", "-p", f"{DATASTORES}/elsewhere/102"])
    host.run(["ln", "-s", "elsewhere/102", f"{DATASTORES}/102"])
    vm = bed.vm(bed.image(RAW))
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert host.exists(f"{DATASTORES}/elsewhere/102/{vm.id}/disk.0")
    assert bed.oned.terminate(vm).success
    assert host.exists(f"{DATASTORES}/102/.monitor")
    assert not host.exists(f"{DATASTORES}/elsewhere/102/{vm.id}")


def test_H7_rm_through_a_symlinked_base(bed: Testbed) -> None:
    frontend = bed.frontend
    frontend.run(["mkdir", f"{DATASTORES}/nas"])
    frontend.run(["ln", "-s", "nas", f"{DATASTORES}/101"])
    image = bed.image(SMALL)
    frontend.write(f"{image.source}.md5sum", "old record")
    assert bed.oned.image_action("rm", image).success
    assert bed.files(frontend) == {"101": 3}


def test_H8_deleting_a_missing_image_succeeds(bed: Testbed) -> None:
    image = bed.image(SMALL)
    bed.frontend.run(["rm", image.source])
    assert bed.oned.image_action("rm", image).success
    assert bed.oned.image_action("rm", image).success
    assert "was not there" in bed.log()


def test_H4_digests_are_enforced(bed: Testbed) -> None:
    right = digest(bed.frontend, SMALL)
    assert bed.image(SMALL, SHA256=right.upper()).format == "raw"
    bad = bed.oned.create_image(SMALL, bed.images, SHA256=right, MD5="0" * 32)
    assert bad.state == objects.IMAGE_ERROR
    assert "MD5 is" in str(bad.template["ERROR"])
    assert len([name for name in bed.files(bed.frontend) if "/." not in name]) == 1


@pytest.mark.parametrize(("source", "driver"), [(RAW, "qcow2"), (QCOW2, "raw")])
def test_H15_H27_conversion_to_the_datastores_driver(
    bed: Testbed, source: str, driver: str
) -> None:
    bed.images.template["DRIVER"] = driver
    bed.cloud.save(bed.images)
    image = bed.import_image(source)
    assert image.format == driver
    assert same_content(bed, bed.frontend, image.source, driver, source)
    bed.images.template["CONVERT"] = "no"
    bed.cloud.save(bed.images)
    assert bed.import_image(source).format != driver


def test_trap_17_delete_of_an_undeployed_vm_finds_the_files_on_the_frontend(bed: Testbed) -> None:
    vm = placed(bed, bed.image(SMALL))
    bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    copy = f"{DATASTORES}/102/{vm.id}/disk.0"
    bed.frontend.write(copy, "what undeploy has moved here")
    line = f"DELETE onestor host01:/var/lib/one//datastores/102/{vm.id} {vm.id} 102"
    assert bed.oned.transfer_mad.run_line(line).success
    assert bed.frontend.exists(copy), "the VM is running: whatever that is, it is not given up"
    bed.cloud.set_state(vm, objects.DONE)
    bed.hosts[0].cut()  # the last host may be dead
    bed.configure("CONNECT_TIMEOUT=1\n")
    assert not bed.oned.transfer_mad.run_line(line).success
    assert not bed.frontend.exists(f"{DATASTORES}/102/{vm.id}")


def test_K18_retry_replaces_its_own_leftovers(bed: Testbed) -> None:
    """The second disk cannot be had, then it can: the first one is made again, not kept aside."""
    images = bed.image(RAW), bed.image(SMALL)
    away = f"{images[1].source}.away"
    bed.frontend.run(["mv", images[1].source, away])
    vm = bed.vm(*images)
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success
    assert "no such file" in reply.error.lower()
    assert vm.lcm_state == objects.PROLOG_FAILURE
    bed.hosts[0].write(bed.disk_path(vm, 0), "damaged meanwhile")
    bed.frontend.run(["mv", away, images[1].source])
    assert bed.oned.retry_prolog(vm).success
    assert digest(bed.hosts[0], bed.disk_path(vm, 0)) == digest(bed.frontend, RAW)
    assert not [name for name in bed.files(bed.hosts[0]) if "unknown" in name]


def test_C14_unknown_files_are_set_aside(bed: Testbed) -> None:
    vm = bed.vm(bed.image(RAW))
    host, disk = bed.hosts[0], bed.disk_path(vm)
    host.write(disk, "the only copy of somebody's data")
    host.write(f"{disk}.snap/7", "and its snapshot")
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert digest(host, disk) == digest(bed.frontend, RAW)
    assert not host.exists(f"{disk}.snap")
    aside = [name for name in bed.files(host) if ".unknown" in name]
    names = [name.partition(".unknown/")[2] for name in aside]
    assert names == ["disk.0", "disk.0.snap/7"], "as they were called, in one directory"
    assert host.read(f"{DATASTORES}/{aside[0]}") == b"the only copy of somebody's data"
    assert "is not known: now" in bed.log()


def test_recreate_on_the_same_host_starts_from_the_image(bed: Testbed) -> None:
    vm = bed.vm(bed.image(RAW))
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    bed.hosts[0].write(bed.disk_path(vm), "what the guest wrote")
    assert all(reply.success for reply in bed.oned.recover_recreate(vm))
    assert bed.oned.instantiate(vm, "host01", bed.system).success
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, RAW)


def test_trap_8_delete_overlaps_a_cancelled_clone(bed: Testbed) -> None:
    """The clone is not killed by the cancel: it must notice that nobody wants the disk."""
    host = bed.hosts[0]
    host.limit_rate(40)
    vm = bed.vm(bed.image(f"{SOURCES}/big.img"))
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    source = f"fe:/var/lib/one//datastores/101/{os.path.basename(bed.cloud.images[0].source)}"
    target = f"host01:/var/lib/one//datastores/102/{vm.id}/disk.0"
    clone = bed.oned.transfer_mad.start_line(f"CLONE onestor {source} {target} {vm.id} 101")
    wait_until(lambda: any(name.endswith(".part") for name in bed.files(host)), "clone is at work")
    clone.cancel()
    assert all(reply.success for reply in bed.oned.recover_delete(vm))
    host.unlimit_rate()
    assert clone.join(30)
    wait_until(lambda: bed.leftovers() == [], "the agent has noticed that its action has ended")
    assert vm_files(bed, host) in ({}, {"102/.monitor": 8})
    lines = [line for line in bed.log().splitlines() if " action=" not in line]
    assert "deleted" in lines[-1]


def test_trap_8_delete_before_the_clone_has_begun_its_work(bed: Testbed) -> None:
    """Nothing is there to delete yet, and the clone still leaves nothing behind."""
    vm = bed.vm(bed.image(SMALL))
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.CLEANUP_DELETE)
    name = os.path.basename(bed.cloud.images[0].source)
    reply = bed.oned.transfer_mad.run_line(
        f"CLONE onestor fe:/var/lib/one//datastores/101/{name} "
        f"host01:/var/lib/one//datastores/102/{vm.id}/disk.0 {vm.id} 101"
    )
    assert not reply.success
    assert "is being deleted" in reply.error
    assert vm_files(bed, bed.hosts[0]) == {}


def test_trap_8_a_cancelled_ln_leaves_its_successor_alone(bed: Testbed) -> None:
    """Cancelled, deleted, deployed anew by hand with everything as before: the old one gives up."""
    host = bed.hosts[0]
    image = bed.image(f"{SOURCES}/big.img", persistent=True)
    bed.frontend.write(f"{image.source}.snap/0", "snapshot 0")
    vm = bed.vm(image)
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
    target = f"host01:/var/lib/one//datastores/102/{vm.id}"
    line = f"LN onestor fe:{image.source} {target}/disk.0 {vm.id} 101"
    host.limit_rate(40)
    first = bed.oned.transfer_mad.start_line(line)
    wait_until(lambda: any(name.endswith(".tmp") for name in bed.files(host)), "ln is at work")
    assert bed.oned.transfer_mad.run_line(f"DELETE onestor {target} {vm.id} 102").success
    host.unlimit_rate()
    assert bed.oned.transfer_mad.run_line(line).success
    assert not first.wait().success
    assert host.read(bed.disk_path(vm) + ".snap/0") == b"snapshot 0"
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, f"{SOURCES}/big.img")


def test_H6_image_deleted_while_it_is_copied(bed: Testbed) -> None:
    image = bed.cloud.add_image(bed.images, path=SMALL, size=1, state=objects.LOCKED)
    bed.cloud.delete(image)
    reply = bed.oned.image_action("cp", image)
    assert not reply.success
    assert "was deleted meanwhile" in reply.error
    assert bed.files(bed.frontend) == {}


def test_shared_system_datastore_is_monitored_from_the_frontend(bed: Testbed) -> None:
    bed.system.template["SHARED"] = "YES"
    bed.cloud.save(bed.system)
    bed.frontend.write(f"{DATASTORES}/102/7/disk.0", b"x" * (3 << 20))
    reply = bed.oned.monitor_datastore(bed.system)
    assert reply is not None and reply.success
    assert bed.system.total_mb > 0
    assert "VM = [ ID = 7, MONITOR = " in reply.result.stdout


def test_image_datastore_that_does_not_exist_yet_has_the_figures_of_its_parent(
    bed: Testbed,
) -> None:
    reply = bed.oned.monitor_datastore(bed.images)
    assert reply is not None and reply.success
    assert bed.images.free_mb > 0
    assert not bed.frontend.exists(f"{DATASTORES}/101")


def test_clone_to_the_frontend_itself(bed: Testbed) -> None:
    """A machine that is front-end and host: the same agent, without ssh."""
    vm = bed.vm(bed.image(QCOW2))
    assert bed.oned.instantiate(vm, "fe", bed.system).success
    assert same_content(bed, bed.frontend, bed.disk_path(vm), "qcow2", QCOW2)
    assert bed.oned.terminate(vm).success


def test_noise_of_login_scripts_does_no_harm(bed: Testbed) -> None:
    host = bed.hosts[0]
    host.write("/var/lib/one/.bashrc", "echo Welcome to {host01}\necho oops >&2\n")
    try:
        vm = bed.vm(bed.image(RAW))
        assert bed.oned.instantiate(vm, "host01", bed.system).success
    finally:
        host.run(["rm", "/var/lib/one/.bashrc"])
    assert digest(host, bed.disk_path(vm)) == digest(bed.frontend, RAW)


def test_many_clones_at_once_pass_the_limits_of_sshd(bed: Testbed) -> None:
    """one_tm runs 15 at a time, sshd's MaxStartups drops some before authentication (section 7)."""
    image = bed.image(SMALL)
    calls = []
    for _ in range(15):
        vm = bed.vm(image)
        bed.cloud.place(vm, "host01", bed.system)
        bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG)
        calls.append((vm, bed.oned.transfer_mad.start_line(
            f"CLONE onestor fe:{image.source} host01:{bed.disk_path(vm)} {vm.id} 101"
        )))  # fmt: skip
    for vm, call in calls:
        reply = call.wait()
        assert reply.success, reply.error
        assert reply.result.stderr == ""  # nothing of the tries, not a library's messages either
        assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, SMALL)


def test_K3_J5_large_messages_and_any_character(bed: Testbed) -> None:
    """A megabyte on stdin, a datastore with ten thousand images, templates with all that is odd."""
    for datastore in (bed.images, bed.system):
        datastore.template["NOTE"] = 'it\'s "quoted"\nand `more` $(than) that; <b>&amp;</b> ä'
    bed.images.images = list(range(1000, 11000))
    bed.cloud.save(bed.images, bed.system)
    image = bed.image(SMALL, NOTE="x" * (1 << 20))
    vm = bed.vm(image)
    assert bed.oned.instantiate(vm, "host01", bed.system).success


def test_L10_hosts_need_no_driver_tree(bed: Testbed) -> None:
    bed.hosts[1].run(["mv", "/var/tmp/one", "/var/tmp/one.away"])
    try:
        vm = bed.vm(bed.image(SMALL))
        assert bed.oned.instantiate(vm, "host02", bed.system).success
    finally:
        bed.hosts[1].run(["mv", "/var/tmp/one.away", "/var/tmp/one"])
