"""How hosts are reached: the code that is sent, command lines of ssh, host keys."""

from __future__ import annotations

import io
import json
import socket
import zlib
from pathlib import Path
from typing import Any

import paramiko
import pytest

from onestor_lib.agent import client, crashpoints, process
from onestor_lib.agent.bootstrap import SentModules
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.agent.process import Result
from onestor_lib.frontend import bundle, config, openssh, ssh
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services.hosts import Hosts


def hosts(**values: str) -> Hosts:
    settings = config.Settings(config.TM_ATTRIBUTES, values)
    return Hosts(settings, Log("test", stderr=io.StringIO()))


def test_the_bundle_holds_the_agent_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crashpoints.VARIABLE, "publish.synced")
    bundle.build.cache_clear()
    content = json.loads(zlib.decompress(bundle.build()))
    bundle.build.cache_clear()
    assert content["settings"] == {"crash_at": "publish.synced"}
    assert {"onestor_lib", "onestor_lib.agent.operations.disk"} <= set(content["modules"])
    assert not [name for name in content["modules"] if "frontend" in name]
    assert "def start(" in content["bootstrap"]


def test_sent_modules() -> None:
    finder = SentModules({"sent": "", "sent.inner": "answer = 42", "other": ""})
    package = finder.find_spec("sent", None)
    inner = finder.find_spec("sent.inner", None)
    assert package and package.submodule_search_locations == []
    assert inner and inner.submodule_search_locations is None
    assert finder.find_spec("json", None) is None
    module = type(json)("sent.inner")
    finder.exec_module(module)
    assert module.answer == 42


def test_J4_K10_the_command_line_of_the_data_connection() -> None:
    argv = hosts(SSH_OPTS="-c aes128-ctr -o 'X=a b'", CONNECT_TIMEOUT="7").bulk_argv("-host;id")
    assert argv[0] == "ssh"
    for option in ("-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=none", "-T"):
        assert option in argv
    assert "-oConnectTimeout=7" in argv
    assert "-oServerAliveInterval=10" in argv, "a dead network is noticed (K7)"
    assert argv[argv.index("-c") :][:4] == ["-c", "aes128-ctr", "-o", "X=a b"]
    command = client.shell_command("python3")
    assert argv[-3:] == ["--", "-host;id", command], "a host can never be an option"
    assert command.startswith("python3 -ISB -c '") and command.count("'") == 2


@pytest.mark.parametrize(
    ("host", "here"),
    [(socket.gethostname(), True), ("localhost", True), ("other", False), ("127.0.0.1", False)],
)
def test_which_host_is_here(host: str, here: bool) -> None:
    assert hosts().is_here(host) is here


def test_what_ssh_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stdout = b"hostname h1.example\nidentityfile ~/.ssh/a\nIdentityFile ~/.ssh/b\n"

    def run(argv: list[str], **options: Any) -> Result:
        calls.append(argv)
        status = 0 if argv[-1] == "h1" else 255
        return Result(tuple(argv), status, stdout, b"bad host", False, 0.1)

    monkeypatch.setattr(process, "run", run)
    found = openssh.resolve("h1")
    assert found == {"hostname": ["h1.example"], "identityfile": ["~/.ssh/a", "~/.ssh/b"]}
    assert calls[0][-2:] == ["--", "h1"]
    with pytest.raises(HostUnreachable, match="h2: ssh: bad host"):
        openssh.resolve("h2")


class TestHostKeys:
    @pytest.fixture
    def key(self) -> paramiko.PKey:
        return paramiko.ECDSAKey.generate()

    @staticmethod
    def meet(strict: str, file: Path, key: paramiko.PKey) -> None:
        revoked = ssh._revoked([str(file)])
        policy = ssh._Policy(strict, [str(file)], revoked)
        policy.missing_host_key(paramiko.SSHClient(), "h1", key)

    @pytest.mark.parametrize("strict", ["yes", "ask", "true", "odd"])
    def test_an_unknown_key_is_refused(
        self, tmp_path: Path, key: paramiko.PKey, strict: str
    ) -> None:
        with pytest.raises(OSError, match=f"the host key of h1 is not in {tmp_path}/known"):
            self.meet(strict, tmp_path / "known", key)
        assert not (tmp_path / "known").exists()

    @pytest.mark.parametrize("strict", ["accept-new", "no", "off", "false"])
    def test_an_accepted_key_is_one_more_line(
        self, tmp_path: Path, key: paramiko.PKey, strict: str
    ) -> None:
        file = tmp_path / ".ssh" / "known"
        file.parent.mkdir()
        file.write_text("# kept as it is\n")
        for _ in range(2):
            self.meet(strict, file, key)
        line = f"h1 {key.get_name()} {key.get_base64()}\n"
        assert file.read_text() == "# kept as it is\n" + line
        assert file.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("strict", ["accept-new", "no", "yes"])
    def test_a_revoked_key_is_refused_always(
        self, tmp_path: Path, key: paramiko.PKey, strict: str
    ) -> None:
        file = tmp_path / "known"
        file.write_text(f"@revoked * {key.get_name()} {key.get_base64()}\n")
        with pytest.raises(paramiko.SSHException, match="revoked"):
            self.meet(strict, file, key)
