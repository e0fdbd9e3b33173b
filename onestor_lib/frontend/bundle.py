"""The agent's code as it is sent to a host: all modules of ``onestor_lib.agent``, compressed."""

from __future__ import annotations

import functools
import json
import os
import zlib
from pathlib import Path

import onestor_lib
from onestor_lib.agent import crashpoints


@functools.lru_cache(maxsize=1)
def build() -> bytes:
    """What :meth:`onestor_lib.agent.client.AgentClient.start` sends.

    A crash point chosen for this process is chosen for its agents, too.
    """
    root = Path(onestor_lib.__file__).parent
    modules = {"onestor_lib": (root / "__init__.py").read_text(encoding="utf-8")}
    for path in (root / "agent").rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = path.read_text(encoding="utf-8")
    content = {
        "bootstrap": modules.pop("onestor_lib.agent.bootstrap"),
        "modules": modules,
        "settings": {"crash_at": os.environ.get(crashpoints.VARIABLE, "")},
    }
    return zlib.compress(json.dumps(content).encode("ascii"), 1)
