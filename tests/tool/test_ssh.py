"""Host keys and sign-on keys of the control connection, as ssh-keygen and ssh-agent see them."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import pytest

from onestor_lib.agent import process
from onestor_lib.agent.errors import HostUnreachable
from onestor_lib.frontend import openssh, ssh
from tests.tool.conftest import listing
from tests.waiting import wait_until

ACCEPTING = ("accept-new", "no", "off", "false")
REFUSING = ("yes", "ask", "true", "odd")
OFFERED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")


def keygen(*argv: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *argv], check=True, capture_output=True)


@pytest.fixture(scope="module")
def key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


@pytest.fixture(scope="module")
def other() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


def entry(names: str, key: paramiko.PKey) -> str:
    return f"{names} {key.get_name()} {key.get_base64()}\n"


@dataclass
class KnownHosts:
    """A user's files, and what ssh -G says of one host."""

    directory: Path
    strict: str = "accept-new"
    options: dict[str, list[str]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.directory / "known_hosts"

    def read(self) -> ssh._KnownHosts:
        return ssh._KnownHosts(
            "h1",
            {
                "hostname": ["h1.example"],
                "port": ["22"],
                "stricthostkeychecking": [self.strict],
                "userknownhostsfile": [f"{self.file} {self.file}2"],
                "globalknownhostsfile": [str(self.directory / "global")],
                **self.options,
            },
        )

    def check(self, key: paramiko.PKey) -> None:
        self.read().check(key)

    def refuses(self, key: paramiko.PKey, cause: str) -> None:
        before = {name: (self.directory / name).read_bytes() for name in listing(self.directory)}
        with pytest.raises(HostUnreachable, match=f"^connect h1: its host key {cause}"):
            self.check(key)
        after = {name: (self.directory / name).read_bytes() for name in listing(self.directory)}
        assert after == before


@pytest.fixture
def known(tmp_path: Path) -> KnownHosts:
    (tmp_path / ".ssh").mkdir()
    return KnownHosts(tmp_path / ".ssh")


class TestUnknownKeys:
    @pytest.mark.parametrize("strict", REFUSING)
    def test_refused(self, known: KnownHosts, key: paramiko.PKey, strict: str) -> None:
        known.strict = strict
        files = f"{known.file} or {known.file}2 or {known.directory}/global"
        known.refuses(key, f"is not in {files}$")
        assert listing(known.directory) == []

    def test_refused_when_nothing_is_said(self, known: KnownHosts, key: paramiko.PKey) -> None:
        files = {"userknownhostsfile": [str(known.file)]}
        with pytest.raises(HostUnreachable, match="is not in"):
            ssh._KnownHosts("h1", files).check(key)

    @pytest.mark.parametrize("strict", ACCEPTING)
    @pytest.mark.parametrize("before", [None, "", "# kept as it is\n", "h2 ssh-odd x"])
    def test_accepted_and_one_more_line(
        self, known: KnownHosts, key: paramiko.PKey, strict: str, before: str | None
    ) -> None:
        known.strict = strict
        mode = 0o600
        if before is not None:
            known.file.write_text(before)
            mode = 0o644
            known.file.chmod(mode)
        for _ in range(2):
            known.check(key)
        start = "" if not before or before.endswith("\n") else "\n"
        assert known.file.read_text() == (before or "") + start + entry("h1.example", key)
        assert known.file.stat().st_mode & 0o777 == mode
        known.strict = "yes"
        known.check(key)

    def test_a_directory_that_is_not_there_is_made(
        self, known: KnownHosts, key: paramiko.PKey
    ) -> None:
        known.directory.rmdir()
        known.check(key)
        assert known.file.read_text() == entry("h1.example", key)
        assert known.directory.stat().st_mode & 0o777 == 0o700

    def test_a_file_that_cannot_be_written_stops_nothing(
        self, known: KnownHosts, key: paramiko.PKey
    ) -> None:
        known.options["userknownhostsfile"] = ["/proc/no/known_hosts"]
        known.check(key)

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"port": ["2222"]}, "[h1.example]:2222"),
            ({"hostkeyalias": ["the-first"]}, "the-first"),
            ({"hostkeyalias": ["the-first"], "port": ["2222"]}, "the-first"),
        ],
    )
    def test_the_name_it_gets(
        self, known: KnownHosts, key: paramiko.PKey, options: dict[str, list[str]], name: str
    ) -> None:
        known.options = options
        known.check(key)
        assert known.file.read_text() == entry(name, key)
        known.strict = "yes"
        known.check(key)

    def test_many_at_once_lose_no_line(self, known: KnownHosts) -> None:
        lines = [f"h{number} ssh-odd key" for number in range(8)]
        threads = [
            threading.Thread(target=ssh._append_line, args=(known.file, line)) for line in lines * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(known.file.read_text().splitlines()) == lines

    def test_NONE_is_no_file(self, known: KnownHosts, key: paramiko.PKey) -> None:
        known.options = {"userknownhostsfile": ["none"], "globalknownhostsfile": ["none"]}
        known.check(key)
        assert listing(known.directory) == []
        known.strict = "yes"
        known.refuses(key, "is not in")

    def test_only_a_file_of_the_user_gets_lines(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey
    ) -> None:
        """The global file is the administrator's (ssh_config(5), UpdateHostKeys and the like)."""
        (known.directory / "global").write_text(entry("h2", other))
        known.options = {"userknownhostsfile": ["none"]}
        known.check(key)
        assert (known.directory / "global").read_text() == entry("h2", other)


class TestKnownKeys:
    @pytest.mark.parametrize("strict", ACCEPTING + REFUSING)
    def test_a_key_that_is_known(self, known: KnownHosts, key: paramiko.PKey, strict: str) -> None:
        known.strict = strict
        for name in ("known_hosts", "known_hosts2", "global"):
            file = known.directory / name
            file.write_text(
                f"not a line\n\n# {entry('h1.example', key)}" + entry("h1.example", key)
            )
            before = file.read_text()
            known.check(key)
            assert file.read_text() == before
            file.unlink()
        assert listing(known.directory) == []

    @pytest.mark.parametrize("strict", ACCEPTING + REFUSING)
    @pytest.mark.parametrize("name", ["known_hosts", "known_hosts2", "global"])
    def test_a_changed_key_is_refused_always(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey, strict: str, name: str
    ) -> None:
        known.strict = strict
        (known.directory / name).write_text(entry("h1.example", other))
        known.refuses(key, "is not the one in .*: it may not be that host")

    def test_a_key_of_another_type_is_a_changed_key(
        self, known: KnownHosts, key: paramiko.PKey
    ) -> None:
        known.file.write_text(entry("h1.example", paramiko.RSAKey.generate(2048)))
        known.refuses(key, "is not the one in")

    def test_the_type_is_part_of_the_key(self, known: KnownHosts, key: paramiko.PKey) -> None:
        known.file.write_text(f"h1.example ssh-ed25519 {key.get_base64()}\n")
        known.refuses(key, "is not the one in")

    def test_one_of_several(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey
    ) -> None:
        known.file.write_text(entry("h1.example", other) + entry("h0,h1.example", key))
        known.check(key)
        known.check(other)

    @pytest.mark.parametrize(
        ("names", "matches"),
        [
            ("h?.example", True),
            ("*.example", True),
            ("*", True),
            ("h2,h1*", True),
            ("*,!h2.example", True),
            ("*,!h1.example", False),
            ("!h1.example,*", False),
            ("!h1.example", False),
            ("h1", False),
            ("h1.example.org", False),
        ],
    )
    def test_patterns(
        self,
        known: KnownHosts,
        key: paramiko.PKey,
        other: paramiko.PKey,
        names: str,
        matches: bool,
    ) -> None:
        known.strict = "yes"
        known.file.write_text(entry(names, key))
        if matches:
            known.check(key)
            known.refuses(other, "is not the one in")
        else:
            known.refuses(key, "is not in")

    @pytest.mark.parametrize("port", ["22", "2222"])
    def test_hashed_names(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey, port: str
    ) -> None:
        known.options = {"port": [port]}
        name = "h1.example" if port == "22" else f"[h1.example]:{port}"
        known.file.write_text(entry(name, key) + entry("h2", other))
        keygen("-H", "-f", known.file)
        (known.directory / "known_hosts.old").unlink()
        assert "example" not in known.file.read_text()
        known.check(key)
        known.refuses(other, "is not the one in")

    def test_another_port_is_another_host(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey
    ) -> None:
        known.strict = "yes"
        known.file.write_text(entry("[h1.example]:2222", key))
        known.refuses(key, "is not in")
        known.options = {"port": ["2222"]}
        known.check(key)
        known.refuses(other, "is not the one in")

    @pytest.mark.parametrize("port", ["22", "2222"])
    def test_an_alias_has_no_port(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey, port: str
    ) -> None:
        known.strict = "yes"
        known.options = {"port": [port], "hostkeyalias": ["the-first"]}
        known.file.write_text(entry("the-first", key) + entry("h1.example", other))
        known.check(key)
        known.refuses(other, "is not the one in")


class TestMarkers:
    @pytest.mark.parametrize("strict", ACCEPTING + REFUSING)
    @pytest.mark.parametrize("names", ["h1.example", "*"])
    @pytest.mark.parametrize("plain", ["", "before", "behind", "in another file"])
    def test_a_revoked_key_is_refused_always(
        self, known: KnownHosts, key: paramiko.PKey, strict: str, names: str, plain: str
    ) -> None:
        known.strict = strict
        revoked, line = "@revoked " + entry(names, key), entry("h1.example", key)
        known.file.write_text(
            (line if plain == "before" else "") + revoked + (line if plain == "behind" else "")
        )
        if plain == "in another file":
            (known.directory / "global").write_text(line)
        known.refuses(key, "is revoked")

    def test_a_revoked_key_of_others(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey
    ) -> None:
        known.strict = "yes"
        known.file.write_text(
            "@revoked " + entry("h2", key) + "@revoked " + entry("*", other) + entry("h1*", key)
        )
        known.check(key)

    @pytest.mark.parametrize("names", ["h1.example", "*"])
    def test_the_key_of_an_authority_is_no_host_key(
        self, known: KnownHosts, key: paramiko.PKey, names: str
    ) -> None:
        known.strict = "yes"
        known.file.write_text("@cert-authority " + entry(names, key))
        known.refuses(key, "is not in")


class TestPreference:
    def test_what_is_known_is_asked_for_first(self, known: KnownHosts, key: paramiko.PKey) -> None:
        known.file.write_text(entry("h1.example", key))
        kind = key.get_name()
        rest = tuple(each for each in OFFERED if each != kind)
        assert known.read().prefer(OFFERED) == (kind, *rest)

    def test_an_rsa_key_signs_in_other_ways(self, known: KnownHosts) -> None:
        known.file.write_text("h1.example ssh-rsa AAAA\n")
        expected = (*OFFERED[2:], *OFFERED[:2])
        assert known.read().prefer(OFFERED) == expected

    def test_nothing_is_known(self, known: KnownHosts, key: paramiko.PKey) -> None:
        known.file.write_text("@revoked " + entry("h1.example", key) + entry("h2", key))
        assert known.read().prefer(OFFERED) == OFFERED


def make_key(file: Path, kind: str, *argv: str, passphrase: str = "") -> str:
    """A key pair; the public key in base64."""
    # The rounds are against whoever guesses the passphrase: the default takes a while.
    keygen("-t", kind, "-N", passphrase, "-a", "1", "-f", file, *argv)
    return file.with_name(f"{file.name}.pub").read_text().split()[1]


KINDS = [
    ("ed25519", ()),
    ("ecdsa", ("-b", "256")),
    ("ecdsa", ("-b", "521")),
    ("ecdsa", ("-m", "PEM")),
    ("rsa", ("-b", "2048")),
    ("rsa", ("-b", "2048", "-m", "PEM")),
]


def odd_key() -> str:
    """A key file of a type that nobody has heard of."""

    def string(value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + value

    public = string(b"ssh-odd") + string(b"x" * 32)
    private = bytes(8) + public + string(b"x" * 64) + string(b"comment")
    private += bytes(range(1, 9 - len(private) % 8))
    content = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + struct.pack(">I", 1)
    text = b64encode(content + string(public) + string(private)).decode()
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}\n-----END OPENSSH PRIVATE KEY-----\n"


class TestKeyFiles:
    @pytest.mark.parametrize(("kind", "options"), KINDS)
    def test_each_type(self, tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
        public = make_key(tmp_path / "key", kind, *options)
        loaded = ssh._load(str(tmp_path / "key"))
        assert loaded is not None and loaded.get_base64() == public
        assert loaded.can_sign()

    @pytest.mark.parametrize(("kind", "options"), KINDS)
    def test_an_encrypted_key_is_passed_over(
        self, tmp_path: Path, kind: str, options: tuple[str, ...]
    ) -> None:
        make_key(tmp_path / "key", kind, *options, passphrase="secret")
        assert ssh._load(str(tmp_path / "key")) is None

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"\n", b"garbage", b"\xff\xfe\0", bytes(5000), b"-----BEGIN",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
            b"-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            odd_key().encode(),
        ],
    )  # fmt: skip
    def test_what_is_no_key_we_know(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "key").write_bytes(content)
        assert ssh._load(str(tmp_path / "key")) is None

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_half_a_key(self, tmp_path: Path, kind: str) -> None:
        file = tmp_path / "key"
        make_key(file, kind)
        lines = file.read_text().splitlines(keepends=True)
        for cut in range(1, len(lines) // 2 + 1):
            file.write_text("".join([*lines[:cut], lines[-1]]))
            assert ssh._load(str(file)) is None

    def test_public_keys_directories_and_nothing(self, tmp_path: Path) -> None:
        make_key(tmp_path / "key", "ed25519")
        for name in ("key.pub", "missing", "."):
            assert ssh._load(str(tmp_path / name)) is None


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    where = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
    try:
        wait_until(where.exists)
        yield
    finally:
        agent.kill()
        agent.wait()


def ssh_add(file: Path) -> None:
    subprocess.run(["ssh-add", "-q", file], check=True, capture_output=True)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
class TestKeysToSignOnWith:
    @pytest.fixture(autouse=True)
    def no_agent(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield
        gc.collect()  # paramiko leaves its connection to the agent to the garbage collector

    @staticmethod
    def keys(*files: Path, only: str = "no") -> list[str]:
        options = {"identityfile": [str(file) for file in files], "identitiesonly": [only]}
        return [key.get_base64() for key in ssh._keys(options)]

    def test_files_in_their_order_without_those_that_are_of_no_use(self, tmp_path: Path) -> None:
        kinds = (("rsa", "-b", "2048"), ("ed25519",), ("ecdsa",))
        publics = [make_key(tmp_path / kind, kind, *size) for kind, *size in kinds]
        make_key(tmp_path / "encrypted", "ed25519", passphrase="secret")
        (tmp_path / "garbage").write_text("x")
        names = ("missing", "rsa", "encrypted", "ed25519", "garbage", "ecdsa")
        assert self.keys(*(tmp_path / name for name in names)) == publics
        assert self.keys(*(tmp_path / name for name in names), only="yes") == publics
        assert self.keys() == []

    def test_a_home_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert self.keys(Path("~/key")) == []
        public = make_key(tmp_path / "key", "ed25519")
        assert self.keys(Path("~/key")) == [public]

    def test_the_agent_s_keys_come_first_and_none_twice(
        self, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue("ssh_agent")
        mine, both, agents = (
            make_key(tmp_path / name, "ed25519") for name in ("mine", "both", "agents")
        )
        for name in ("both", "agents"):
            ssh_add(tmp_path / name)
        files = [tmp_path / "mine", tmp_path / "both"]
        assert self.keys(*files) == [both, agents, mine]
        assert self.keys(*files, only="yes") == [both, mine]
        (tmp_path / "both").unlink()  # the agent has it: the public half is enough
        assert self.keys(*files, only="yes") == [both, mine]

    def test_an_agent_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
        public = make_key(tmp_path / "key", "ed25519")
        assert self.keys(tmp_path / "key") == [public]


class TestPromptSocket:
    @staticmethod
    def answered(connect: Callable[[socket.socket], socket.socket]) -> float:
        """Seconds until an answer in two pieces is there, from a server as sshd is at first.

        Nagle's algorithm holds the second piece back until the first is acknowledged.
        """
        with socket.create_server(("127.0.0.1", 0)) as server:

            def serve() -> None:
                there, _ = server.accept()
                with there:
                    for _ in range(6):  # the kernel acknowledges the first packets at once anyway
                        there.recv(100)
                        there.send(b"a" * 50)
                        there.send(b"b" * 50)
                    there.recv(100)

            threading.Thread(target=serve, daemon=True).start()
            taken = []
            with connect(socket.create_connection(server.getsockname())) as here:
                for _ in range(6):
                    begin = time.perf_counter()
                    here.send(b"?")
                    left = 100
                    while left:
                        left -= len(here.recv(left))
                    taken.append(time.perf_counter() - begin)
        return max(taken)

    def test_an_answer_in_pieces_does_not_wait_for_a_delayed_acknowledgement(self) -> None:
        assert self.answered(lambda connected: connected) > 0.03, "else there is nothing to gain"
        # Twice: this machine may be busy just now.
        assert min(self.answered(ssh._PromptSocket) for _ in range(2)) < 0.03

    def test_it_is_a_socket_like_any_other(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            plain = socket.create_connection(server.getsockname())
            there, _ = server.accept()
            with there, ssh._PromptSocket(plain) as here:
                assert plain.fileno() == -1, "it has one owner"
                here.settimeout(0.01)
                with pytest.raises(socket.timeout):
                    here.recv(1)
                there.close()
                assert here.recv(1) == b""


def test_paramiko_is_missing_in_one_place_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is imported in a thread, too, which has nothing to say about that on oned's stderr."""
    monkeypatch.setitem(sys.modules, "paramiko", None)
    monkeypatch.setattr(openssh, "resolve", lambda host: {"userknownhostsfile": ["none"]})
    with pytest.raises(ImportError):
        ssh.connect("h1", python="python3", timeout=1)
    assert capfd.readouterr().err == ""


class TestOddFiles:
    def test_no_file_at_all(self, known: KnownHosts, key: paramiko.PKey) -> None:
        known.options = {"userknownhostsfile": ["none"], "globalknownhostsfile": ["none"]}
        known.check(key)
        known.strict = "yes"
        known.refuses(key, "is not in any file")

    def test_a_device_is_left_alone(self, known: KnownHosts, key: paramiko.PKey) -> None:
        before = os.stat("/dev/null").st_mode
        known.options = {"userknownhostsfile": ["/dev/null"]}
        known.check(key)
        assert os.stat("/dev/null").st_mode == before
        assert not os.path.exists("/dev/.null.onestor-lock")

    def test_another_port_and_the_name_without_it(
        self, known: KnownHosts, key: paramiko.PKey, other: paramiko.PKey
    ) -> None:
        """As ssh(1): the same key counts, another one belongs to the other port's server."""
        known.options = {"port": ["2222"]}
        known.strict = "yes"
        known.file.write_text(entry("h1.example", key))
        known.check(key)
        known.refuses(other, "is not in")

    def test_A9_a_look_up_that_fails_is_no_unknown_host(
        self, known: KnownHosts, key: paramiko.PKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known.file.write_text(entry("h1.example", key))
        result = process.Result(("ssh-keygen",), -9, b"", b"", False, 0.0)
        monkeypatch.setattr(process, "run", lambda argv, **options: result)
        with pytest.raises(HostUnreachable, match="cannot be looked up"):
            known.check(key)
