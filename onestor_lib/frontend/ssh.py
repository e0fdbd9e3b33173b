"""The control connection to a host: paramiko, with OpenSSH's configuration and host keys.

The only module that imports paramiko, when the first host is contacted. ``ssh -G`` says what is
configured for a host, ``ssh-keygen -F`` which of its keys are known: so names with wildcards or
hashes, aliases, ports, revoked keys and jump hosts mean what they mean for ssh(1). A key that
differs from a known one is refused always, whatever StrictHostKeyChecking says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onestor_lib.agent import client, locks, process
from onestor_lib.agent.errors import HostUnreachable, OnestorError
from onestor_lib.frontend import openssh, retry

if TYPE_CHECKING:
    import paramiko

_STEP = "connect"
_AUTHENTICATE = 30.0  # seconds
_ASK_AGENT = 10.0  # seconds


class ControlStream:
    """The stream of an agent over a paramiko channel (see ``onestor_lib.agent.client.Stream``)."""

    def __init__(self, link: _Link, channel: paramiko.Channel) -> None:
        self._link, self._channel = link, channel
        self._said = bytearray()

    def send(self, data: bytes | bytearray | memoryview, timeout: float) -> None:
        self._channel.settimeout(timeout)
        view = memoryview(data)
        while view:
            try:
                view = view[self._channel.send(bytes(view[: 1 << 18])) :]
            except socket.timeout:  # not a TimeoutError before Python 3.10
                raise TimeoutError from None
            except EOFError as error:  # paramiko's word for a socket that is gone
                raise ConnectionResetError("the connection was lost") from error

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
        said = process.last_lines(self._said)
        if self._channel.exit_status_ready():
            how = f"the agent ended with status {self._channel.recv_exit_status()}"
        else:
            how = "the connection was lost"
        return f"{said} ({how})" if said else how

    def close(self) -> None:
        self._link.close()

    def _listen(self) -> None:
        while self._channel.recv_stderr_ready():
            self._said += self._channel.recv_stderr(1 << 16)
            del self._said[: -(16 << 10)]


def connect(
    host: str, *, python: str, timeout: float, forward_agent: bool = False
) -> ControlStream:
    """Connect to ``host`` and start an agent there.

    ``timeout`` bounds, in seconds, each wait for the other side. Connections that sshd drops
    before authentication are tried again for a while. ``forward_agent`` lends the agent our
    ssh-agent, for work that itself connects to another host. Raises :class:`HostUnreachable`.
    """
    # While ssh and ssh-keygen look up what is configured and known: it takes longer than both.
    # A signal that ends us in an import may leave its lock behind: nobody must wait for the other.
    threading.Thread(target=_import_paramiko, daemon=True).start()
    options = openssh.resolve(host)
    known = _KnownHosts(host, options)
    import paramiko  # waits for the thread

    # Its messages, with tracebacks, would go to stderr, which is oned's (contract section 1.5).
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    link = _connected(host, options, known, timeout)
    try:
        known.check(link.transport.get_remote_server_key())
        _authenticate(link.transport, host, options)
        # exec_command() itself waits for ever: what closes the connection ends that wait.
        watchdog = threading.Timer(timeout, link.transport.close)
        watchdog.start()
        try:
            channel = link.transport.open_session(timeout=timeout)
            if forward_agent and openssh.agent_answers():
                paramiko.agent.AgentRequestHandler(channel)
            channel.exec_command(client.shell_command(python))
        finally:
            watchdog.cancel()
    except (paramiko.SSHException, OSError, EOFError) as error:
        link.close()
        raise HostUnreachable(client.START, _reason(error), host=host) from error
    except BaseException:
        link.close()
        raise
    return ControlStream(link, channel)


def _import_paramiko() -> None:
    with contextlib.suppress(ImportError):  # raised again where it is needed
        import paramiko  # noqa: F401


class _PromptSocket(socket.socket):
    """Acknowledges what has come before it waits for more.

    Until a session begins, sshd leaves Nagle's algorithm on: its answer to the request for one
    waits for our acknowledgement of what it sent just before (its host keys), and the kernel puts
    that off for 40 ms, as there is nothing to send it along with.
    """

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(fileno=connected.detach())

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        # Not a lasting option: the kernel goes back to its own judgement (tcp(7)).
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().recv(bufsize, flags)


class _Link:
    """A connection to an ssh server up to the exchange of keys, and what it goes through."""

    def __init__(self, host: str, options: dict[str, list[str]], timeout: float) -> None:
        """Connect: by TCP, or through the program that ssh_config(5) names as the way there."""
        import paramiko

        name, port = options.get("hostname", [host])[0], options.get("port", ["22"])[0]
        argv = _way(host, name, port, options, timeout)
        self.program = process.Connection(argv) if argv else None
        if self.program:
            connected = self.program.socket
        else:
            connected = _PromptSocket(socket.create_connection((name, int(port)), timeout))
            # Without it each small message takes 45 ms, not 2.4 ms (docs/design.md, section 2).
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = paramiko.Transport(connected)
        self.transport.banner_timeout = timeout
        self.transport.handshake_timeout = timeout

    def negotiate(self, known: _KnownHosts, timeout: float) -> None:
        """Exchange keys; the host is not yet who it says it is."""
        security = self.transport.get_security_options()
        security.key_types = known.prefer(security.key_types)
        self.transport.start_client(timeout=max(timeout, _AUTHENTICATE))

    def close(self) -> str:
        """End the connection; the last words of the program it went through."""
        self.transport.close()
        return self.program.end() if self.program else ""


def _connected(
    host: str, options: dict[str, list[str]], known: _KnownHosts, timeout: float
) -> _Link:
    import paramiko

    pauses = retry.pauses()
    while True:
        try:
            link = _Link(host, options, timeout)
        except OSError as error:
            raise HostUnreachable(_STEP, _reason(error), host=host) from error
        try:
            link.negotiate(known, timeout)
            return link
        except (OSError, EOFError, paramiko.SSHException) as error:
            words = link.close()
            dropped = not link.program or openssh.tells_of_drop(words)
            if not dropped or not retry.after(pauses):
                raise HostUnreachable(_STEP, words or _reason(error), host=host) from error
        except BaseException:
            link.close()
            raise


def _way(
    host: str, name: str, port: str, options: dict[str, list[str]], timeout: float
) -> list[str]:
    """The command that leads to the host (ProxyJump, ProxyCommand); nothing for plain TCP."""
    jumps = options.get("proxyjump", ["none"])[0]
    command = options.get("proxycommand", ["none"])[0]
    if jumps != "none":
        *before, last = (jump.replace("ssh://", "") for jump in jumps.split(","))
        through = ["-J", ",".join(before)] if before else []
        argv = [*openssh.base_argv(timeout), *through, "-W", f"[{name}]:{port}"]
        return [*argv, "--", f"ssh://{last}"]
    if command == "none":
        return []
    # The administrator's own command line, run as ssh runs it: by a shell, tokens filled in.
    tokens = {"h": name, "p": port, "r": options.get("user", [""])[0], "n": host}
    command = re.sub(
        "%([hprn%])",
        lambda token: shlex.quote(tokens[token[1]]) if token[1] in tokens else "%",
        command,
    )
    return ["/bin/sh", "-c", f"exec {command}"]


class _KnownHosts:
    """What the known_hosts files say of one host (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

    def __init__(self, host: str, options: dict[str, list[str]]) -> None:
        name, port = options.get("hostname", [host])[0], options.get("port", ["22"])[0]
        alias = options.get("hostkeyalias", [""])[0]
        self._host = host
        self._name = alias or (name if port == "22" else f"[{name}]:{port}")
        self._strict = options.get("stricthostkeychecking", ["ask"])[0]
        self._own = _files(options, "userknownhostsfile")
        self._files = self._own + _files(options, "globalknownhostsfile")
        self._revoked: set[str] = set()
        self._keys = self._look_up(self._name)
        # ssh(1), too, is content with a key that is known under the name without the port.
        bare = not self._keys and self._name.startswith("[")
        self._accepted = self._look_up(name) if bare else self._keys

    def prefer(self, key_types: Sequence[str]) -> tuple[str, ...]:
        """Key types in the order to ask for them: those we know a key of come first."""
        known = {kind for kind, _ in self._accepted}
        if "ssh-rsa" in known:
            known |= {"rsa-sha2-512", "rsa-sha2-256"}  # other signatures by the same key
        return tuple(sorted(key_types, key=lambda kind: kind not in known))

    def check(self, key: paramiko.PKey) -> None:
        """Raise :class:`HostUnreachable` unless the host may be who it says it is."""
        kind, text = key.get_name(), key.get_base64()
        if text in self._revoked:
            raise self._refusal("its host key is revoked")
        if (kind, text) in self._accepted:
            return
        files = " or ".join(self._files) or "any file"
        if self._keys:
            raise self._refusal(f"its host key is not the one in {files}: it may not be that host")
        # "ask" cannot ask: there is nobody.
        if self._strict not in ("accept-new", "no", "off", "false"):
            raise self._refusal(f"its host key is not in {files}")
        if self._own:
            _append_line(Path(self._own[0]), f"{self._name} {kind} {text}")

    def _refusal(self, cause: str) -> HostUnreachable:
        return HostUnreachable(_STEP, cause, host=self._host)

    def _look_up(self, name: str) -> set[tuple[str, str]]:
        """Type and text of each key known for ``name``; revoked ones are noted on the way."""
        keys = set()
        for file in self._files:
            if not os.path.isfile(file) or not os.access(file, os.R_OK):
                continue
            argv = ["ssh-keygen", "-F", name, "-f", file]
            found = process.run(argv, timeout=10.0, step="look up the host key")
            if found.status not in (0, 1):  # 1: there is none
                raise self._refusal(f"its host key cannot be looked up: {found.reason}")
            for line in found.stdout.decode("utf-8", "replace").splitlines():
                words = line.split()
                if words[:1] == ["@revoked"] and len(words) > 3:
                    self._revoked.add(words[3])
                elif len(words) > 2 and not words[0].startswith(("#", "@")):
                    keys.add((words[1], words[2]))
        return keys


def _files(options: dict[str, list[str]], option: str) -> list[str]:
    """The files an option names; "none" is none."""
    words = (file for value in options.get(option, []) for file in value.split())
    return [os.path.expanduser(file) for file in words if file != "none"]


def _append_line(file: Path, line: str) -> None:
    """Add a line to a file that other processes append to, too; failing is no failure."""
    if file.exists() and not file.is_file():
        return  # /dev/null is a popular one
    with contextlib.suppress(OSError, OnestorError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = file.parent / f".{file.name}.onestor-lock"
        with locks.exclusive(lock, purpose="note a host key", timeout=5.0):
            before = file.read_bytes() if file.exists() else b""
            added = line.encode("utf-8")
            if added in before.splitlines():
                return
            start = b"" if not before or before.endswith(b"\n") else b"\n"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with open(os.open(file, flags, 0o600), "ab") as known:
                known.write(start + added + b"\n")


def _authenticate(transport: paramiko.Transport, host: str, options: dict[str, list[str]]) -> None:
    """Sign on with a key of the ssh-agent or of the configured files; raises HostUnreachable."""
    import paramiko

    user = options.get("user", [""])[0]
    transport.auth_timeout = _AUTHENTICATE
    refused = 0
    for key in _keys(options):
        try:
            if not transport.auth_publickey(user, key):
                return
            raise HostUnreachable(_STEP, "a key alone is not enough to sign on", host=host)
        except paramiko.BadAuthenticationType as error:
            raise HostUnreachable(_STEP, f"no sign-on by key: {error}", host=host) from error
        except paramiko.AuthenticationException as error:
            refused += 1
            if not transport.is_active() or "timeout" in str(error).lower():
                cause = f"the host ended the sign-on at key {refused} (MaxAuthTries?): {error}"
                raise HostUnreachable(_STEP, cause, host=host) from error
    tried = f"none of {refused} keys is accepted" if refused else "there is no key to sign on with"
    raise HostUnreachable(_STEP, f"permission denied for {user}: {tried}", host=host)


def _keys(options: dict[str, list[str]]) -> Iterator[paramiko.PKey]:
    """Keys in ssh(1)'s order: the agent's, those of configured files first; then the files'.

    With IdentitiesOnly none but those of the configured files.
    """
    files = [os.path.expanduser(file) for file in options.get("identityfile", [])]
    configured = {_public(file) for file in files} | {_public(f"{file}.pub") for file in files}
    only = options.get("identitiesonly", ["no"])[0] == "yes"
    offered = set()
    of_agent = _agent_keys(options)
    of_agent.sort(key=lambda key: key.get_base64() not in configured)
    for key in of_agent:
        if not only or key.get_base64() in configured:
            offered.add(key.get_base64())
            yield key
    for file in files:
        key_of_file = _load(file) if os.access(file, os.R_OK) else None
        if key_of_file is not None and key_of_file.get_base64() not in offered:
            yield key_of_file


def _agent_keys(options: dict[str, list[str]]) -> list[paramiko.PKey]:
    """The keys of the ssh-agent that IdentityAgent or SSH_AUTH_SOCK names; none if it is silent."""
    import paramiko

    socket_path = options.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if socket_path == "none":
        return []
    if socket_path != "SSH_AUTH_SOCK":
        os.environ["SSH_AUTH_SOCK"] = os.path.expanduser(socket_path)  # where paramiko looks
    found: list[paramiko.PKey] = []

    def ask() -> None:
        with contextlib.suppress(paramiko.SSHException, OSError):
            found.extend(paramiko.Agent().get_keys())

    # paramiko waits for an agent without limit; a thread that hangs ends with the process.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ASK_AGENT)
    return list(found)


def _public(file: str) -> str:
    """The text of the public key in a file; "" when it is none."""
    with contextlib.suppress(OSError):
        words = Path(file).read_text(encoding="ascii", errors="replace").split()
        if len(words) > 1 and not words[0].startswith("-"):
            return words[1]
    return ""


def _load(file: str) -> paramiko.PKey | None:
    """The private key in a file; None when it is encrypted, damaged or of no type we know."""
    import paramiko

    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        # Which errors a key of another type gives differs between versions of paramiko.
        with contextlib.suppress(Exception):
            key: paramiko.PKey = kind.from_private_key_file(file)
            return key
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer within the time limit"
    return str(error) or type(error).__name__
