"""How hosts are reached: command lines. Host keys: tests/tool; the code sent: test_bundle."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import pytest

from onestor_lib.agent import client, process
from onestor_lib.agent.errors import HostUnreachable, InvalidInput
from onestor_lib.agent.process import Result
from onestor_lib.frontend import config, openssh, ssh
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services.hosts import Hosts


def hosts(**values: str) -> Hosts:
    settings = config.Settings(config.TM_ATTRIBUTES, values)
    return Hosts(settings, Log("test", stderr=io.StringIO()))


@pytest.mark.parametrize("leg", ["REPLICA_SSH_OPTS", "REPLICA_SSH_FE_OPTS"])
def test_J4_K10_the_command_line_of_the_data_connection(leg: str) -> None:
    values = {leg: "-c aes128-ctr -o 'X=a b'", "CONNECT_TIMEOUT": "7"}
    argv = hosts(**values).bulk_argv("-host;id", leg)
    assert argv[0] == "ssh"
    for option in ("-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=none", "-T"):
        assert option in argv
    assert "-oConnectTimeout=7" in argv
    assert "-oServerAliveInterval=10" in argv, "a dead network is noticed (K7)"
    assert argv[argv.index("-c") :][:4] == ["-c", "aes128-ctr", "-o", "X=a b"]
    command = client.shell_command("python3")
    assert argv[-3:] == ["--", "-host;id", command], "a host can never be an option"
    assert command.startswith("python3 -ISB -c '") and command.count("'") == 2


def test_K10_each_leg_has_its_own_options() -> None:
    both = hosts(REPLICA_SSH_OPTS="-c one", REPLICA_SSH_FE_OPTS="-c two")
    assert "one" in both.bulk_argv("h1", "REPLICA_SSH_OPTS")
    assert "one" not in both.bulk_argv("h1", "REPLICA_SSH_FE_OPTS")
    assert "two" in both.bulk_argv("h1", "REPLICA_SSH_FE_OPTS")


def test_K9_how_bulk_work_gives_way() -> None:
    assert hosts().bulk_priority() == {"nice": 10, "ionice": "best-effort:7"}
    wanted = hosts(BULK_NICE="0", BULK_IONICE="none").bulk_priority()
    assert wanted == {"nice": 0, "ionice": "none"}
    for value in ("realtime", "best-effort", "best-effort:8", "idle:1", "-c3"):
        with pytest.raises(InvalidInput, match=f"BULK_IONICE .* is '{value}', not idle, none or"):
            hosts(BULK_IONICE=value).bulk_priority()


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


@pytest.mark.parametrize(
    ("step", "cause", "dropped"),
    [
        ("start the agent", "kex_exchange_identification: Connection closed by remote host", True),
        ("start the agent from a to", "x; Connection reset by 10.0.0.1 port 22 (ssh: 255)", True),
        ("start the agent from a to", "Connection closed by 10.0.0.1 port 22", True),
        ("start the agent from a to", "Host key verification failed.", False),
        ("start the agent from a to", "Permission denied (publickey).", False),
        ("receive from a to", "Connection reset by 10.0.0.1 port 22", False),
    ],
)
def test_connections_that_sshd_dropped(step: str, cause: str, dropped: bool) -> None:
    """Only before anything was done may one try again without counting."""
    assert openssh.was_dropped(HostUnreachable(step, cause, host="h1")) is dropped


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("proxyjump", "j1", ["-W", "[h1.example]:2222", "--", "ssh://j1"]),
        (
            "proxyjump",
            "ssh://a@j1:7,j2,b@j3:8",
            ["-J", "a@j1:7,j2", "-W", "[h1.example]:2222", "--", "ssh://b@j3:8"],
        ),
        ("proxycommand", "nc %h %p", ["/bin/sh", "-c", "exec nc h1.example 2222"]),
        ("proxycommand", "x %r@%n %%h %q", ["/bin/sh", "-c", "exec x one@h1 %h %q"]),
    ],
)
def test_ways_to_a_host_that_are_programs(option: str, value: str, expected: list[str]) -> None:
    options = {"user": ["one"], option: [value]}
    argv = ssh._way("h1", "h1.example", "2222", options, 5.0)
    if option == "proxyjump":
        base = openssh.base_argv(5.0)
        assert argv[: len(base)] == base
        assert "-oConnectTimeout=5" in base
        argv = argv[len(base) :]
    assert argv == expected


def test_plain_tcp_needs_no_program() -> None:
    none = {"proxyjump": ["none"], "proxycommand": ["none"]}
    assert ssh._way("h1", "h1", "22", none, 5.0) == ssh._way("h1", "h1", "22", {}, 5.0) == []


def test_J4_names_are_words_for_the_shell_of_a_proxy_command() -> None:
    options = {"user": ["; id"], "proxycommand": ["nc %h %p %r"]}
    argv = ssh._way("h1", "$(id)", "22", options, 5.0)
    assert argv[2] == "exec nc '$(id)' 22 '; id'"


def test_progress_of_a_long_transfer_is_noted_now_and_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = hosts()
    here.log.write_to(tmp_path / "log")
    now = here._reported
    for seconds in range(26):
        monkeypatch.setattr("time.monotonic", lambda: now + seconds)  # noqa: B023
        here._progress(seconds << 20, 30 << 20)
    monkeypatch.undo()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("INFO ")[2] for line in lines] == [
        "test: 11 of 30 MB (36 %) are through", "test: 22 of 30 MB (73 %) are through"
    ]  # fmt: skip


class Agent:
    """Notes that it is told of progress; its connection may be lost."""

    def __init__(self, *, lost: bool = False) -> None:
        self.told, self.lost = 0, lost

    def tell_progress(self) -> None:
        self.told += 1
        if self.lost:
            raise HostUnreachable("talk to the agent", "lost")


def test_A5_progress_is_passed_on_to_whoever_waits() -> None:
    """From the agent that moves bytes to all others: each knows whether it has asked for that."""
    ours = hosts()
    agents = [Agent(), Agent(lost=True), Agent()]
    ours._agents.extend(agents)  # type: ignore[arg-type]
    ours._progress(0, 0)
    ours._progress(1, 2)
    assert [agent.told for agent in agents] == [2, 2, 2]
