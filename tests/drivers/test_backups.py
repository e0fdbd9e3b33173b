"""Backups: OpenNebula's scripts are handed what they need, and found by its cancel (contract 6.4).

What they do themselves needs Ruby and a backup datastore; here they note how they are called.
"""

from __future__ import annotations

import pytest

from tests.drivers.conftest import QCOW2, RAW, same_content
from tests.oned import objects
from tests.oned.objects import Vm
from tests.testbed import DATASTORES, REMOTES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

ACTIONS = ("prebackup", "prebackup_live", "postbackup", "postbackup_live")


def script(bed: Testbed, action: str, text: str) -> None:
    path = f"{REMOTES}/tm/ssh/{action}"
    note = f'echo "$*" > /var/tmp/{action}.argv; cat > /var/tmp/{action}.stdin'
    bed.frontend.write(path, f"#!/usr/bin/env ruby\n{note}\n{text}\n", mode=0o755)


@pytest.fixture
def vm(bed: Testbed) -> Vm:
    """A VM with a disk of each format that runs as far as oned knows.

    /usr/local/bin/ruby runs what is to pass for Ruby.
    """
    bed.frontend.run(["cp", "/bin/sh", "/usr/local/bin/ruby"], user="root")
    vm = bed.vm(bed.image(QCOW2), bed.image(RAW))
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    return vm


def line(action: str, vm: Vm, disks: str = "0:1", deploy_id: str = "one-0", job: str = "-") -> str:
    words = [f"host01:{DATASTORES}//102/{vm.id}", disks, deploy_id, job, str(vm.id), "102"]
    return f"{action.upper()} onestor {' '.join(filter(None, words))}"


@pytest.mark.parametrize("action", ACTIONS)
def test_trap19_the_script_gets_the_same_words_and_a_driver_it_knows(
    bed: Testbed, vm: Vm, action: str
) -> None:
    script(bed, action, "exit 0")
    reply = bed.oned.vmm.run_line(line(action, vm), vm.driver_xml(bed.cloud.version))
    assert reply.success, reply.error
    said = bed.frontend.read(f"/var/tmp/{action}.argv").decode().split()
    assert said == line(action, vm).split()[2:]
    given = bed.frontend.read(f"/var/tmp/{action}.stdin").decode()
    assert given.startswith("<VM><ID>") and given.count("<TM_MAD>ssh</TM_MAD>") == 3
    assert "onestor" not in "".join(
        part.split("</TM_MAD>")[0] for part in given.split("<TM_MAD>")[1:]
    )


def test_trap18_an_empty_deploy_id_shifts_the_words(bed: Testbed, vm: Vm) -> None:
    script(bed, "prebackup", "exit 0")
    words = line("prebackup", vm, deploy_id="")
    assert bed.oned.vmm.run_line(words, vm.driver_xml(bed.cloud.version)).success
    assert bed.frontend.read("/var/tmp/prebackup.argv").decode().split() == words.split()[2:]


def test_the_failure_is_the_scripts_own(bed: Testbed, vm: Vm) -> None:
    script(bed, "prebackup", "echo no room >&2; exit 5")
    reply = bed.oned.vmm.run_line(line("prebackup", vm), vm.driver_xml(bed.cloud.version))
    assert not reply.success and reply.error == "no room"


def test_a_script_that_is_not_there_is_named(bed: Testbed, vm: Vm) -> None:
    bed.frontend.run(["rm", "-f", f"{REMOTES}/tm/ssh/prebackup"])
    reply = bed.oned.vmm.run_line(line("prebackup", vm), vm.driver_xml(bed.cloud.version))
    assert not reply.success and f"{REMOTES}/tm/ssh/prebackup" in reply.error


@pytest.mark.parametrize(("disks", "allowed"), [("0", True), ("0:1:", False), ("1", False)])
def test_increments_of_raw_disks_are_refused(
    bed: Testbed, vm: Vm, disks: str, allowed: bool
) -> None:
    """oned refuses them for drivers it knows by name only (contract section 6.4)."""
    script(bed, "prebackup_live", "exit 0")
    vm.backup_config = {"MODE": "INCREMENT"}
    xml = vm.driver_xml(bed.cloud.version)
    reply = bed.oned.vmm.run_line(line("prebackup_live", vm, disks), xml)
    assert reply.success is allowed
    assert allowed or "disk 1 is raw: increments need qcow2" in reply.error
    # What was prepared has to go whatever it was.
    script(bed, "postbackup_live", "exit 0")
    assert bed.oned.vmm.run_line(line("postbackup_live", vm, disks), xml).success


def test_cancel_finds_the_program(bed: Testbed, vm: Vm) -> None:
    """It looks for a program called ruby with the action and the deploy id on its command line."""
    script(bed, "prebackup_live", "trap 'exit 9' TERM; while :; do sleep 0.1; done")
    xml = vm.driver_xml(bed.cloud.version)
    call = bed.oned.vmm.start_line(line("prebackup_live", vm), xml)
    name = ""

    def found() -> bool:
        nonlocal name
        for pid, argv in bed.frontend.processes():
            text = " ".join(argv)
            if "prebackup_live" in text and " one-0 " in text:
                name = bed.frontend.read(f"/proc/{pid}/comm").decode().strip()
        return name == "ruby"

    wait_until(found, "the script runs under its own name")
    bed.frontend.run(["pkill", "-TERM", "-x", "ruby"])
    assert not call.wait().success


def test_restore_leaves_no_base_behind(bed: Testbed, vm: Vm) -> None:
    """The script puts plain files in place of our overlays."""
    assert bed.oned.retry_prolog(vm).success
    bed.cloud.set_state(vm, objects.POWEROFF)
    host, disk = bed.hosts[0], bed.disk_path(vm)
    restored = f"scp -q -oControlMaster=no {QCOW2} host01:{disk}"
    script(bed, "restore", f"ssh -oControlMaster=no host01 rm {disk}; {restored}")
    words = f"host01:{DATASTORES}//102/{vm.id} {vm.id} 7 0 -1"
    reply = bed.oned.transfer_mad.run_line(f"RESTORE onestor {words}")
    assert reply.success, reply.error
    assert bed.frontend.read("/var/tmp/restore.argv").decode().split() == words.split()
    assert not host.exists(f"{disk}.base")
    assert same_content(bed, host, disk, "qcow2", QCOW2)
    line = f"RESTORE onestor host01:{DATASTORES}//102/{vm.id} {vm.id} 7 0 0"
    assert bed.oned.transfer_mad.run_line(line).success  # one disk of all
    assert "disk.0 restored" in bed.log()
    script(bed, "restore", "echo no such backup >&2; exit 1")
    reply = bed.oned.transfer_mad.run_line(f"RESTORE onestor {words}")
    assert not reply.success and "no such backup" in reply.error
