"""The image datastore over real ssh: bridge hosts, sources on other machines, clones between."""

from __future__ import annotations

import re

import pytest

from onestor_lib.agent import crashpoints
from tests.cluster import Node
from tests.drivers.conftest import (
    QCOW2,
    RAW,
    SMALL,
    bridged,
    clone,
    digest,
    entry_of,
    same_content,
    warnings,
)
from tests.oned import objects
from tests.oned.objects import Datastore, Image
from tests.sampling import one_of
from tests.testbed import DATASTORES, Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

VERSIONS = ("6.4.0", "6.6.3", "6.10.0", "7.4.1")


@pytest.fixture
def on_bridge(bed: Testbed) -> Node:
    """The image datastore is on host03; another bridge host, named first, does not answer."""
    bed.images.template["BRIDGE_LIST"] = "nowhere host03"
    bed.cloud.save(bed.images)
    return bed.hosts[2]


@pytest.fixture
def second(bed: Testbed) -> Datastore:
    """Another image datastore, on host02."""
    if 105 not in bed.cloud.datastores:
        bed.cloud.add_image_datastore("second", id=105)
    datastore = bed.cloud.datastores[105]
    datastore.template["BRIDGE_LIST"] = "host02"
    datastore.images.clear()
    bed.cloud.save(datastore)
    return datastore


def on_the_bridge(bed: Testbed, bridge: Node, path: str) -> Image:
    """An image that is there as if it had been imported over the bridge."""
    hosts = str(bed.images.template.pop("BRIDGE_LIST")).split()
    image = bed.image(path)
    bridged(bed, image, bridge, *hosts)
    return image


def names(bed: Testbed, node: Node, datastore: int = 101) -> list[str]:
    return sorted(name for name in bed.files(node) if name.startswith(f"{datastore}/"))


def expected(image: Image, datastore: int = 101) -> list[str]:
    name = entry_of(image).rpartition("/")[2]
    return [f"{datastore}/.{name}.manifest", f"{datastore}/{name}"]


@pytest.mark.parametrize("sparse", one_of(2, ["YES", "NO"]))
def test_H17_H20_an_import_over_a_bridge(bed: Testbed, on_bridge: Node, sparse: str) -> None:
    bed.images.template["SPARSE"] = sparse
    image = bed.import_image(RAW)
    assert image.state == objects.READY and image.format == "raw"
    assert digest(on_bridge, entry_of(image)) == digest(bed.frontend, RAW)
    assert bed.files(bed.frontend) == {}
    assert names(bed, on_bridge) == expected(image)
    facts = on_bridge.path(entry_of(image)).stat()
    assert (facts.st_blocks * 512 >= facts.st_size) is (sparse == "NO")
    assert any("trying the next one" in line for line in warnings(bed))
    assert bed.images.total_mb > 0, "monitored there"

    vm = clone(bed, image, bed.hosts[0])
    assert digest(bed.hosts[0], bed.disk_path(vm)) == digest(bed.frontend, RAW)
    assert bed.oned.terminate(vm).success
    assert bed.oned.delete_image(image).success
    assert names(bed, on_bridge) == []


def test_H19_H27_formats_are_found_and_converted_on_the_bridge(
    bed: Testbed, on_bridge: Node
) -> None:
    bed.images.template["DRIVER"] = "qcow2"
    image = bed.import_image(RAW)
    assert image.format == "qcow2"
    assert same_content(bed, on_bridge, entry_of(image), "qcow2", RAW)


def test_H20_no_bridge_answers(bed: Testbed) -> None:
    bed.images.template["BRIDGE_LIST"] = "nowhere neither"
    image = bed.oned.create_image(SMALL, bed.images)
    error = str(image.template["ERROR"])
    assert "nowhere" in error and "neither" in error
    assert bed.files(bed.frontend) == {}


def test_H3_H21_STAGING_DIR_on_a_bridge(bed: Testbed, on_bridge: Node) -> None:
    bed.images.template["STAGING_DIR"] = "/var/tmp"
    image = bed.import_image(QCOW2)
    assert digest(on_bridge, entry_of(image)) == digest(bed.frontend, QCOW2)
    assert not [name for name in bed.files(on_bridge, "/var/tmp") if ".tmp" in name]


@pytest.mark.parametrize("form", one_of(2, ["ssh://host02:{}", "ssh://host02{}"]))
def test_a_source_on_another_machine(bed: Testbed, form: str) -> None:
    bed.hosts[1].write("/var/tmp/image", bed.frontend.read(QCOW2))
    image = bed.import_image(form.format("/var/tmp/image"))
    assert (image.format, image.size) == ("qcow2", 16)
    assert digest(bed.frontend, entry_of(image)) == digest(bed.frontend, QCOW2)


def test_J8_the_rules_for_paths_count_on_other_machines(bed: Testbed) -> None:
    for path in ("ssh://host02:/etc/passwd", "ssh://host02:/etc/nothing"):
        with pytest.raises(Exception, match="/ is in RESTRICTED_DIRS"):
            bed.oned.create_image(path, bed.images)


def test_a_source_on_another_machine_to_a_bridge(bed: Testbed, on_bridge: Node) -> None:
    bed.hosts[1].write("/var/tmp/image", bed.frontend.read(RAW))
    image = bed.import_image("ssh://host02:/var/tmp/image")
    assert digest(on_bridge, entry_of(image)) == digest(bed.frontend, RAW)
    assert bed.files(bed.frontend) == {}


@pytest.mark.parametrize("version", one_of(2, VERSIONS))
def test_clone_of_an_image(bed: Testbed, version: str) -> None:
    """Contract section 1.3, traps 2 and 3: what the answer of clone is taken for."""
    bed.use_version(version)
    image = bed.image(QCOW2)
    copy = bed.oned.clone_image(image)
    assert copy.state == objects.READY, copy.template
    assert (copy.format, re.fullmatch(r"[-a-f0-9]+", copy.source.rpartition("/")[2])) != ("", None)
    assert copy.source != image.source
    assert digest(bed.frontend, entry_of(copy)) == digest(bed.frontend, QCOW2)


@pytest.mark.parametrize("version", ["6.4.0", "6.10.0"])
def test_H15_clone_into_a_datastore_with_a_DRIVER(bed: Testbed, version: str) -> None:
    """Before 6.6 oned would not get to know the new format: nothing is converted then."""
    bed.use_version(version)
    image = bed.image(RAW)
    bed.images.template["DRIVER"] = "qcow2"
    copy = bed.oned.clone_image(image)
    assert copy.format == ("raw" if version == "6.4.0" else "qcow2")
    assert same_content(bed, bed.frontend, entry_of(copy), copy.format, RAW)


@pytest.mark.parametrize("version", one_of(2, ["6.10.0", "7.4.1"]))
def test_H18_clone_from_bridge_to_bridge(
    bed: Testbed, on_bridge: Node, second: Datastore, version: str
) -> None:
    bed.use_version(version)
    image = on_the_bridge(bed, on_bridge, RAW)
    copy = bed.oned.clone_image(image, second)
    assert copy.state == objects.READY, copy.template
    assert digest(bed.hosts[1], entry_of(copy)) == digest(bed.frontend, RAW)
    assert bed.hosts[1].path(entry_of(copy)).stat().st_blocks * 512 < 8 << 20, "holes are kept"
    assert names(bed, bed.hosts[1], 105) == expected(copy, 105)
    assert bed.files(bed.frontend) == {}, "nothing passes the front-end"


def test_H18_clone_between_bridge_and_front_end(
    bed: Testbed, on_bridge: Node, second: Datastore
) -> None:
    image = on_the_bridge(bed, on_bridge, RAW)
    del second.template["BRIDGE_LIST"]
    bed.cloud.save(second)
    here = bed.oned.clone_image(image, second)
    assert digest(bed.frontend, entry_of(here)) == digest(bed.frontend, RAW)
    back = bed.oned.clone_image(here, bed.images)
    assert digest(on_bridge, entry_of(back)) == digest(bed.frontend, RAW)


def test_H5_an_empty_image_on_a_bridge(bed: Testbed, on_bridge: Node) -> None:
    image = bed.oned.create_datablock(64, bed.images, "qcow2", "ext4")
    assert image.state == objects.READY, image.template
    on_bridge.run(["qemu-img", "convert", "-O", "raw", entry_of(image), "/var/tmp/plain"])
    said = on_bridge.run(["blkid", "-p", "-o", "value", "-s", "TYPE", "/var/tmp/plain"]).stdout
    assert said.strip() == "ext4"


@pytest.mark.parametrize("bridge", one_of(2, [False, True]))
def test_A12_after_a_revert_and_a_flattening_clones_have_the_new_content(
    bed: Testbed, bridge: bool
) -> None:
    image, where = bed.image(SMALL), bed.frontend
    if bridge:
        where = bridged(bed, image, bed.hosts[2])
    clone(bed, image, bed.hosts[0])  # now it is cached
    for number in (0, 123):
        where.write(f"{entry_of(image)}.snap/{number}", f"{number}" * (1 << 20), mode=0o660)
    for action, number in (("snap_revert", 0), ("snap_delete", 0), ("snap_flatten", 123)):
        assert bed.oned.snapshot_action(action, image, number).success
    assert where.read(entry_of(image)) == b"123" * (1 << 20)
    vm = clone(bed, image, bed.hosts[0])
    assert bed.hosts[0].read(bed.disk_path(vm)) == b"123" * (1 << 20)
    assert f"{DATASTORES}/101" in entry_of(image) and not where.exists(f"{entry_of(image)}.snap")


def test_H26_export_on_a_bridge(bed: Testbed, on_bridge: Node) -> None:
    image = on_the_bridge(bed, on_bridge, QCOW2)
    said = bed.oned.image_action("export", image).result.stdout
    assert f"ssh://host03:{entry_of(image)}" in said
    md5 = on_bridge.run(["md5sum", entry_of(image)]).stdout.split()[0]
    assert md5 in said and "<![CDATA[16]]>" in said


def test_removing_an_image_empties_the_replicas(bed: Testbed) -> None:
    bed.system.template["REPLICA_HOST"] = "host02"
    bed.cloud.save(bed.system)
    image = bed.image(SMALL)
    clone(bed, image, bed.hosts[0])
    assert bed.hosts[1].exists(entry_of(image))
    assert bed.oned.delete_image(image).success
    assert not bed.hosts[1].exists(entry_of(image))


def test_A3_K2_a_sender_that_dies_in_the_middle(bed: Testbed, on_bridge: Node) -> None:
    bed.environment(**{crashpoints.VARIABLE: "intake.half"})
    image = bed.oned.create_image(RAW, bed.images)
    bed.environment()
    assert bed.crashed_at() == ["intake.half"]
    assert image.state == objects.IMAGE_ERROR
    assert "SIGKILL" in str(image.template["ERROR"])
    wait_until(lambda: names(bed, on_bridge) == [], "no file is left")
