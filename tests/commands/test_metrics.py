"""onestor metrics, and the line that each action leaves in the log."""

from __future__ import annotations

import re

from tests.commands.conftest import Desk
from tests.drivers.conftest import BIG, MEDIUM_QCOW2, configure_system
from tests.oned import objects
from tests.oned.objects import Vm


def figures(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def asking(desk: Desk) -> Vm:
    """A VM that runs, as oned knows it; its disk asks for a recovery copy each minute."""
    cloud = desk.bed.cloud
    disk = cloud.image_disk(desk.bed.image(MEDIUM_QCOW2), RECOVERY_SNAPSHOT_FREQ="60")
    vm = desk.bed.vm(disk)
    cloud.place(vm, "host01", desk.bed.system)
    cloud.set_state(vm, objects.ACTIVE, objects.RUNNING)
    return vm


def test_what_actions_count(desk: Desk) -> None:
    """In a file for the collector, and in JSON."""
    image, file = desk.bed.image(MEDIUM_QCOW2), "/var/tmp/onestor.prom"
    for _ in range(2):
        desk.started(image)
    assert desk.run("metrics", "--output", file) == ""
    text = desk.bed.frontend.read(file).decode()
    assert text.endswith("\n") and desk.bed.frontend.path(file).stat().st_mode & 0o777 == 0o644
    found = figures(text)
    assert found['onestor_actions_total{action="clone",outcome="ok"}'] == 2
    for result in ("hit", "miss"):
        assert found[f'onestor_cache_requests_total{{host="host01",result="{result}"}}'] == 1
    assert found['onestor_cache_fill_seconds_total{host="host01"}'] > 0
    (sent,) = [value for key, value in found.items() if "sent_bytes" in key and "host01" in key]
    assert 2 << 20 < sent < 4 << 20
    assert found['onestor_saved_bytes_total{host="host01"}'] >= 2 << 20
    (again,) = desk.rows("metrics")
    assert again['onestor_actions_total{action="clone",outcome="ok"}'] == 2
    for name in {key.partition("{")[0] for key in found}:
        assert f"# TYPE {name} " in text and f"# HELP {name} " in text
    desk.run("metrics", "--output", "/nosuch/onestor.prom", status=1)
    assert "/nosuch" in desk.complaints


def test_evictions_and_failures(desk: Desk) -> None:
    desk.bed.configure('HOST_CACHE_MAX_SIZE_MB="20"\nCONNECT_TIMEOUT="2"\n')
    for _ in range(2):
        desk.started(desk.bed.image(BIG))
    vm = desk.bed.vm(desk.bed.image(BIG))
    desk.node("host02").cut()
    assert not desk.bed.oned.instantiate(vm, "host02", desk.bed.system).success
    desk.node("host02").heal()
    found = figures(desk.run("metrics"))
    assert found['onestor_evictions_total{host="host01",reason="to make room"}'] == 1
    assert found['onestor_actions_total{action="clone",outcome="failed"}'] == 1


def test_a_disk_without_any_recovery_copy(desk: Desk) -> None:
    """It has no age, so no alert about its lag would ever come."""
    vm = asking(desk)
    found = figures(desk.run("metrics"))
    assert found[f'onestor_recovery_missing{{disk="disk.0",vm="{vm.id}"}}'] == 1


def test_the_age_of_recovery_copies(desk: Desk) -> None:
    """One that no disk asks for any more is late for nobody."""
    configure_system(desk.bed, REPLICA_HOST="host04")
    vm = asking(desk)
    desk.keep_copy("host04", vm.id, age=1000)
    desk.keep_copy("host04", 99, age=2000)
    found = figures(desk.run("metrics"))
    own, other = (f'{{disk="disk.0",vm="{number}"}}' for number in (vm.id, 99))
    age = found[f"onestor_recovery_age_seconds{own}"]
    assert 1000 <= age < 1900
    assert abs(age - 60 - found[f"onestor_recovery_lag_seconds{own}"]) < 0.01
    assert found[f"onestor_recovery_missing{own}"] == 0
    assert found[f"onestor_recovery_age_seconds{other}"] >= 2000
    assert sum(other in name for name in found) == 1


def test_a_replica_that_is_down_may_have_the_copy(desk: Desk) -> None:
    """No disk is said to be without one then."""
    configure_system(desk.bed, REPLICA_HOST="host03 host04")
    desk.bed.configure('CONNECT_TIMEOUT="1"\n')
    vm = asking(desk)
    desk.keep_copy("host04", vm.id, age=1000)
    desk.node("host04").cut()
    assert "recovery" not in desk.run("metrics")


def test_what_was_counted_is_told_without_oned(desk: Desk) -> None:
    """Nothing is said of copies then, and the exit status tells of it."""
    vm = desk.started(desk.bed.image(MEDIUM_QCOW2))
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "60"
    desk.bed.cloud.save(vm)
    url = "http://127.0.0.1:1/RPC2"
    found = figures(desk.run("metrics", status=1, ONE_XMLRPC=url))
    assert found['onestor_actions_total{action="clone",outcome="ok"}'] == 1
    assert not any("recovery" in name for name in found)
    assert "ask oned" in desk.complaints and url in desk.complaints


def test_every_action_ends_with_a_summary(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    vm = desk.started(image)
    assert desk.bed.oned.terminate(vm).success
    lines = [line for line in desk.bed.log().splitlines() if " action=" in line]
    (clone,) = [line for line in lines if "action=clone" in line]
    assert re.search(
        rf"action=clone vm={vm.id} disk=disk.0 image={image.id} host=host01 bytes=\d+ cache=miss "
        r"seconds=\d+\.\d+ outcome=ok$",
        clone,
    )
    assert sum("action=delete" in line for line in lines) == 2
