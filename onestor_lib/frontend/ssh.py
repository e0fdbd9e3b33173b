"""The control connection to a host: paramiko, with OpenSSH's configuration and host keys.

The only module that imports paramiko, when the first host is contacted. Host keys are those of
the files ssh(1) uses, and StrictHostKeyChecking means what ssh_config(5) says; a key that differs
from the known one is refused always. Only a key accepted for the first time is written, as one
appended line: paramiko's own writer would rewrite the whole file under other processes' hands.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onestor_lib.agent import client, locks
from onestor_lib.agent.errors import HostUnreachable, OnestorError
from onestor_lib.frontend import openssh

if TYPE_CHECKING:
    import paramiko

_STEP = "connect"
_AUTHENTICATE = 30.0  # seconds
_RETRY_FOR = 20.0  # seconds: sshd drops connections beyond MaxStartups, contract section 7


class ControlStream:
    """The stream of an agent over a paramiko channel (see ``onestor_lib.agent.client.Stream``)."""

    def __init__(self, connection: paramiko.SSHClient, channel: paramiko.Channel) -> None:
        self._connection, self._channel = connection, channel
        self._said = bytearray()

    def send(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        self._channel.settimeout(timeout)
        view = memoryview(data)
        while view:
            try:
                view = view[self._channel.send(bytes(view[: 1 << 18])) :]
            except socket.timeout:  # not a TimeoutError before Python 3.10
                raise TimeoutError from None

    def receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            self._listen()
            # Wakes up now and then, because error output alone does not wake recv().
            self._channel.settimeout(min(1.0, max(0.01, deadline - time.monotonic())))
            try:
                return self._channel.recv(1 << 16)
            except socket.timeout:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None

    def last_words(self) -> str:
        with contextlib.suppress(Exception):
            self._channel.status_event.wait(5.0)
        self._listen()
        lines = self._said.decode("utf-8", "replace").strip().splitlines()[-3:]
        said = "; ".join(line.strip() for line in lines)
        if self._channel.exit_status_ready():
            how = f"the agent ended with status {self._channel.recv_exit_status()}"
        else:
            how = "the connection was lost"
        return f"{said} ({how})" if said else how

    def close(self) -> None:
        self._connection.close()

    def _listen(self) -> None:
        while self._channel.recv_stderr_ready():
            self._said += self._channel.recv_stderr(1 << 16)
            del self._said[: -(16 << 10)]


def connect(host: str, *, python: str, timeout: float) -> ControlStream:
    """Connect to ``host`` and start an agent there.

    ``timeout`` bounds, in seconds, the wait for the connection to be accepted. Connections that
    sshd drops before authentication are tried again for a while. Raises
    :class:`HostUnreachable` naming host and cause.
    """
    import paramiko

    options = openssh.resolve(host)
    deadline = time.monotonic() + _RETRY_FOR
    pause = 0.1
    while True:
        try:
            connection = _authenticated(host, options, timeout)
            break
        except (EOFError, ConnectionResetError, paramiko.SSHException) as error:
            final = isinstance(
                error, (paramiko.AuthenticationException, paramiko.BadHostKeyException)
            )
            if final or time.monotonic() + pause > deadline:
                raise HostUnreachable(_STEP, _reason(error), host=host) from error
        except OSError as error:
            raise HostUnreachable(_STEP, _reason(error), host=host) from error
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, 2.0)
    try:
        channel = connection.get_transport().open_session(timeout=timeout)  # type: ignore[union-attr]
        channel.exec_command(client.shell_command(python))
    except (paramiko.SSHException, OSError, EOFError) as error:
        connection.close()
        raise HostUnreachable("start the agent", _reason(error), host=host) from error
    return ControlStream(connection, channel)


def _authenticated(host: str, options: dict[str, list[str]], timeout: float) -> paramiko.SSHClient:
    import paramiko

    name = options.get("hostname", [host])[0]
    port = int(options.get("port", ["22"])[0])
    known_as = options.get("hostkeyalias", [name])[0]
    files = [
        os.path.expanduser(file)
        for option in ("userknownhostsfile", "globalknownhostsfile")
        for value in options.get(option, [])
        for file in value.split()
    ]
    connection = paramiko.SSHClient()
    for file in files:
        with contextlib.suppress(OSError):
            connection.load_system_host_keys(file)
    strict = options.get("stricthostkeychecking", ["ask"])[0]
    connection.set_missing_host_key_policy(
        _Policy(strict, files, _revoked(files))  # type: ignore[arg-type]
    )
    keys = [os.path.expanduser(file) for file in options.get("identityfile", [])]
    connection.connect(
        known_as,
        port,
        username=options.get("user", [""])[0] or None,
        key_filename=[file for file in keys if os.access(file, os.R_OK)],  # type: ignore[arg-type]
        look_for_keys=False,
        allow_agent=options.get("identitiesonly", ["no"])[0] != "yes",
        sock=_socket(name, port, options, timeout),
        timeout=timeout,
        banner_timeout=timeout,
        auth_timeout=_AUTHENTICATE,
    )
    return connection


def _socket(name: str, port: int, options: dict[str, list[str]], timeout: float) -> socket.socket:
    """The connection below ssh: TCP, or the program that ssh_config(5) names as the way there."""
    import paramiko

    command = options.get("proxycommand", ["none"])[0]
    jump = options.get("proxyjump", ["none"])[0]
    if command == "none" and jump != "none":
        command = f"{openssh.SSH} -oBatchMode=yes -W [{name}]:{port} {jump}"
    if command != "none":
        # ssh -G has put host and port in; the administrator's own command, as for ssh itself.
        return paramiko.ProxyCommand(command)  # type: ignore[return-value]
    connected = socket.create_connection((name, port), timeout)
    # Without it each small message takes 45 ms instead of 2.4 ms (docs/design.md, section 2).
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class _Policy:
    """What to do with a host whose key is not known (StrictHostKeyChecking, ssh_config(5))."""

    def __init__(self, strict: str, files: Sequence[str], revoked: set[str]) -> None:
        self._strict, self._files, self._revoked = strict, files, revoked

    def missing_host_key(
        self, connection: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        import paramiko

        # "ask" cannot ask: there is nobody. "off" and "no" are the same, "true" is "yes".
        if key.get_base64() in self._revoked:
            raise paramiko.SSHException(f"the host key of {hostname} is revoked")
        if self._strict not in ("accept-new", "no", "off", "false"):
            raise _UnknownHost(f"the host key of {hostname} is not in {' or '.join(self._files)}")
        _remember(Path(self._files[0]), f"{hostname} {key.get_name()} {key.get_base64()}\n")


class _UnknownHost(OSError):
    """An unknown host key where ssh_config(5) demands a known one: trying again does not help."""


def _remember(file: Path, line: str) -> None:
    with contextlib.suppress(OSError, OnestorError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = file.parent / f".{file.name}.onestor-lock"
        with locks.exclusive(lock, purpose="note a host key", timeout=5.0):
            if not file.exists() or line not in file.read_text(encoding="utf-8"):
                with file.open("a", encoding="utf-8") as known:
                    known.write(line)
                file.chmod(0o600)


def _revoked(files: Sequence[str]) -> set[str]:
    """Keys marked ``@revoked`` (sshd(8), known_hosts), which paramiko passes over."""
    keys = set()
    for file in files:
        with contextlib.suppress(OSError):
            for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split()
                if words[:1] == ["@revoked"] and len(words) > 3:
                    keys.add(words[3])
    return keys


def _reason(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer within the time limit"
    return str(error) or type(error).__name__
