"""The agent as a process: how it starts, answers, and ends with its connection."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from onestor_lib.agent import channel, client, process
from onestor_lib.agent.client import AgentClient, ProcessStream
from onestor_lib.agent.errors import (
    HostUnreachable,
    InvalidInput,
    Missing,
    NotAllowed,
    OnestorError,
    ProgrammerError,
    Superseded,
)
from onestor_lib.frontend import bundle, openssh
from tests.tool.conftest import (
    Agents,
    changed_bundle,
    is_alive,
    listing,
    request,
)
from tests.tool.importing import Importing
from tests.waiting import wait_until

ARGV = openssh.local_agent_argv()


@contextlib.contextmanager
def started(argv: list[str], code: bytes | None = None) -> Iterator[AgentClient]:
    with AgentClient(ProcessStream(argv), "host1") as agent:
        agent.start(bundle.build() if code is None else code)
        yield agent


def start_and_end(argv: list[str]) -> None:
    with started(argv):
        pass


def pid_of(agent: AgentClient) -> int:
    assert isinstance(agent._stream, ProcessStream)
    return agent._stream._process.pid


def run(agent: AgentClient, *argv: str, timeout: float = 30.0) -> Any:
    return agent.call("program.run", argv=list(argv), timeout=timeout, step="run it")


class TestStart:
    @pytest.mark.parametrize(
        "noise",
        ["echo Welcome; echo", "echo 'onestor agents'", "printf 'no end of line '",
         "printf 'a\\0b\\r\\n'", "head -c 60000 /dev/zero | tr '\\0' '\\n'"],
    )  # fmt: skip
    def test_noise_of_login_scripts_is_skipped(
        self, noise: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(channel, "SILENCE", 3.0)
        argv = ["sh", "-c", f'{noise}; exec "$@"', "sh", *ARGV]
        with started(argv) as agent:
            assert run(agent, "echo", "hello")["stdout"] == "hello\n"

    @pytest.mark.parametrize("line", ["a line of some noise", ""])
    def test_endless_noise_ends(self, line: str) -> None:
        signal.alarm(3)
        with pytest.raises(HostUnreachable, match="start the agent host1: endless output"):
            # sshd takes what is sent, whether or not anybody reads it.
            start_and_end(["sh", "-c", 'timeout 2 yes "$1" & cat >/dev/null', "sh", line])

    def test_K13_a_python_that_is_too_old_is_named(self) -> None:
        old = "import sys; sys.version_info = (3, 6, 8); sys.version = '3.6.8 (default)'; "
        argv = [sys.executable, client.PYTHON_OPTIONS, "-c", old + client.BOOT_CODE]
        with pytest.raises(HostUnreachable, match=r"python3 here is 3.6.8, onestor needs 3.9"):
            start_and_end(argv)

    def test_K13_the_boot_code_is_python_that_old_interpreters_read(self) -> None:
        ast.parse(client._BOOT, feature_version=(3, 5))
        assert "'" not in client.BOOT_CODE, "it stands between apostrophes in a command line"

    def test_J4_the_command_line_works_in_a_login_shell(self) -> None:
        with started(["sh", "-c", client.shell_command(sys.executable)]) as agent:
            assert run(agent, "true")["stdout"] == ""

    @pytest.mark.parametrize(
        ("script", "cause"),
        [
            ("exec no-such-python", r".*no-such-python: not found \(sh: status 127\)"),
            ("echo first >&2; echo last words >&2; exit 3", r"first; last words \(sh: status 3\)"),
            ("kill -KILL $$", "sh ended: killed by SIGKILL"),
            ("exit 0", "sh ended: status 0"),
        ],
    )
    def test_K6_what_ended_instead_says_why(self, script: str, cause: str) -> None:
        with (
            pytest.raises(HostUnreachable, match=f"host1: {cause}"),
            started(["sh", "-c", script]),
        ):
            pass

    def test_a_damaged_bundle_is_reported(self) -> None:
        with pytest.raises(HostUnreachable, match=r"JSONDecodeError"), started(ARGV, b"x" * 100):
            pass

    @pytest.mark.parametrize("magic", ["", "of another Python"])
    def test_K13_bytecode_is_for_its_own_python_and_source_for_any(self, magic: str) -> None:
        """What an operation does and what a traceback names is the same both ways."""
        line, _, rest = bundle.build().partition(b"\n")
        header = json.loads(line)
        if magic:
            # Should it be used all the same, the agent ends here.
            rest = bytes(header["bytecode"]) + rest[header["bytecode"] :]
            header["magic"] = magic
        logged: list[tuple[str, str]] = []
        stream = ProcessStream(ARGV)
        with AgentClient(stream, "h", on_log=lambda *each: logged.append(each)) as agent:
            agent.start(json.dumps(header).encode() + b"\n" + rest)
            assert run(agent, "echo", "hello")["stdout"] == "hello\n"
            with pytest.raises(ProgrammerError):
                agent.call("usage.capacity", wrong=1)
        ((_, traceback),) = logged
        assert re.search(r'File "<onestor_lib.agent.server>", line \d+, in _handle', traceback)

    def test_nothing_of_the_host_s_python_gets_in(self, tmp_path: Path) -> None:
        """Isolated: neither the directory it starts in nor the environment changes modules."""
        (tmp_path / "json.py").write_text("raise SystemExit('planted')")
        argv = ["sh", "-c", 'cd "$1"; shift; PYTHONPATH=. exec "$@"', "sh", str(tmp_path), *ARGV]
        with started(argv) as agent:
            run(agent, "true")
        assert listing(tmp_path) == ["json.py"]


class TestCalls:
    def test_classes_of_errors_cross_the_connection(self, agent: AgentClient) -> None:
        source = {"kind": "file", "rules": {"restricted": ["/"], "safe": ["/var/tmp"]}}
        for path, cls in (
            ("/etc/x", NotAllowed),
            ("relative", InvalidInput),
            ("/var/tmp/-", Missing),
        ):
            with pytest.raises(cls) as failure:
                agent.call(
                    "image.measure", source={**source, "path": path}, inspect=True,
                    decompress=True, told=0, timeout=9.0,
                )  # fmt: skip
            assert failure.value.host == agent.host
            assert failure.value.path == path

    def test_an_agent_lives_through_errors(self, agents: Agents, agent: AgentClient) -> None:
        with pytest.raises(ProgrammerError, match=r"there is none called disk.format"):
            agent.call("disk.format")
        with pytest.raises(ProgrammerError, match="TypeError"):
            agent.call("usage.capacity", wrong=1)
        with pytest.raises(Missing, match="No such file"):
            agent.call("usage.capacity", path="/no/such/path")
        assert agent.call("usage.capacity", path="/")["TOTAL_MB"] > 0

    def test_prints_of_programs_do_not_get_into_the_answers(self) -> None:
        code = changed_bundle(
            "onestor_lib.agent.operations.program",
            ("    result = ", '    print("{}", flush=True)\n    result = '),
        )
        with started(ARGV, code) as agent:
            assert run(agent, "echo", "hello")["stdout"] == "hello\n"

    def test_logs_are_one_line_each(self, agents: Agents) -> None:
        code = changed_bundle(
            "onestor_lib.agent.operations.program",
            (
                "    result = ",
                '    call.log("WARN", "first\\nsecond"); call.progress(1, 2)\n    result = ',
            ),
        )
        logged: list[tuple[str, str]] = []
        progress: list[tuple[int, int]] = []
        with AgentClient(
            ProcessStream(ARGV), "h", on_log=lambda *line: logged.append(line),
            on_progress=lambda *facts: progress.append(facts),
        ) as agent:  # fmt: skip
            agent.start(code)
            run(agent, "true")
        assert (logged, progress) == ([("WARN", "first second")], [(1, 2)])

    def test_a_refusal_ends_the_operation_with_that_error(
        self, agent: AgentClient, tmp_path: Path
    ) -> None:
        def refuse(question: dict[str, Any]) -> NoReturn:
            raise Superseded("put in place", "the VM is gone")

        arguments = Importing(tmp_path).create()
        with pytest.raises(Superseded, match="the VM is gone"):
            agent.call("image.create", on_ask=refuse, **arguments)
        assert listing(tmp_path) == ["datastore", "incoming"]
        with pytest.raises(ProgrammerError, match="nobody answers 'content'"):
            agent.call("image.create", **arguments)

    def test_K3_large_arguments_and_results(self, agent: AgentClient) -> None:
        with pytest.raises(OnestorError, match="not installed"):
            run(agent, "no-such-program", "x" * (4 << 20))
        text = run(agent, "sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x")["stdout"]
        assert len(text) == 1_000_000

    def test_K4_endless_output_is_cut_before_it_is_too_much_for_an_answer(
        self, agent: AgentClient
    ) -> None:
        """Each of these bytes is six of JSON."""
        text = run(agent, "head", "-c", "3000000", "/dev/zero")["stdout"]
        assert process.MAX_STDOUT <= len(text) <= process.MAX_STDOUT + (1 << 16)
        assert text.strip("\0") == ""
        assert run(agent, "echo", "still in step")["stdout"] == "still in step\n"


class TestEnd:
    def test_an_agent_ends_with_its_connection(self, agents: Agents) -> None:
        with agents.start() as agent:
            pid = pid_of(agent)
            assert is_alive(pid)
        assert not is_alive(pid)

    @pytest.mark.parametrize("how", ["EOF", "SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
    def test_K7_work_ends_with_the_connection(self, tmp_path: Path, how: str) -> None:
        note = tmp_path / "pid"
        with started(ARGV) as agent:
            pid = pid_of(agent)
            script = f"echo $$ >{note}.new; mv {note}.new {note}; exec sleep 60"
            request(agent, "program.run", argv=["sh", "-c", script], timeout=60, step="sleep")
            wait_until(note.exists)
            if how != "EOF":
                os.kill(pid, getattr(signal, how))
                wait_until(lambda: not is_alive(pid))
                with pytest.raises(HostUnreachable):
                    agent.result("program.run")
        assert not is_alive(pid)
        wait_until(lambda: not is_alive(int(note.read_text())))

    def test_a_silent_peer_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(channel, "SILENCE", 0.3)
        with pytest.raises(HostUnreachable, match="no sign of life for 0 s"):
            start_and_end(["sh", "-c", "cat >/dev/null"])

    def test_an_agent_ends_when_its_peer_is_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = changed_bundle("onestor_lib.agent.channel", ("SILENCE = 60.0", "SILENCE = 0.5"))
        monkeypatch.setattr(channel, "PULSE", 60.0)
        with started(ARGV, code) as agent:
            wait_until(lambda: not is_alive(pid_of(agent)))

    def test_signs_of_life_keep_both_sides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = changed_bundle(
            "onestor_lib.agent.channel",
            ("SILENCE = 60.0", "SILENCE = 0.5"),
            ("PULSE = 5.0", "PULSE = 0.1"),
        )
        monkeypatch.setattr(channel, "SILENCE", 0.5)
        monkeypatch.setattr(channel, "PULSE", 0.1)
        with started(ARGV, code) as agent:
            assert run(agent, "sleep", "1.2")["stdout"] == ""

    def test_damaged_messages_end_an_agent(self) -> None:
        with started(ARGV) as agent:
            agent.write(b"no json\n", 5)
            wait_until(lambda: not is_alive(pid_of(agent)))


class TestProcessStream:
    @pytest.mark.parametrize("script", ["echo; cat", "exec 2>&-; echo; cat"])
    def test_every_wait_ends(self, script: str) -> None:
        """Also when the program has closed its error output."""
        stream = ProcessStream(["sh", "-c", f"{script} >/dev/null"])
        signal.alarm(3)  # instead of the usual time of a test that waits for ever
        try:
            assert stream.receive(5) == b"\n"
            with pytest.raises(TimeoutError):
                stream.receive(0.2)
            os.killpg(stream._process.pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                stream.send(bytes(4 << 20), 0.2)  # more than a pipe of ours holds
        finally:
            signal.alarm(0)
            os.killpg(stream._process.pid, signal.SIGCONT)
            stream.close()

    def test_K4_error_output_never_blocks_the_program(self) -> None:
        stream = ProcessStream(["sh", "-c", "head -c 1000000 /dev/zero >&2; echo done; cat"])
        assert stream.receive(10) == b"done\n"
        assert len(stream._said) <= 16 << 10
        stream.close()
