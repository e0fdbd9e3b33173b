"""Where an image shall come from: IMAGE/PATH, a path or a URL that a user has written."""

from __future__ import annotations

import re
from typing import Any

from onestor_lib.agent import urls
from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services.hosts import Hosts

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# ssh://[user@]host[:port][:]/path; OpenNebula's own form has a colon before the path.
_SSH = re.compile(
    r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[^]/]+\]|[^:/@]+)(?::(?P<port>\d+))?:?(?P<path>/.*)",
    re.DOTALL,
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def describe(path: str, settings: Settings, hosts: Hosts, *, step: str) -> dict[str, Any]:
    """What ``onestor_lib.agent.sources.open_source`` opens on this machine, and its ``name``.

    Raises :class:`InvalidInput` for what is no source, naming a scheme that is not supported
    (known failure J10). The name has no secrets (J13).
    """
    scheme = _SCHEME.match(path)
    kind = scheme[1].lower() if scheme else ""
    common = {"block": settings.size("DD_BLOCK_SIZE", 1 << 10, 64 << 20)}
    if kind in ("http", "https"):
        return {
            "kind": "http",
            "name": urls.describe(path),
            "url": path,
            "insecure": settings.yes("INSECURE"),
            "digested": False,
            "rate": _rate(settings),
            **common,
        }
    if kind == "ssh":
        return {**_ssh(path, settings, hosts, step), **common}
    if kind not in ("", "file"):
        supported = "file, http, https and ssh are"
        raise InvalidInput(
            step, f"sources of type {scheme[1] if scheme else ''}: are not supported, {supported}"
        )
    local = re.sub("^file:(//)?", "", path, flags=re.IGNORECASE) if kind else path
    local = arguments.checked_path(local)
    return {"kind": "file", "name": local, "path": local, "rules": rules(settings), **common}


def rules(settings: Settings) -> dict[str, list[str]]:
    """Which directories images may come from."""
    return {
        "restricted": settings.words("RESTRICTED_DIRS"),
        "safe": settings.words("SAFE_DIRS"),
    }


def _rate(settings: Settings) -> int:
    return settings.size("LIMIT_TRANSFER_BW", 1, 1 << 50)


def _ssh(path: str, settings: Settings, hosts: Hosts, step: str) -> dict[str, Any]:
    """A file of another machine; RESTRICTED_DIRS and SAFE_DIRS count there, too."""
    match = _SSH.fullmatch(path)
    if match is None:
        raise InvalidInput(step, "a source of type ssh: has the form ssh://host:/path")
    host = arguments.host(match["host"].strip("[]"))
    user, port = match["user"], match["port"]
    if user and not _USER.fullmatch(user):
        raise InvalidInput(step, "a source of type ssh: can name a user, but no password")
    options = [*(["-l", user] if user else []), *(["-p", port] if port else [])]
    file = arguments.checked_path(match["path"])
    return {
        "kind": "ssh",
        "name": f"ssh://{host}:{file}",
        "host": host,
        "path": file,
        "rules": rules(settings),
        "argv": hosts.bulk_argv(host, more=options, is_from_here=True),
        "rate": _rate(settings),
    }
