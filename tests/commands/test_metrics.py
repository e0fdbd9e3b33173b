"""onestor metrics, and the line that each action leaves in the log."""

from __future__ import annotations

import re

from tests.commands.conftest import Desk
from tests.drivers.conftest import BIG, MEDIUM_QCOW2


def figures(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_what_actions_count(desk: Desk) -> None:
    image = desk.bed.image(MEDIUM_QCOW2)
    for _ in range(2):
        desk.started(image)
    text = desk.run("metrics")
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
    vm = desk.started(desk.bed.image(MEDIUM_QCOW2))
    vm.disks[0].attributes["RECOVERY_SNAPSHOT_FREQ"] = "60"
    desk.bed.cloud.save(vm)
    found = figures(desk.run("metrics"))
    assert found[f'onestor_recovery_missing{{disk="disk.0",vm="{vm.id}"}}'] == 1


def test_a_file_for_the_collector(desk: Desk) -> None:
    desk.started(desk.bed.image(MEDIUM_QCOW2))
    assert desk.run("metrics", "--output", "/var/tmp/onestor.prom") == ""
    text = desk.bed.frontend.read("/var/tmp/onestor.prom").decode()
    assert "onestor_actions_total" in text and text.endswith("\n")
    assert desk.bed.frontend.path("/var/tmp/onestor.prom").stat().st_mode & 0o777 == 0o644
    desk.run("metrics", "--output", "/nosuch/onestor.prom", status=1)
    assert "/nosuch" in desk.complaints


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
