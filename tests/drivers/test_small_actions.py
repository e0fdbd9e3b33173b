"""tm mkimage, mkswap, context, resize and delete, and what is configured for all actions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster import Node
from tests.drivers.conftest import (
    BIG,
    CALL_ENVIRONMENT,
    QCOW2,
    RAW,
    SMALL,
    configure_system,
    digest,
    onestor_argv,
    placed,
    program_before,
    vm_files,
    warnings,
)
from tests.oned import objects
from tests.oned.life import Life
from tests.oned.objects import READY, Disk, Vm
from tests.sampling import one_of
from tests.testbed import DATASTORES, REMOTES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

MB = 1 << 20


def start(bed: Testbed, *disks: Disk, **options: object) -> Vm:
    vm = bed.cloud.add_vm(disks=list(disks), **options)  # type: ignore[arg-type]
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert reply.success, reply.error
    return vm


def info(node: Node, path: str, image_format: str) -> dict[str, int]:
    argv = ["qemu-img", "info", "-U", "-f", image_format, "--output=json", path]
    found: dict[str, int] = json.loads(node.run(argv).stdout)
    return found


class TestVolatile:
    @pytest.mark.parametrize(
        ("image_format", "filesystem"),
        one_of(2, [("raw", ""), ("qcow2", ""), ("raw", "ext4"), ("qcow2", "ext4")]),
    )
    def test_an_empty_disk(self, bed: Testbed, image_format: str, filesystem: str) -> None:
        more = {"FS": filesystem} if filesystem else {}
        disk = bed.cloud.volatile_disk(16, FORMAT=image_format, DRIVER=image_format, **more)
        vm = start(bed, disk)
        host, path = bed.hosts[0], bed.disk_path(vm)
        assert info(host, path, image_format)["virtual-size"] == 16 * MB
        assert host.path(path).stat().st_mode & 0o777 == 0o660
        assert host.read(f"{DATASTORES}/102/.monitor") == b"onestor\n"
        copy = "/var/tmp/volatile.raw"
        host.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, copy])
        kind = host.run(["blkid", "-o", "value", "-s", "TYPE", copy], check=False).stdout.strip()
        assert kind == filesystem

    def test_swap(self, bed: Testbed) -> None:
        vm = start(bed, bed.cloud.volatile_disk(4, "swap"))
        argv = ["blkid", "-o", "value", "-s", "TYPE", bed.disk_path(vm)]
        assert bed.hosts[0].run(argv).stdout.strip() == "swap"

    def test_C4_without_holes(self, bed: Testbed) -> None:
        vm = start(bed, bed.cloud.volatile_disk(16, SPARSE="NO"))
        assert bed.hosts[0].path(bed.disk_path(vm)).stat().st_blocks * 512 >= 16 * MB

    def test_it_replaces_its_own_earlier_try_and_nothing_else(self, bed: Testbed) -> None:
        vm = start(bed, bed.cloud.volatile_disk(4))
        host, path = bed.hosts[0], bed.disk_path(vm)
        host.write(path, "of the guest", mode=0o660)
        bed.cloud.set_state(vm, objects.ACTIVE, objects.PROLOG_FAILURE)
        assert bed.oned.retry_prolog(vm).success  # the same placement: an empty disk again
        assert host.path(path).stat().st_size == 4 * MB
        host.write(path, "of the guest", mode=0o660)
        line = f"MKIMAGE onestor 4 raw host01:{path} {vm.id} 102"
        assert bed.oned.transfer_mad.run_line(line).success  # the VM runs: nobody's retry
        assert any("is not known: now in" in said for said in warnings(bed))

    def test_wrong_words(self, bed: Testbed) -> None:
        vm = bed.vm(bed.cloud.volatile_disk(4))
        bed.cloud.place(vm, "host01", bed.system)
        place = f"host01:{bed.disk_path(vm)}"
        for line, expected in (
            (f"MKIMAGE onestor x raw {place} {vm.id} 102", "the size is 'x'"),
            (f"MKIMAGE onestor 4 vmdk {place} {vm.id} 102", "not raw, qcow2 or swap"),
            (f"MKSWAP onestor 4 {place} {vm.id}", "got 3 words"),
            (f"MKSWAP onestor 4 host01:/etc/passwd {vm.id} 102", "not in the directory of VM"),
        ):
            reply = bed.oned.transfer_mad.run_line(line)
            assert not reply.success and expected in reply.error, line

    def test_C2_a_mkfs_that_fails(self, bed: Testbed) -> None:
        vm = bed.cloud.add_vm(disks=[bed.cloud.volatile_disk(16, FS="ext4")])
        with program_before(bed.hosts[0], "mkfs.ext4", "echo broken >&2; exit 1"):
            reply = bed.oned.instantiate(vm, "host01", bed.system)
        assert not reply.success and "format with ext4" in reply.error and "broken" in reply.error
        assert vm_files(bed, bed.hosts[0]) == {}

    def test_J1_an_unsupported_file_system(self, bed: Testbed) -> None:
        vm = bed.cloud.add_vm(disks=[bed.cloud.volatile_disk(16, FS="x;id")])
        reply = bed.oned.instantiate(vm, "host01", bed.system)
        assert not reply.success and "FS is 'x;id'" in reply.error


class TestContext:
    def extract(self, bed: Testbed, vm: Vm, name: str) -> bytes:
        path = f"{DATASTORES}/102/{vm.id}/disk.{vm.context['DISK_ID']}"
        bed.hosts[0].run(["sh", "-c", "rm -rf /var/tmp/iso; mkdir /var/tmp/iso"])
        argv = ["xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", "/var/tmp/iso"]
        bed.hosts[0].run(argv)
        bed.hosts[0].run(["chmod", "-R", "u+w", "/var/tmp/iso"])
        return bed.hosts[0].read(f"/var/tmp/iso/{name}")

    @pytest.mark.parametrize("missing", [(), ("genisoimage", "mkisofs"), ("xorriso",)])
    def test_C15_with_whichever_tool_is_there(self, bed: Testbed, missing: tuple[str, ...]) -> None:
        away = [name for name in missing if bed.frontend.exists(f"/usr/bin/{name}")]
        for name in away:
            argv = ["mv", f"/usr/bin/{name}", f"/usr/bin/{name}.away"]
            bed.frontend.run(argv, user="root")
        try:
            vm = start(bed, context={"TOKEN": "it's"})
        finally:
            for name in away:
                argv = ["mv", f"/usr/bin/{name}.away", f"/usr/bin/{name}"]
                bed.frontend.run(argv, user="root")
        assert b"TOKEN='it'\\''s'" in self.extract(bed, vm, "context.sh")
        path = f"{DATASTORES}/102/{vm.id}/disk.{vm.context['DISK_ID']}"
        assert bed.hosts[0].run(["blkid", "-o", "value", "-s", "LABEL", path]).stdout == "CONTEXT\n"

    def test_C15_without_any_both_are_named(self, bed: Testbed) -> None:
        bed.frontend.run(["mkdir", "-p", "/var/tmp/away"], user="root")
        names = "genisoimage mkisofs xorriso"
        bed.frontend.run(
            [
                "sh",
                "-c",
                f"cd /usr/bin; for n in {names}; do [ ! -e $n ] || mv $n /var/tmp/away; done",
            ],
            user="root",
        )
        try:
            vm = bed.cloud.add_vm(disks=[], context={"A": "B"})
            reply = bed.oned.instantiate(vm, "host01", bed.system)
        finally:
            bed.frontend.run(["sh", "-c", "mv /var/tmp/away/* /usr/bin"], user="root")
        assert not reply.success and "neither genisoimage, mkisofs nor xorriso" in reply.error

    def test_files_with_names_and_while_the_vm_runs(self, bed: Testbed) -> None:
        """attach_nic makes it anew under a VM that runs: whoever has it open reads on."""
        vm = start(bed, context={"A": "1"})
        path = f"{DATASTORES}/102/{vm.id}/disk.{vm.context['DISK_ID']}"
        old = bed.hosts[0].path(path).open("rb")
        before = old.read()
        one, two = f"{DATASTORES}/103/{'1' * 32}", "/var/tmp/two"
        for name, file in (("one", one), ("two", two)):
            bed.frontend.write(file, f"content of {name}")
        vm.context["FILES"] = two  # an administrator has put it there
        bed.cloud.save(vm)
        script = f"/var/lib/one/vms/{vm.id}/context.sh"
        bed.frontend.write(script, "A='2'\n")
        files = f"{one.replace('/one/', '/one//')}:'my file' {two}"
        line = f"CONTEXT onestor {script} {files} host01:{path} {vm.id} 102"
        reply = bed.oned.vmm.run_line(line)
        assert reply.success, reply.error
        assert self.extract(bed, vm, "my file") == b"content of one"
        assert self.extract(bed, vm, "two") == b"content of two"
        assert self.extract(bed, vm, "context.sh") == b"A='2'\n"
        old.seek(0)
        assert old.read() == before != bed.hosts[0].read(path)
        old.close()
        assert not warnings(bed)

    def test_files_that_cannot_be(self, bed: Testbed) -> None:
        vm = start(bed, context={"A": "1"})
        path = f"{DATASTORES}/102/{vm.id}/disk.{vm.context['DISK_ID']}"
        script, one = f"/var/lib/one/vms/{vm.id}/context.sh", f"{DATASTORES}/103/{'1' * 32}"
        bed.frontend.write(script, "A='2'\n")
        bed.frontend.write(one, "content of one")
        before = digest(bed.hosts[0], path)
        for files, expected in (
            ("/var/lib/one/datastores/103/nothing:'x'", "no such file"),
            ("/var/lib/one/datastores/103/one:'../up'", "is no name of a file"),
            ("/var/tmp/other/context.sh", "is called context.sh too"),
            ("../context.sh", "is no absolute path"),
            # A file of a file datastore whose owner has called it x' /var/lib/...:'y
            (f"{one}:'x' /var/lib/one/.one/one_auth:'y'", "no file of this VM's context"),
            (f"{one}:'x' /var/lib/one/.one/one_auth", "no file of this VM's context"),
            (f"{one}:'x' {DATASTORES}/101/{'1' * 32}:'y'", "no file of this VM's context"),
            (f"{one}:'x' {DATASTORES}/999/{'1' * 32}:'y'", "datastore 999"),
        ):
            line = f"CONTEXT onestor {script} {files} host01:{path} {vm.id} 102"
            reply = bed.oned.vmm.run_line(line)
            assert not reply.success and expected in reply.error, files
            assert digest(bed.hosts[0], path) == before


class TestResize:
    @pytest.mark.parametrize("source", [RAW, QCOW2])
    def test_it_grows_and_never_shrinks(self, bed: Testbed, source: str) -> None:
        vm = placed(bed, bed.image(source))
        life, path = Life(bed.oned), bed.disk_path(vm)
        image_format = vm.disks[0].attributes["FORMAT"]
        for wanted, found in ((96, 96), (96, 96), (70, 96)):
            assert life.resize(vm, vm.disks[0], wanted).success
            assert info(bed.hosts[0], path, image_format)["virtual-size"] == found * MB

    def test_C4_F12_without_holes(self, bed: Testbed) -> None:
        vm = placed(bed, bed.image(SMALL))
        vm.disks[0].attributes["SPARSE"] = "NO"
        bed.cloud.save(vm)
        assert Life(bed.oned).resize(vm, vm.disks[0], 20).success
        assert bed.hosts[0].path(bed.disk_path(vm)).stat().st_blocks * 512 >= 20 * MB

    def test_L4_trap21_the_hypervisor_resizes_a_disk_of_a_vm_that_runs(self, bed: Testbed) -> None:
        vm = placed(bed, bed.image(SMALL))
        bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
        before = digest(bed.hosts[0], bed.disk_path(vm))
        assert Life(bed.oned).resize(vm, vm.disks[0], 20).success
        assert digest(bed.hosts[0], bed.disk_path(vm)) == before

    def test_a_resize_that_fails_names_the_step(self, bed: Testbed) -> None:
        vm = placed(bed, bed.image(SMALL))
        before = digest(bed.hosts[0], bed.disk_path(vm))
        with program_before(bed.hosts[0], "qemu-img", "echo broken >&2; exit 1"):
            reply = Life(bed.oned).resize(vm, vm.disks[0], 20)
        assert not reply.success and "resize disk" in reply.error and "broken" in reply.error
        assert digest(bed.hosts[0], bed.disk_path(vm)) == before


def test_L5_delete_removes_what_it_names_and_can_be_repeated(bed: Testbed) -> None:
    """The id behind is the image datastore's for one disk and the system datastore's for others."""
    image = bed.cloud.image_disk(bed.image(SMALL))
    vm = bed.vm(image, bed.cloud.volatile_disk(1), bed.cloud.volatile_disk(1))
    bed.cloud.place(vm, "host01", bed.system)
    bed.cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    host, run = bed.hosts[0], bed.oned.transfer_mad.run_line
    place = f"{DATASTORES}/102/{vm.id}"
    for disk in range(3):
        host.write(f"{place}/disk.{disk}", "a disk", mode=0o660)
        host.write(f"{place}/disk.{disk}.snap/0", "its snapshot", mode=0o660)
    for disk, datastore in ((0, 101), (1, 102)):
        for _ in range(2):
            assert run(f"DELETE onestor host01:{place}/disk.{disk} {vm.id} {datastore}").success
        assert not host.exists(f"{place}/disk.{disk}")
        assert not host.exists(f"{place}/disk.{disk}.snap")
        assert host.exists(f"{place}/disk.{2}")
    for _ in range(2):
        assert run(f"DELETE onestor host01:{place} {vm.id} 102").success
    assert not host.exists(place)


def test_L7_a_disk_id_that_comes_back(bed: Testbed) -> None:
    """Nothing of a persistent disk that was detached has to do with the next of its number."""
    kept = bed.image(RAW, persistent=True)
    vm = start(bed, bed.cloud.volatile_disk(1), bed.cloud.image_disk(kept))
    bed.cloud.set_state(vm, objects.POWEROFF)
    host, path = bed.hosts[0], bed.disk_path(vm, 1)
    host.run(["mkdir", f"{path}.snap"])
    host.write(f"{path}.snap/0", "snapshot")
    assert bed.oned.detach_disk(vm, vm.disks[1]).success
    assert not host.exists(path) and not host.exists(f"{path}.snap")
    assert bed.frontend.read(f"{kept.source}.snap/0") == b"snapshot"
    image = bed.image(SMALL)
    assert bed.oned.attach_disk(vm, bed.cloud.image_disk(image)).success
    assert vm.disks[1].id == 1 and digest(host, path) == digest(bed.frontend, SMALL)
    assert not host.exists(f"{path}.snap") and not warnings(bed)
    before = digest(bed.frontend, kept.source)
    assert bed.oned.terminate(vm).success
    assert digest(bed.frontend, kept.source) == before


def test_L1_L2_every_datastore_we_use_is_marked_as_ours(bed: Testbed) -> None:
    """The stock probe for recovery snapshots acts on "ssh" alone, that for disks runs ours."""
    vm = start(bed, bed.cloud.volatile_disk(1))
    assert bed.hosts[0].read(f"{DATASTORES}/102/.monitor") == b"onestor\n"
    bed.cloud.set_state(vm, objects.POWEROFF)
    assert Life(bed.oned).migrate(vm, "host02").success
    assert bed.hosts[1].read(f"{DATASTORES}/102/.monitor") == b"onestor\n"


def test_L9_A21_the_names_of_opennebulas_own_cache(bed: Testbed) -> None:
    image = bed.image(QCOW2)
    host = bed.hosts[0]
    bed.images.template.update({"CACHE_ENABLE": "NO", "CACHE_PATH": "/x", "CACHE_COLOUR": "red"})
    bed.cloud.save(bed.images)
    start(bed, bed.cloud.image_disk(image))
    assert not host.exists(f"{DATASTORES}/101")
    (said,) = warnings(bed)
    assert "CACHE_COLOUR, CACHE_PATH of datastore 101: no effect here" in said
    for name in ("CACHE_ENABLE", "CACHE_PATH", "CACHE_COLOUR"):
        del bed.images.template[name]
    bed.images.template.update({"CACHE_UPSTREAMS": "host03", "CACHE_MAX_SIZE": "1"})
    bed.cloud.save(bed.images)
    start(bed, bed.cloud.image_disk(image))
    assert not host.exists(image.source)  # 1 MB is too little for it
    assert bed.hosts[2].exists(f"{DATASTORES}/101/.monitor")
    bed.images.template["CACHE_ENABLE"] = "maybe"
    bed.cloud.save(bed.images)
    vm = bed.cloud.add_vm(disks=[bed.cloud.image_disk(image)])
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success and "CACHE_ENABLE of datastore 101 is 'maybe'" in reply.error


def test_K14_each_side_has_programs_of_its_own(bed: Testbed) -> None:
    for node, name in ((bed.frontend, "genisoimage"), (bed.hosts[0], "qemu-img")):
        script = f'#!/bin/sh\necho "$0 $*" >> /var/tmp/used-{name}\nexec /usr/bin/{name} "$@"\n'
        node.write(f"/var/tmp/own/{name}", script, mode=0o755)
    bed.configure('FRONTEND_PATH="/var/tmp/own"\nHOST_PATH="/nothing:/var/tmp/own"\n')
    start(bed, bed.cloud.image_disk(bed.image(QCOW2)), context={"A": "B"})
    assert b"create" in bed.hosts[0].read("/var/tmp/used-qemu-img")
    assert b"CONTEXT" in bed.frontend.read("/var/tmp/used-genisoimage")
    bed.configure('HOST_PATH="relative"\n')
    vm = bed.cloud.add_vm(disks=[bed.cloud.volatile_disk(1)])
    reply = bed.oned.instantiate(vm, "host01", bed.system)
    assert not reply.success and "HOST_PATH" in reply.error


def test_D22_files_that_stay_on_the_host(bed: Testbed) -> None:
    """KEEP_ON_HOST: nothing crosses the front-end, and every action finds the files."""
    configure_system(bed, KEEP_ON_HOST="YES")
    kept = bed.image(RAW, persistent=True)
    vm = start(bed, bed.cloud.image_disk(bed.image(QCOW2)), bed.cloud.image_disk(kept))
    bed.cloud.set_state(vm, objects.POWEROFF)
    life, one, two = Life(bed.oned), *bed.hosts[:2]
    place = f"{DATASTORES}/102/{vm.id}"
    received = bed.frontend.bytes_received()
    assert life.undeploy(vm).success
    assert bed.frontend.bytes_received() - received < MB
    assert one.exists(f"{place}/disk.0") and not bed.frontend.exists(f"{place}/disk.0")

    assert life.resize(vm, vm.disks[0], 96).success
    assert info(one, f"{place}/disk.0", "qcow2")["virtual-size"] == 96 * MB
    saved = life.save_as(vm, vm.disks[0])
    assert saved.state == READY, saved.template

    assert life.resume(vm, "host02").success
    assert two.exists(f"{place}/disk.0") and not one.exists(place)
    assert not bed.frontend.exists(place)

    bed.cloud.set_state(vm, objects.POWEROFF)
    assert life.undeploy(vm).success
    assert life.resume(vm, "host02").success  # where it is: nothing moves
    assert two.exists(f"{place}/disk.0")

    bed.cloud.set_state(vm, objects.POWEROFF)
    two.run(["qemu-io", "-f", "raw", "-c", "write -P 5 1M 64k", f"{place}/disk.1"])
    now = digest(two, f"{place}/disk.1")
    assert life.undeploy(vm).success
    vm.history[-1].hostname = "fe"  # oned names the front-end in the epilog
    bed.cloud.save(vm)
    assert bed.oned.terminate(vm).success
    assert digest(bed.frontend, kept.source) == now
    assert not two.exists(place) and not bed.frontend.exists(place)


def test_D22_a_note_that_was_tampered_with_leads_nowhere_else(bed: Testbed) -> None:
    configure_system(bed, KEEP_ON_HOST="YES")
    vm = placed(bed, bed.image(SMALL))
    life, place = Life(bed.oned), f"{DATASTORES}/102/{vm.id}"
    assert life.undeploy(vm).success
    note = f"{place}/.onestor-kept"
    for text in ('{"host": "host01", "path": "/etc"}', '{"host": "-x", "path": "/d/102/0"}', "[]"):
        bed.frontend.write(note, text)
        assert not bed.oned.transfer_mad.run_line(f"DELETE onestor fe:{place} {vm.id} 102").success
    assert bed.hosts[0].exists(f"{place}/disk.0")


PASS = onestor_argv("recovery", "run")


class TestMarkers:
    """What tells a host's probe whose a datastore is, without any VM there (contract 4.1)."""

    @pytest.fixture(autouse=True)
    def nothing_is_noted(self, bed: Testbed) -> Iterator[None]:
        bed.frontend.run(["sh", "-c", "rm -rf ~/.onestor/markers"])
        driver, template = bed.system.tm_mad, dict(bed.system.template)
        yield
        bed.system.tm_mad, bed.system.template = driver, template
        bed.cloud.save(bed.system)

    def marker(self, host: Node, datastore: int) -> bytes | None:
        path = f"{DATASTORES}/{datastore}/.monitor"
        return host.read(path) if host.exists(path) else None

    def look(self, bed: Testbed) -> None:
        bed.frontend.run(PASS, env=CALL_ENVIRONMENT)

    @pytest.mark.parametrize(
        ("driver", "shared", "content"), [("ssh", "NO", b"ssh\n"), ("qcow2", "YES", None)]
    )
    def test_I3_I4_hosts_without_vms_have_directory_and_marker_of_each_driver(
        self, bed: Testbed, driver: str, shared: str, content: bytes | None
    ) -> None:
        """The next look finds another datastore, and the first one with another driver."""
        self.look(bed)
        assert [self.marker(host, 102) for host in bed.hosts] == [b"onestor\n"] * 3
        other = bed.cloud.add_system_datastore("another")
        bed.system.tm_mad = driver
        bed.system.template.update(TM_MAD=driver, SHARED=shared)
        bed.cloud.save(bed.system)
        self.look(bed)
        assert [self.marker(host, other.id) for host in bed.hosts] == [b"onestor\n"] * 3
        assert [self.marker(host, 102) for host in bed.hosts] == [content] * 3
        assert self.marker(bed.hosts[0], 101) is None  # of images: a replica's cache, if any
        bed.cloud.delete(other)

    def test_I3_a_host_that_is_down_gets_it_later_and_stops_nobody(self, bed: Testbed) -> None:
        bed.configure('CONNECT_TIMEOUT="2"\n')
        bed.hosts[1].cut()
        self.look(bed)
        assert self.marker(bed.hosts[0], 102) and not self.marker(bed.hosts[1], 102)
        bed.hosts[1].heal()
        home = bed.frontend.run(["sh", "-c", "ls ~/.onestor/markers"]).stdout.split()
        assert "host02.json" in home
        note = "~/.onestor/markers/host02.json"
        script = f'sed -i \'s/"at": [0-9.]*/"at": 1/\' {note}'  # as if it were long ago
        bed.frontend.run(["sh", "-c", script])
        self.look(bed)
        assert self.marker(bed.hosts[1], 102)


def test_I12_monitoring_waits_for_no_work(bed: Testbed) -> None:
    """A host fills its cache, for as long as that takes; whatever monitors is done before."""
    vm = start(bed, bed.cloud.image_disk(bed.image(SMALL)))
    host, image = bed.hosts[0], bed.image(BIG)
    other = bed.vm(image)
    host.limit_rate(10)
    bed.cloud.place(other, "host01", bed.system)
    bed.cloud.set_state(other, objects.ACTIVE, objects.PROLOG)
    clone = bed.oned.transfer_mad.start_line(
        f"CLONE onestor fe:{image.source} host01:{bed.disk_path(other)} {other.id} 101"
    )

    def is_filling() -> bool:
        return any(name.endswith(".part") for name in bed.files(host))

    wait_until(is_filling, "the fill has begun")
    probe = ["/usr/bin/python3", "/var/tmp/one/tm/onestor/monitor_ds", f"{DATASTORES}/102"]
    assert f"ID = {vm.id}," in host.run(probe).stdout
    reply = bed.oned.monitor_datastore(bed.images)
    assert reply is not None and reply.success
    assert is_filling()
    host.unlimit_rate()
    done = clone.wait()
    assert done.success, done.error


def test_K17_paths_with_blanks_are_refused_before_anything_happens(bed: Testbed) -> None:
    """oned splits its lines at blanks, so such a path cannot even arrive whole."""
    argv = [f"{REMOTES}/tm/onestor/mv", "host01:/d s/102/7", "host02:/d s/102/7", "7", "102"]
    done = bed.frontend.run(argv, check=False)
    assert done.returncode != 0 and done.stderr.count("\n") == 1
