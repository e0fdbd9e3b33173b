"""The first code that runs in an agent: makes the modules that came with it importable.

Sent as text and executed by ``client.BOOT_CODE``; nothing else of onestor_lib is there yet.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence


class SentModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules in a dictionary of sources; compiles each when it is first imported."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._sources:
            return None
        package = any(name.startswith(fullname + ".") for name in self._sources)
        return importlib.util.spec_from_loader(fullname, self, is_package=package)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        exec(compile(self._sources[name], f"<{name}>", "exec"), module.__dict__)


def start(modules: dict[str, str], settings: dict[str, str], payload: bytes) -> None:
    """Serve until the connection ends; ``payload`` is what this agent starts further ones with."""
    sys.meta_path.insert(0, SentModules(modules))
    from onestor_lib.agent import server

    server.main(settings, payload)
