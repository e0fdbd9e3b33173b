"""URLs as people may see them: without secrets (known failure J13)."""

from __future__ import annotations

import urllib.parse


def describe(url: str) -> str:
    """``url`` as people may read it: without user, password and query. Never raises."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # it is hard to tell what of it is a password
        scheme = url.partition("://")[0].lower()
        return f"{scheme}://..." if scheme in ("http", "https") else "..."
    query = "?..." if "?" in url.partition("#")[0] else ""
    if not parts.netloc:
        start = f"{parts.scheme}:" if parts.scheme else ""
        return f"{start}{'...' if '@' in parts.path else parts.path}{query}"
    if ":" in host:
        host = f"[{host}]"
    place = host if port is None else f"{host}:{port}"
    return f"{parts.scheme}://{place}{parts.path}{query}"
