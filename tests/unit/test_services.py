"""frontend.services: what messages and templates ask for, and transfers that are repeated."""

from __future__ import annotations

import io
from typing import Any

import pytest

from onestor_lib.agent.errors import (
    HostUnreachable,
    InvalidInput,
    Missing,
    NoSpace,
    OnedUnavailable,
    OnestorError,
    Superseded,
    TransferFailed,
)
from onestor_lib.frontend import arguments, config, oned, openssh, retry, xml
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.message import Message
from onestor_lib.frontend.services import disks, images, sources, transfer, vms
from onestor_lib.frontend.services.hosts import Hosts

MB = 1 << 20


def message(text: str) -> Message:
    content = f"<DS_DRIVER_ACTION_DATA>{text}</DS_DRIVER_ACTION_DATA>"
    return Message(xml.parse(content.encode(), "the message"), 1)


class TestImages:
    @pytest.mark.parametrize(
        ("name", "length"), [("MD5", 32), ("SHA1", 40), ("SHA256", 64), ("SHA512", 128)]
    )
    def test_J2_H4_digests_are_hexadecimal_of_the_right_length(
        self, name: str, length: int
    ) -> None:
        def digests(value: str) -> dict[str, str]:
            template = f"<IMAGE><TEMPLATE><{name}>{value}</{name}></TEMPLATE></IMAGE>"
            return images.digests(message(template))

        assert digests("aB" * (length // 2)) == {name.lower(): "ab" * (length // 2)}
        assert digests(" ") == {}
        for value in ("a" * (length - 1), "a" * (length + 1), "g" * length, "'; id"):
            with pytest.raises(InvalidInput, match=f"{name} of the image is not {length} hexa"):
                digests(value)

    @pytest.mark.parametrize(
        ("path", "scheme"),
        [("ftp://x/y", "ftp"), ("s3:/etc/x", "s3"), ("json:{}", "json"), ("a+b.c-1:x", "a")],
    )
    def test_J10_schemes_are_refused_by_name(self, path: str, scheme: str) -> None:
        with pytest.raises(InvalidInput, match=f"sources of type {scheme}"):
            self.source(path)

    def test_J2_odd_characters_are_part_of_the_path(self) -> None:
        path = "/a b/'`$(c);\"*:?"
        assert self.source(path)["path"] == path

    @pytest.mark.parametrize("path", ["/a", "file:///a", "file:/a", "FILE:///a"])
    def test_files(self, path: str) -> None:
        found = self.source(path)
        assert (found["kind"], found["path"], found["rules"]["restricted"]) == ("file", "/a", ["/"])

    def test_J13_names_of_urls_have_no_secrets(self) -> None:
        found = self.source("https://user:pass@h:8/a%20b?token=1#f")
        assert (found["kind"], found["name"]) == ("http", "https://h:8/a%20b?...")

    @pytest.mark.parametrize(
        ("path", "host", "options"),
        [
            ("ssh://h:/a b", "h", []), ("ssh://h/a b", "h", []),
            ("ssh://me@h:22/a b", "h", ["-l", "me", "-p", "22"]),
            ("ssh://me@[::1]:/a b", "::1", ["-l", "me"]),
        ],
    )  # fmt: skip
    def test_files_of_other_machines(
        self, path: str, host: str, options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openssh, "faster_cipher", lambda host: [])
        found = self.source(path)
        assert (found["kind"], found["host"], found["path"]) == ("ssh", host, "/a b")
        argv = found["argv"]
        assert argv[argv.index("--") + 1] == host
        assert all(word in argv[: argv.index("--")] for word in options)
        assert found["rules"]["restricted"] == ["/"]

    @pytest.mark.parametrize(
        "path",
        ["ssh://-oProxyCommand=x:/a", "ssh://h", "ssh://-l@h:/a", "ssh://u:p@h:/a", "ssh://h:/../a",
         "ssh://h:/a\nb", "ssh://h;id:/a"],
    )  # fmt: skip
    def test_J2_what_no_machine_or_path_can_be_called(self, path: str) -> None:
        with pytest.raises(InvalidInput):
            self.source(path)

    @pytest.mark.parametrize(
        ("value", "expected"), [("", 1 << 20), ("64k", 1 << 16), ("4M", 4 << 20)]
    )
    def test_H22_DD_BLOCK_SIZE(self, value: str, expected: int) -> None:
        assert self.source("/a", DD_BLOCK_SIZE=value)["block"] == expected

    @pytest.mark.parametrize(("value", "expected"), [("", 0), ("1000", 1000), ("2m", 2 << 20)])
    def test_K9_LIMIT_TRANSFER_BW(self, value: str, expected: int) -> None:
        assert self.source("http://h/", LIMIT_TRANSFER_BW=value)["rate"] == expected

    def source(self, path: str, **configured: str) -> dict[str, Any]:
        settings = config.Settings(config.DATASTORE_ATTRIBUTES, configured)
        return sources.describe(path, settings, Hosts(settings, Log("x")), step="stat")

    @pytest.mark.parametrize(
        ("datastore", "image", "expected"),
        [("0", "0", True), ("0", "2", True), ("0", "1", False), ("2", "3", False)],
    )
    def test_what_has_a_format(self, datastore: str, image: str, expected: bool) -> None:
        text = f"<IMAGE><TYPE>{image}</TYPE></IMAGE><DATASTORE><TYPE>{datastore}</TYPE></DATASTORE>"
        assert images.is_disk_image(message(text)) is expected

    def test_H27_the_datastore_s_driver_unless_CONVERT_is_NO(self) -> None:
        def wanted(driver: str, convert: str) -> str:
            settings = config.Settings(config.DATASTORE_ATTRIBUTES, {"CONVERT": convert})
            text = f"<DATASTORE><TEMPLATE><DRIVER>{driver}</DRIVER></TEMPLATE></DATASTORE>"
            return images.wanted_format(message(text), settings)

        assert (wanted("QCOW2", "YES"), wanted("qcow2", "NO"), wanted("", "YES")) == (
            "qcow2",
            "",
            "",
        )
        with pytest.raises(InvalidInput, match="DRIVER of the datastore is 'vmdk'"):
            wanted("vmdk", "YES")

    def test_A21_the_template_takes_precedence(self) -> None:
        text = "<DATASTORE><ID>1</ID><TEMPLATE><SAFE_DIRS>/a /b</SAFE_DIRS></TEMPLATE></DATASTORE>"
        configured = config.Settings(config.DATASTORE_ATTRIBUTES, {"SAFE_DIRS": "/c"})
        settings = images.settings(message(text), configured)
        assert sources.rules(settings) == {"restricted": ["/"], "safe": ["/a", "/b"]}


def vm(text: str, *, state: str = "3", lcm_state: str = "1", sequence: str = "4") -> xml.Element:
    return xml.parse(
        f"<VM><STATE>{state}</STATE><LCM_STATE>{lcm_state}</LCM_STATE><TEMPLATE>{text}</TEMPLATE>"
        "<HISTORY_RECORDS><HISTORY><SEQ>0</SEQ></HISTORY><HISTORY><SEQ>"
        f"{sequence}</SEQ></HISTORY></HISTORY_RECORDS></VM>".encode(), "VM 7",
    )  # fmt: skip


def target(name: str = "disk.1") -> arguments.VmPath:
    return arguments.vm_path(f"h:/d/100/7/{name}", 7)


class TestDescribe:
    @pytest.mark.parametrize(
        ("text", "image_format", "grow_to"),
        [
            ("<FORMAT>qcow2</FORMAT>", "qcow2", 0),
            ("<DRIVER>QCOW2</DRIVER>", "qcow2", 0),
            ("<FORMAT>raw</FORMAT><DRIVER>qcow2</DRIVER>", "raw", 0),
            ("<FORMAT>qcow2</FORMAT><TYPE>CDROM</TYPE>", "raw", 0),
            ("<SIZE>9</SIZE><ORIGINAL_SIZE>5</ORIGINAL_SIZE>", "raw", 9 * MB),
            ("<SIZE>5</SIZE><ORIGINAL_SIZE>5</ORIGINAL_SIZE>", "raw", 0),
            ("<SIZE>4</SIZE><ORIGINAL_SIZE>5</ORIGINAL_SIZE>", "raw", 0),
            ("<SIZE>9</SIZE>", "raw", 0),
        ],
    )
    def test_C3_format_and_size(self, text: str, image_format: str, grow_to: int) -> None:
        other = "<DISK><DISK_ID>0</DISK_ID><FORMAT>qcow2</FORMAT></DISK>"
        disk = f"<DISK><DISK_ID>1</DISK_ID><IMAGE_ID>4</IMAGE_ID>{text}</DISK>"
        found = vms.describe(vm(other + disk), target())
        assert (found.image_id, found.image_format, found.grow_to) == ("4", image_format, grow_to)

    def test_trap12_a_kernel_has_no_disk(self) -> None:
        assert vms.describe(vm(""), target("kernel")).image_format == "raw"

    @pytest.mark.parametrize(
        ("text", "cls"),
        [
            ("", Missing),
            ("<DISK><DISK_ID>1</DISK_ID><FORMAT>vmdk</FORMAT></DISK>", InvalidInput),
            ("<DISK><DISK_ID>1</DISK_ID><SIZE>-1</SIZE></DISK>", InvalidInput),
            ("<DISK><DISK_ID>1</DISK_ID><SIZE>$(id)</SIZE></DISK>", InvalidInput),
        ],
    )
    def test_J3_templates_that_make_no_sense(self, text: str, cls: type[OnestorError]) -> None:
        with pytest.raises(cls):
            vms.describe(vm(text), target())


class TestWanted:
    """Whether oned still wants what has been put in place (trap 8)."""

    @staticmethod
    def ask(answer: xml.Element | OnestorError, monkeypatch: pytest.MonkeyPatch) -> str:
        def question(self: oned.Client, vm_id: int) -> xml.Element:
            if isinstance(answer, OnestorError):
                raise answer
            return answer

        monkeypatch.setattr(oned.Client, "vm", question)
        stderr = io.StringIO()
        vms.require_wanted(oned.Client(), 7, "4", Log("clone", stderr=stderr))
        return stderr.getvalue()

    def test_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ask(vm(""), monkeypatch) == ""
        said = self.ask(OnedUnavailable("ask", "down"), monkeypatch)
        assert said == "WARN: clone: ask: down; the VM counts as wanted still\n"

    @pytest.mark.parametrize(
        "answer",
        [
            vm("", state="6"), vm("", lcm_state="23"), vm("", lcm_state="15"), vm("", sequence="5"),
            Missing("ask oned for vm 7", "there is none"),
        ],
    )  # fmt: skip
    def test_not_wanted(
        self, answer: xml.Element | OnestorError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Superseded):
            self.ask(answer, monkeypatch)

    @pytest.mark.parametrize(
        ("state", "lcm_state", "given_up"),
        [("3", "3", False), ("8", "0", False), ("6", "0", True), ("4", "0", True), ("9", "0", True),
         ("3", "23", True), ("3", "15", True)],
    )  # fmt: skip
    def test_trap17_vms_given_up(self, state: str, lcm_state: str, given_up: bool) -> None:
        assert vms.is_given_up(vm("", state=state, lcm_state=lcm_state)) is given_up

    def test_a_directory_is_no_disk(self) -> None:
        settings = config.Settings(config.TM_ATTRIBUTES, {})
        with pytest.raises(InvalidInput, match="is no disk"):
            disks.Placement("clone", ["fe:/i", "h:/d/100/7", "7", "1"], settings, Log("clone"))


class Source:
    """An agent that fails as it is told, then succeeds."""

    def __init__(self, host: str, *failures: OnestorError) -> None:
        self.host, self.failures = host, list(failures)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, operation: str, **arguments: Any) -> dict[str, int]:
        self.calls.append((operation, arguments))
        if self.failures:
            raise self.failures.pop(0)
        return {"sent": 5}


class TestBring:
    @staticmethod
    def bring(source: Source, host: str = "h1", *, manifest: str = "") -> tuple[int, str]:
        stderr = io.StringIO()
        values = {"STALL_TIMEOUT": "9", "REPLICA_BWLIMIT_MB_S": "3", "BULK_NICE": "4"}
        settings = config.Settings(config.TM_ATTRIBUTES, values)
        answer = transfer.bring(
            Hosts(settings, Log("clone", stderr=stderr)), source,  # type: ignore[arg-type]
            "/i", host=host, version={"size": 1}, temporary="/t", manifest=manifest, reuse=False,
        )  # fmt: skip
        return answer["sent"], stderr.getvalue()

    def test_to_another_host(self) -> None:
        source = Source("fe")
        assert self.bring(source) == (5, "")
        ((operation, arguments),) = source.calls
        assert operation == "transfer.send"
        assert (arguments["host"], arguments["stall"]) == ("h1", 9.0)
        assert arguments["argv"][0] == "ssh"
        assert arguments["bytes_per_second"] == 3 * MB, "K9"
        assert arguments["bulk"]["nice"] == 4, "K11"
        assert (arguments["version"], arguments["temporary"]) == ({"size": 1}, "/t")

    def test_A24_on_one_host_no_network_is_used(self) -> None:
        source = Source("h1")
        assert self.bring(source) == (5, "")
        ((operation, arguments),) = source.calls
        assert operation == "transfer.copy"
        assert set(arguments) == {"path", "version", "temporary", "manifest", "stall", "bulk"}

    def test_A3_what_may_pass_is_tried_once_more(self) -> None:
        source = Source("fe", TransferFailed("send", "cut", host="h1"))
        assert self.bring(source) == (5, "WARN: clone: send h1: cut; trying again\n")
        source = Source("fe", *(HostUnreachable("send", "cut") for _ in range(2)))
        with pytest.raises(HostUnreachable):
            self.bring(source)
        assert len(source.calls) == 2, "retries are bounded (K8)"

    @pytest.mark.parametrize("manifest", ["", "/t.chunks"])
    def test_A3_the_second_try_takes_up_what_has_come(self, manifest: str) -> None:
        """In the part of a fill as in the temporary of a disk."""
        source = Source("fe", TransferFailed("send", "cut", host="h1"))
        self.bring(source, manifest=manifest)
        assert [arguments["reuse"] for _, arguments in source.calls] == [False, True]

    DROPPED = "kex_exchange_identification: Connection closed by remote host (ssh: status 255)"

    def test_connections_that_sshd_drops_are_tried_for_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MaxStartups of sshd: no failure of ours, so neither a try nor a warning."""
        slept: list[float] = []
        monkeypatch.setattr("time.sleep", slept.append)
        dropped = HostUnreachable("start the agent from fe to", self.DROPPED, host="h1")
        source = Source("fe", *[dropped] * 5, TransferFailed("send", "cut", host="h1"), dropped)
        assert self.bring(source) == (5, "WARN: clone: send h1: cut; trying again\n")
        assert len(slept) == 6 and sum(slept) > 1

    def test_K8_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retry, "pauses", lambda: iter([0.0, 0.0]))
        dropped = HostUnreachable("start the agent from fe to", self.DROPPED, host="h1")
        source = Source("fe", *[dropped] * 9)
        with pytest.raises(HostUnreachable, match="start the agent from fe to h1: kex_exchange"):
            self.bring(source)
        assert len(source.calls) == 3

    def test_what_will_not_pass_is_not_repeated(self) -> None:
        source = Source("fe", NoSpace("receive", "full"))
        with pytest.raises(NoSpace):
            self.bring(source)
        assert len(source.calls) == 1
