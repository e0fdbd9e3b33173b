"""The OpenSSH client: what its configuration says, and the command lines that carry image data.

Bulk data goes through it because REPLICA_SSH_OPTS and the like are its options, and because it is
three times faster than paramiko (docs/design.md, section 2).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from onestor_lib.agent import client, process
from onestor_lib.agent.errors import HostUnreachable, OnestorError
from onestor_lib.frontend import config

SSH = "ssh"
_QUICK = 2.0  # seconds for a program on this machine

# ControlMaster: OpenNebula's wrapper in PATH would add a master process that keeps our pipes open
# (contract section 7); BatchMode: there is nobody to ask for a password.
_ALWAYS = ("-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=none", "-T")


_FAST_CIPHER = "aes128-gcm@openssh.com"

_AGENT, _SOCKET = Path("/var/run/one/ssh-agent.env"), "SSH_AUTH_SOCK"  # contract section 7


def find_agent() -> None:
    """Use the ssh-agent that oned's services use, unless there is one already."""
    if _SOCKET not in os.environ and (agent := config.assignment_in(_AGENT, _SOCKET)):
        os.environ[_SOCKET] = agent


def agent_answers() -> bool:
    """Whether there is an ssh-agent to lend; a library that finds none says so in a traceback."""
    try:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(_QUICK)
            agent.connect(os.environ.get(_SOCKET, ""))
        return True
    except OSError:
        return False


def resolve(host: str, *more: str) -> dict[str, list[str]]:
    """What ssh_config(5) says for ``host``, by option in lower case; ``ssh -G`` reads it for us.

    So Include, Match, canonical names and the system-wide file count as they do for ssh itself.
    """
    step = "read the ssh configuration"
    result = process.run([SSH, "-G", *_ALWAYS[:1], *more, "--", host], timeout=10.0, step=step)
    if not result.ok:
        raise HostUnreachable(step, result.reason, host=host)
    options: dict[str, list[str]] = {}
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name.lower(), []).append(value)
    return options


def faster_cipher(host: str) -> list[str]:
    """The option that lets ssh(1) from here to ``host`` prefer AES-GCM, where that is wise.

    It is as strong as what OpenSSH prefers and takes less than half the time, if the processor
    has instructions for it. Whoever has configured ciphers has had a reason: nothing then.
    """
    with contextlib.suppress(OSError, OnestorError):
        if " aes" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"):
            return []
        usual = resolve(host, "-F", "none").get("ciphers", [""])[0]
        ciphers = usual.split(",")
        if _FAST_CIPHER in ciphers and resolve(host).get("ciphers") == [usual]:
            others = [cipher for cipher in ciphers if cipher != _FAST_CIPHER]
            return [f"-oCiphers={','.join([_FAST_CIPHER, *others])}"]
    return []


def was_dropped(error: HostUnreachable) -> bool:
    """Whether sshd dropped the connection before it was used: MaxStartups of sshd_config(5).

    15 actions at once are enough for that (contract section 7); trying again a little later helps.
    """
    return error.step.startswith(client.START) and tells_of_drop(error.cause)


def tells_of_drop(text: str) -> bool:
    """Whether ssh's last words are those of a connection that sshd has dropped."""
    signs = ("kex_exchange_identification", "Connection reset by", "Connection closed by")
    return any(sign in text for sign in signs)


def base_argv(connect_timeout: float) -> list[str]:
    """The ssh client as we always call it; ``connect_timeout`` in seconds."""
    return [
        SSH,
        *_ALWAYS,
        f"-oConnectTimeout={connect_timeout:.0f}",
        # A dead network is noticed within 40 s, whoever waits for whom (ssh_config(5)).
        "-oServerAliveInterval=10",
        "-oServerAliveCountMax=3",
    ]


def agent_argv(
    host: str, *, options: Sequence[str], python: str, connect_timeout: float
) -> list[str]:
    """The command line that starts an agent on ``host`` and carries its stream."""
    return [
        *base_argv(connect_timeout),
        *options,
        "--",
        host,
        client.shell_command(python),
    ]


def probe_argv(host: str, *, options: Sequence[str], connect_timeout: float) -> list[str]:
    """The command line that tells whether ``host`` lets us in, as for an agent there."""
    return [*base_argv(connect_timeout), *options, "--", host, "true"]


def local_agent_argv() -> list[str]:
    """The command line of an agent on this machine."""
    return [sys.executable, client.PYTHON_OPTIONS, "-c", client.BOOT_CODE]
