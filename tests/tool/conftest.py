"""Local agents, images drawn in letters, small file systems, a stand-in for oned's API."""

from __future__ import annotations

import compileall
import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import xmlrpc.server
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest

from onestor_lib.agent import client, crashpoints, publish
from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.client import AgentClient
from onestor_lib.frontend import bundle, config
from onestor_lib.frontend.log import Log
from onestor_lib.frontend.services.hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
CRASH_NOTE = "ONESTOR_TEST_CRASH_NOTE"  # a variable with the path of crash_note
TOO_LONG = 60  # seconds after which a test counts as waiting for ever


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("tool")


@pytest.fixture(autouse=True)
def every_wait_ends() -> Iterator[None]:
    """Interrupt a test that waits for ever instead of letting it hang."""

    def interrupt(signum: int, frame: object) -> None:
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(TOO_LONG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def draw(path: Path, pattern: str, tail: bytes = b"") -> Path:
    """A raw image of one chunk for each letter: data, "0" for zeros on disk, "-" for a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for index, letter in enumerate(pattern):
            if letter != "-":
                block = bytes(CHUNK) if letter == "0" else letter.encode() * CHUNK
                os.pwrite(file.fileno(), block, index * CHUNK)
        os.pwrite(file.fileno(), tail, len(pattern) * CHUNK)
        file.truncate(len(pattern) * CHUNK + len(tail))
        os.fsync(file.fileno())
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def listing(directory: Path) -> list[str]:
    """All names below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def temporaries(directory: Path) -> list[str]:
    return [name for name in listing(directory) if publish.is_temporary(Path(name).name)]


def qemu_img(*argv: str | Path) -> str:
    done = subprocess.run(["qemu-img", *argv], check=True, capture_output=True, text=True)
    return done.stdout


def create_encrypted(file: Path, kind: str) -> None:
    """A qcow2 image of 1 MiB, encrypted with "aes", as it was first, or with "luks".

    For the latter qemu measures for two seconds how fast this machine is, and gives up where no
    processor time seems to have passed; that happens on a busy one.
    """
    options = f"encrypt.format={kind},encrypt.key-secret=s"
    if kind == "luks":
        options += ",encrypt.iter-time=10"
    argv = ["create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o", options]
    for _ in range(4):
        with contextlib.suppress(subprocess.CalledProcessError):
            qemu_img(*argv, file, "1M")
            return
    qemu_img(*argv, file, "1M")


def info(path: Path, image_format: str = "") -> dict[str, Any]:
    given = ["-f", image_format] if image_format else []
    found: dict[str, Any] = json.loads(qemu_img("info", "--output=json", *given, path))
    return found


def qcow2(path: Path, pattern: str) -> Path:
    """A qcow2 image with the content of `draw`."""
    raw = draw(path.with_name(path.name + ".raw"), pattern)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return path


def children(pid: int) -> list[int]:
    """Ids of the processes that `pid` has started."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def request(agent: AgentClient, operation: str, **arguments: Any) -> None:
    """Ask for an operation and do not wait for its answer."""
    agent._message({"op": operation, "args": arguments})


def changed_bundle(module: str, *changes: tuple[str, str]) -> bytes:
    """The agent's code with places of one module changed: (old, new)."""
    return bundle.with_settings(_changed_code(module, *changes))


@functools.cache  # making it takes six times as long as starting an agent
def _changed_code(module: str, *changes: tuple[str, str]) -> bytes:
    modules = bundle.sources(ROOT / "onestor_lib")
    for old, new in changes:
        assert modules[module].count(old) == 1
        modules[module] = modules[module].replace(old, new)
    return bundle.pack(modules)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onestor_lib with what install.sh makes of it: each action would make it anew otherwise."""
    copy = tmp_path_factory.mktemp("library") / "onestor_lib"
    shutil.copytree(ROOT / "onestor_lib", copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(copy, quiet=1)
    (copy / bundle.PREBUILT).write_bytes(bundle.prebuild(copy))
    return copy


@dataclass
class Agents:
    """Starts agents on this machine, and collects what they log."""

    hosts: Hosts
    logged: io.StringIO

    @contextlib.contextmanager
    def start(self, crash_at: str = "") -> Iterator[AgentClient]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(crashpoints.VARIABLE, crash_at)
            # The crash point travels with the code; an agent of this machine has our environment.
            code = changed_bundle(
                "onestor_lib.agent.crashpoints",
                (f'Path("{crashpoints.NOTE}")', f'Path(os.environ["{CRASH_NOTE}"])'),
            )
            patch.setattr(bundle, "build", lambda: code)
            with self.hosts.local_agent() as agent:
                yield agent


@pytest.fixture
def agents(crash_note: Path, monkeypatch: pytest.MonkeyPatch) -> Agents:
    monkeypatch.setenv(CRASH_NOTE, str(crash_note))
    logged = io.StringIO()
    settings = config.Settings(config.TM_ATTRIBUTES, {})
    return Agents(Hosts(settings, Log("test", stderr=logged)), logged)


@pytest.fixture
def agent(agents: Agents) -> Iterator[AgentClient]:
    with agents.start() as started:
        yield started


@pytest.fixture
def payload(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Lets this process start further agents, as an agent does."""
    built = bundle.build()
    monkeypatch.setattr(client, "payload", built)
    return built


@pytest.fixture
def crash_note(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where processes of this test note the crash point they die at: nobody else's file."""
    return tmp_path_factory.mktemp("crash") / "note"


@pytest.fixture
def crashed(crash_note: Path) -> Callable[[], list[str]]:
    """The crash points at which processes have died in this test."""
    return lambda: crash_note.read_text().split() if crash_note.exists() else []


@contextlib.contextmanager
def mounted(directory: Path, megabytes: int, *mkfs: str) -> Iterator[Path]:
    """A new file system in a file, mounted through a loop device."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    image, point = directory / "image", directory / "mounted"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes * MB)
    subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 20 MiB."""
    with mounted(tmp_path_factory.mktemp("small"), 20, "mkfs.ext4", "-q", "-m0") as point:
        yield point


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that can share blocks."""
    with mounted(tmp_path_factory.mktemp("xfs"), 1024, "mkfs.xfs", "-q", "-mreflink=1") as point:
        yield point


@dataclass
class Oned:
    """Answers oned's XML-RPC calls: `answers` by (kind, id), anything else does not exist."""

    answers: dict[tuple[str, int], Any] = field(default_factory=dict)
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def _dispatch(self, method: str, params: tuple[Any, ...]) -> Any:
        kind = method.split(".")[1]
        session, number = (*params, -1)[:2]
        self.calls.append((method, session, number))
        answer = self.answers.get((kind, number))
        if callable(answer):
            answer = answer()
        if answer is None:
            return [False, f"[{method}] Error getting {kind} [{number}].", 0x400]
        return answer if isinstance(answer, list) else [True, answer, 0]


class QuietServer(xmlrpc.server.SimpleXMLRPCServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A driver that was killed leaves a broken connection: no reason to print anything."""


@pytest.fixture
def oned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Oned]:
    """oned's API on a port of its own; this process and its children are told where."""
    api = Oned()
    with QuietServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_instance(api)
        api.url = f"http://127.0.0.1:{server.server_address[1]}/RPC2"
        auth = tmp_path / "one_auth"
        auth.write_text("oneadmin:secret\n")
        monkeypatch.setenv("ONE_XMLRPC", api.url)
        monkeypatch.setenv("ONE_AUTH", str(auth))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield api
        server.shutdown()
        thread.join()
