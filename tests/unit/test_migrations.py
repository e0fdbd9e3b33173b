"""services.migrations and services.backups: what oned and older manuals send."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

import pytest

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments, config, oned, xml
from onestor_lib.frontend.actions import tm_context, tm_postmigrate
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services import backups, migrations, scripts, vms

VM = b"<VM><ID>7</ID><NAME>\xc3\xa9</NAME></VM>"
WORDS = ["host01", "host02", "/var/lib/one//datastores/102/7", "7", "102"]


def request(*more: str, stdin: bytes = base64.b64encode(VM)) -> Request:
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    log = Log("premigrate")
    return Request("tm", "premigrate", [*WORDS, *more], io.BytesIO(stdin), settings, log)


def test_the_vm_on_stdin() -> None:
    step = migrations.read(request())
    assert (step.source_host, step.target_host, step.vm_id) == ("host01", "host02", 7)
    assert step.directory == "/var/lib/one/datastores/102/7"
    assert not step.is_secondary
    assert step.text.encode() == VM and step.vm.text("NAME") == "é"


def test_the_vm_as_a_word() -> None:
    word = base64.b64encode(VM).decode()
    assert migrations.read(request(word, stdin=b"")).text.encode() == VM
    step = migrations.read(request(word, "ceph", stdin=b""))
    assert step.is_secondary and step.text.encode() == VM


def test_without_a_vm_oned_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oned.Client, "vm", lambda self, vm_id: xml.parse(VM, f"VM {vm_id}"))
    step = migrations.read(request(stdin=b""))
    assert step.vm.text("NAME") == "é"
    assert xml.parse(base64.b64decode(step.encoded), "it").text("ID") == "7"


@pytest.mark.parametrize(
    ("target_host", "datastores", "old"),
    [
        ("host02", (), "102"),  # the usual: another host, and nobody is asked
        ("host01", (101, 102), "101"),
        ("host01", (101, 104, 102), "104"),
        ("host01", (102, 102), "102"),
        ("host01", (102,), "102"),
    ],
)
def test_where_a_vm_was_before_a_live_migration(
    target_host: str, datastores: tuple[int, ...], old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 7.2 on it may change its datastore instead of its host."""
    records = "".join(f"<HISTORY><DS_ID>{each}</DS_ID></HISTORY>" for each in datastores)
    vm = xml.parse(f"<VM><HISTORY_RECORDS>{records}</HISTORY_RECORDS></VM>".encode(), "the VM")
    monkeypatch.setattr(oned.Client, "vm", lambda self, vm_id: vm)
    step = migrations.read(request())._replace(target_host=target_host)
    target = arguments.vm_path(f"{target_host}:{step.directory}", step.vm_id)
    found = tm_postmigrate._old_directory(oned.Client(), step, target)
    assert found == f"/var/lib/one/datastores/{old}/7"


def test_D17_another_driver_calls() -> None:
    assert migrations.read(request("ceph")).is_secondary


@pytest.mark.parametrize("more", [("ceph", "ceph"), ("a", "b", "c"), ("%%", "ceph")])
def test_words_nobody_sends(more: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        migrations.read(request(*more))


@pytest.mark.parametrize("stdin", [b"%%%", b"abc", base64.b64encode(b"no XML")])
def test_stdin_that_is_no_vm(stdin: bytes) -> None:
    with pytest.raises(InvalidInput):
        migrations.read(request(stdin=stdin))


@pytest.mark.parametrize(
    ("disk", "is_own"),
    [
        ("<IMAGE_ID>1</IMAGE_ID><CLONE_TARGET>SYSTEM</CLONE_TARGET>", True),
        ("<IMAGE_ID>1</IMAGE_ID><CLONE_TARGET>SELF</CLONE_TARGET>", False),
        ("<IMAGE_ID>1</IMAGE_ID><CLONE>NO</CLONE><LN_TARGET>NONE</LN_TARGET>", False),
        ("<IMAGE_ID>1</IMAGE_ID><CLONE>NO</CLONE><LN_TARGET>SYSTEM</LN_TARGET>", True),
        ("<TYPE>fs</TYPE>", True),
        ("<TYPE>swap</TYPE>", True),
        ("<TYPE>FILESYSTEM</TYPE><IMAGE_ID>1</IMAGE_ID>", False),
    ],
)
def test_which_disks_lie_in_the_directory(disk: str, is_own: bool) -> None:
    text = f"<VM><TEMPLATE><DISK><DISK_ID>3</DISK_ID>{disk}</DISK></TEMPLATE></VM>"
    vm = xml.parse(text.encode(), "the VM")
    assert vms.own_disks(vm) == (["disk.3"] if is_own else [])


def test_only_our_own_driver_gets_another_name() -> None:
    disks = "".join(f"<DISK><TM_MAD>{name}</TM_MAD></DISK>" for name in ("onestor", "ceph"))
    vm = xml.parse(f"<VM><TEMPLATE>{disks}</TEMPLATE></VM>".encode(), "the VM")
    expected = disks.replace("onestor", "ssh")
    assert backups.renamed(vm) == f"<VM><TEMPLATE>{expected}</TEMPLATE></VM>".encode()


def test_L11_the_ssh_driver_is_not_called_for_disks_in_our_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its premigrate removes the directory at the target, its postmigrate that at the source."""
    called = []
    monkeypatch.setattr(migrations, "_call", lambda request, step, driver: called.append(driver))
    names = ("onestor", "ceph", "ssh", "")
    disks = "".join(f"<DISK><TM_MAD>{name}</TM_MAD></DISK>" for name in names)
    vm = xml.parse(f"<VM><TEMPLATE>{disks}</TEMPLATE></VM>".encode(), "the VM")
    step = migrations.Step("one", "two", "/d/102/7", 7, False, vm, "", b"")
    for call in migrations.others(request(), step):
        call()
    assert called == ["ceph"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/v/context.sh"], {"context.sh": "/v/context.sh"}),
        (["/v//c.sh", "/d/a:'init.sh'"], {"c.sh": "/v/c.sh", "init.sh": "/d/a"}),
        (["/d/a:'my", "own", "file'", "/d/b"], {"my own file": "/d/a", "b": "/d/b"}),
        (["/d/a:'x:y'"], {"x:y": "/d/a"}),
    ],
)
def test_trap16_files_of_a_context(words: list[str], expected: dict[str, str]) -> None:
    assert tm_context._named_files(words) == expected


def test_a_script_is_looked_for_where_the_drivers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onestor_lib.agent.errors import Missing
    from onestor_lib.frontend import boundary
    from onestor_lib.frontend.services import scripts

    monkeypatch.setattr(boundary, "remotes_directory", lambda: tmp_path)
    with pytest.raises(Missing, match="tm/ssh/prebackup"):
        scripts.find("ssh", "prebackup", "back up")
    script = tmp_path / "tm/ssh/prebackup"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert scripts.find("ssh", "prebackup", "back up") == script


def test_D12_each_driver_is_called_and_the_first_error_counts() -> None:
    done = []

    def fail(cause: str) -> None:
        done.append(cause)
        raise InvalidInput("call", cause)

    works = [functools.partial(fail, cause) for cause in ("first", "second", "third")]
    log = Log("postmigrate", stderr=(said := io.StringIO()))
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    asked = Request("tm", "postmigrate", WORDS, io.BytesIO(), settings, log)
    with pytest.raises(InvalidInput, match="first"):
        migrations.do_all(asked, works)
    assert done == ["first", "second", "third"]
    assert "second" in said.getvalue() and "third" in said.getvalue()
    migrations.do_all(asked, [lambda: None])


def backup_request(mode: str, disks: str, *words: str) -> Request:
    vm = (
        f"<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>qcow2</FORMAT></DISK>"
        "<DISK><DISK_ID>1</DISK_ID><FORMAT>raw</FORMAT><TYPE>CDROM</TYPE></DISK>"
        "<DISK><DISK_ID>2</DISK_ID><FORMAT>raw</FORMAT></DISK></TEMPLATE>"
        f"<BACKUPS><BACKUP_CONFIG><MODE>{mode}</MODE></BACKUP_CONFIG></BACKUPS></VM>"
    )
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    argv = ["host01:/var/lib/one/datastores/102/7", disks, *words]
    log = Log("prebackup")
    return Request("tm", "prebackup", argv, io.BytesIO(vm.encode()), settings, log)


@pytest.mark.parametrize(
    ("mode", "disks", "words", "is_refused"),
    [
        ("INCREMENT", "0:1", ("one-7", "3", "7", "102"), False),  # a CD-ROM is raw, and no disk
        ("INCREMENT", "0:1:", ("7", "102"), False),  # 6.6 without a deployment id (trap 18)
        ("INCREMENT", "0:2", ("one-7", "-", "7", "102"), True),
        ("FULL", "0:2", ("one-7", "-", "7", "102"), False),
    ],
)
def test_which_backups_are_possible(
    monkeypatch: pytest.MonkeyPatch, mode: str, disks: str, words: tuple[str, ...], is_refused: bool
) -> None:
    handed: list[str] = []
    monkeypatch.setattr(scripts, "find", lambda *words: Path("/script"))
    monkeypatch.setattr(scripts, "become", lambda *words: handed.append(words[0]))
    asked = backup_request(mode, disks, *words)
    if is_refused:
        with pytest.raises(InvalidInput, match="disk 2 is raw"):
            backups.hand_over(asked)
    else:
        backups.hand_over(asked)
    assert bool(handed) is not is_refused
