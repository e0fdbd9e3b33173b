"""The mads running real scripts: command lines, environment, pipes, deadlines."""

from __future__ import annotations

import base64
import signal
import time
from pathlib import Path

import pytest

from tests.oned.mads import PATH, VMM_EXECRC, DatastoreMad, TransferMad, VmmTransfer
from tests.oned.runner import Cancelled, LocalRunner
from tests.oned_tests.conftest import Machine, lifecycle

IMAGE_DS = "<DS_DRIVER_ACTION_DATA><DATASTORE><TYPE>0</TYPE></DATASTORE></DS_DRIVER_ACTION_DATA>"
SYSTEM_DS = (
    "<DS_DRIVER_ACTION_DATA><DATASTORE><TM_MAD><![CDATA[onestor]]></TM_MAD><TYPE>1</TYPE>"
    "</DATASTORE></DS_DRIVER_ACTION_DATA>"
)
CLONE = "CLONE onestor fe:/images/a host02:/var/lib/one//datastores/102/10/disk.0 10 101"


def datastore_mad(
    machine: Machine, version: str = "6.10.0.1", timeout: float | None = None
) -> DatastoreMad:
    return DatastoreMad(
        LocalRunner(), version, str(machine.remotes), str(machine.home), timeout=timeout
    )


def transfer_mad(machine: Machine, version: str = "6.10.0.1") -> TransferMad:
    return TransferMad(LocalRunner(), version, str(machine.remotes), str(machine.home))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)


@pytest.mark.parametrize("version", ["5.12.0.5", "6.0.0.3", "6.6.0"])
def test_message_in_argv_up_to_6_6(machine: Machine, version: str) -> None:
    machine.recorder("datastore/onestor/cp", "/path qcow2\n")
    answer = datastore_mad(machine, version).call("CP", "onestor", IMAGE_DS, 19)
    assert answer.success
    assert answer.info == "/path qcow2"
    (call,) = machine.calls()
    assert call["argv"] == [base64.b64encode(IMAGE_DS.encode()).decode(), "19"]
    assert call["stdin"] == ""


@pytest.mark.parametrize("version", ["6.8.0", "6.10.0.1", "7.4.1"])
def test_message_on_stdin_from_6_8(machine: Machine, version: str) -> None:
    machine.recorder("datastore/onestor/cp", "/path qcow2\n")
    assert datastore_mad(machine, version).call("cp", "onestor", IMAGE_DS, 19).success
    (call,) = machine.calls()
    assert call["argv"] == ["19"]
    assert call["stdin"] == base64.b64encode(IMAGE_DS.encode()).decode()


def test_surroundings_of_a_datastore_script(machine: Machine) -> None:
    machine.recorder("datastore/onestor/rm")
    datastore_mad(machine).call("rm", "onestor", IMAGE_DS, 19)
    (call,) = machine.calls()
    environment = {name: call["env"][name] for name in call["env"] if name != "LC_CTYPE"}
    assert environment == {
        "PATH": PATH,
        "SSH_AUTH_SOCK": "/var/run/one/ssh-agent.sock",
        "HOME": str(machine.home),
        "USER": "oneadmin",
        "PRIORITY": "19",
    }
    assert PATH.startswith("/usr/lib/one/sh/override:")
    assert call["cwd"] == str(machine.home)
    assert call["nice"] == 19
    assert call["leads"]


def test_each_mad_has_its_own_variables(machine: Machine) -> None:
    machine.recorder("tm/onestor/clone")
    runner, place = LocalRunner(), (str(machine.remotes), str(machine.home))
    TransferMad(runner, "6.10.0.1", *place, tmrc={"FROM_TMRC": "1"}).run_line(CLONE)
    VmmTransfer(runner, "6.10.0.1", *place).run_line(CLONE)
    first, second = (call["env"] for call in machine.calls())
    assert first["FROM_TMRC"] == "1"
    assert "LIVE_DISK_SNAPSHOTS" not in first
    assert "FROM_TMRC" not in second
    assert second["LIVE_DISK_SNAPSHOTS"] == VMM_EXECRC["LIVE_DISK_SNAPSHOTS"]


def test_monitor_of_a_system_datastore_is_the_transfer_managers(machine: Machine) -> None:
    machine.recorder("tm/onestor/monitor", "USED_MB=1\nTOTAL_MB=3\nFREE_MB=2\n")
    answer = datastore_mad(machine).call("MONITOR", "-", SYSTEM_DS, 102)
    assert base64.b64decode(answer.info) == b"USED_MB=1\nTOTAL_MB=3\nFREE_MB=2\n"
    assert machine.calls()[0]["kind"] == "tm"


def test_drivers_not_listed_are_refused(machine: Machine) -> None:
    mad = DatastoreMad(LocalRunner(), "6.10.0.1", types=["fs"], system_types=["ssh"])
    assert mad.call("CP", "onestor", IMAGE_DS, 1).error == (
        "Datastore driver 'onestor' not available"
    )
    assert mad.call("MONITOR", "-", SYSTEM_DS, 1).error == (
        "System datastore driver 'onestor' not available"
    )


def test_a_message_of_1_mib(machine: Machine) -> None:
    machine.recorder("datastore/onestor/cp", "/path qcow2\n")
    message = IMAGE_DS.replace("</DS", f"<PADDING>{'x' * 2**20}</PADDING></DS", 1)
    answer = datastore_mad(machine).call("cp", "onestor", message, 19)
    assert answer.info == "/path qcow2"
    assert base64.b64decode(machine.calls()[0]["stdin"]).decode() == message


def test_a_message_of_1_mib_that_nobody_reads(machine: Machine) -> None:
    machine.script("datastore/onestor/cp", "exec <&-; head -c 300000 /dev/zero >&2; echo /a raw")
    message = IMAGE_DS.replace("</DS", f"<PADDING>{'x' * 2**20}</PADDING></DS", 1)
    assert datastore_mad(machine).call("cp", "onestor", message, 19).info == "/a raw"


def test_a_message_too_long_for_argv(machine: Machine) -> None:
    machine.recorder("datastore/onestor/cp")
    message = IMAGE_DS.replace("</DS", f"<PADDING>{'x' * 2**20}</PADDING></DS", 1)
    answer = datastore_mad(machine, "6.6.0").call("cp", "onestor", message, 19)
    assert answer.error == "Internal error Argument list too long"


def test_exit_by_signal_is_255(machine: Machine) -> None:
    machine.script("datastore/onestor/cp", "kill -9 $$")
    answer = datastore_mad(machine).call("cp", "onestor", IMAGE_DS, 19)
    assert not answer.success
    assert answer.result.code == 255
    assert answer.log[0].text.startswith("Command execution failed (exit code: 255): ")


def test_background_child_that_keeps_stdout(machine: Machine) -> None:
    """The result is lost, and the mad waits no longer than 0.1 s (contract 1.5)."""
    machine.script("datastore/onestor/cp", "echo /path qcow2; sleep 3 2>&- & exit 0")
    begin = time.monotonic()
    answer = datastore_mad(machine).call("cp", "onestor", IMAGE_DS, 19)
    assert time.monotonic() - begin < 2
    assert answer.success
    assert answer.info == "-"


def test_background_child_that_keeps_stderr(machine: Machine) -> None:
    machine.script("datastore/onestor/cp", "echo no room >&2; sleep 3 >&- & exit 1")
    answer = datastore_mad(machine).call("cp", "onestor", IMAGE_DS, 19)
    assert not answer.success
    assert answer.error == ""


def test_timeout_from_7_0(machine: Machine) -> None:
    script = machine.script(
        "datastore/onestor/cp", f"trap 'touch {machine.root}/term; exit 1' TERM; sleep 30 & wait"
    )
    answer = datastore_mad(machine, "7.0.1", timeout=0.5).call("cp", "onestor", IMAGE_DS, 19)
    assert answer.result.code == 255
    assert answer.error == f"Timeout executing {script} 19"
    wait_for(machine.root / "term")


def test_timeout_of_a_script_that_closed_its_pipes(machine: Machine) -> None:
    machine.script("datastore/onestor/cp", "exec >&- 2>&-; sleep 30")
    begin = time.monotonic()
    answer = datastore_mad(machine, "7.4.1", timeout=0.3).call("cp", "onestor", IMAGE_DS, 19)
    assert answer.result.code == 255
    assert time.monotonic() - begin < 5


def test_no_timeout_before_7_0(machine: Machine) -> None:
    machine.script("datastore/onestor/cp", "sleep 0.6; echo /path qcow2")
    mad = datastore_mad(machine, "6.10.0.1", timeout=0.2)
    assert mad.call("cp", "onestor", IMAGE_DS, 19).info == "/path qcow2"


def test_words_of_a_line_are_the_argv(machine: Machine) -> None:
    machine.recorder("tm/onestor/context")
    line = "CONTEXT  onestor /c.sh /f:'a name' x;y $HOME fe:/d/disk.5 10 102"
    answer = transfer_mad(machine).run_line(line)
    assert answer.success
    assert answer.info == "-"
    (call,) = machine.calls()
    assert call["argv"] == line.split()[2:]
    assert call["stdin"] == ""


@pytest.mark.parametrize("version", ["6.10", "7.4"])
def test_every_recorded_transfer_arrives_as_recorded(machine: Machine, version: str) -> None:
    recorded = [call for call in lifecycle(version) if call["kind"] == "tm"]
    mad = VmmTransfer(LocalRunner(), f"{version}.1", str(machine.remotes), str(machine.home))
    seen = set()
    for call in recorded:
        action = call["action"]
        if action in seen:
            continue
        seen.add(action)
        machine.recorder(f"tm/onestor/{action}")
        line = " ".join([action.upper(), "onestor", *call["argv"]])
        assert mad.run_line(line, call.get("stdin_xml") or "").success
        got = machine.calls()[-1]
        assert got["argv"] == call["argv"]
        expected = base64.b64encode((call.get("stdin_xml") or "").encode()).decode()
        assert got["stdin"] == expected
        assert len(got["stdin"]) == call["stdin_bytes"]
    assert {"clone", "ln", "mv", "mvds", "cpds", "premigrate", "postmigrate"} <= seen


@pytest.mark.parametrize("version", ["6.10", "7.4"])
def test_every_recorded_datastore_call_arrives_as_recorded(machine: Machine, version: str) -> None:
    mad = datastore_mad(machine, f"{version}.1")
    for call in lifecycle(version):
        if call["kind"] == "datastore":
            machine.recorder(f"datastore/onestor/{call['action']}", call["stdout"])
            number = int(call["argv"][0])
            answer = mad.call(call["action"], "onestor", call["stdin_xml"], number)
            assert answer.success
            got = machine.calls()[-1]
            assert got["argv"] == call["argv"]
            assert base64.b64decode(got["stdin"]).decode() == call["stdin_xml"]


def test_raw_vm_for_backups(machine: Machine) -> None:
    machine.recorder("tm/onestor/prebackup_live")
    mad = VmmTransfer(LocalRunner(), "6.10.0.1", str(machine.remotes), str(machine.home))
    mad.run_line("PREBACKUP_LIVE onestor host02:/d/10 0:1 uuid - 10 102", "<VM>ä</VM>")
    assert machine.calls()[0]["stdin"] == "<VM>ä</VM>"


def test_suffix_falls_back_to_the_bare_name(machine: Machine) -> None:
    machine.recorder("tm/onestor/clone")
    line = CLONE.replace("CLONE", "CLONE.onestor")
    assert transfer_mad(machine).run_line(line).success
    machine.recorder("tm/onestor/clone.onestor")
    assert transfer_mad(machine).run_line(line).success
    assert [call["action"] for call in machine.calls()] == ["clone", "clone.onestor"]


def test_missing_scripts(machine: Machine) -> None:
    mad = transfer_mad(machine)
    path = f"{machine.remotes}/tm/onestor/clone"
    assert mad.run_line(CLONE).error == f"Driver path '{path}' does not exists"
    answer = mad.run_line(CLONE.replace("CLONE", "CLONE.x"))
    assert answer.error == f"Driver path '{path}.x' nor '{path}' exists"


def test_script_stops_at_the_first_failure(machine: Machine) -> None:
    machine.recorder("tm/onestor/clone")
    machine.script("tm/onestor/ln", "echo no such image >&2; exit 1")
    lines = ["# comment", "", CLONE, CLONE.replace("CLONE", "LN"), CLONE]
    answer = transfer_mad(machine).run_script(lines)
    assert not answer.success
    assert answer.id == 10
    assert answer.error == "no such image"
    assert len(machine.calls()) == 1


def test_stdout_of_transfers_is_ignored(machine: Machine) -> None:
    machine.script("tm/onestor/clone", "echo hello")
    answer = transfer_mad(machine).run_line(CLONE)
    assert (answer.success, answer.info, answer.undefined) == (True, "-", ())


def test_cancel_drops_the_result_and_leaves_the_script_running(machine: Machine) -> None:
    started, ended = machine.root / "started", machine.root / "ended"
    machine.script(
        "tm/onestor/clone",
        f"trap 'touch {machine.root}/pipe' PIPE; touch {started}; sleep 0.3; echo x;"
        f" echo late >&2; touch {ended}",
    )
    machine.recorder("tm/onestor/ln")
    transfer = transfer_mad(machine).start_script([CLONE, CLONE.replace("CLONE", "LN")])
    wait_for(started)
    transfer.cancel()
    with pytest.raises(Cancelled):
        transfer.wait()
    assert not ended.exists()
    wait_for(ended)
    assert (machine.root / "pipe").exists()
    assert transfer.join(5)
    assert machine.calls() == []


def test_kill_reaches_the_whole_group(machine: Machine) -> None:
    started = machine.root / "started"
    machine.script("tm/onestor/clone", f"touch {started}; sleep 60")
    transfer = transfer_mad(machine).start_line(CLONE)
    wait_for(started)
    begin = time.monotonic()
    transfer.kill(signal.SIGKILL)
    assert transfer.wait().result.code == 255
    assert time.monotonic() - begin < 5
