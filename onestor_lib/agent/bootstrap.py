"""The first code that runs in an agent: makes the modules that came with it importable.

Sent as text and executed by ``client.BOOT_CODE``; nothing else of onestor_lib is there yet. The
layout of what was sent is described in ``onestor_lib.frontend.bundle``.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import marshal
import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import Any


class SentModules:
    """Finds modules in a dictionary of their code: bytecode, or source to be compiled.

    Not derived from importlib.abc's classes: importing them takes as long as all else here.
    """

    def __init__(self, modules: Mapping[str, str | bytes]) -> None:
        self._modules = modules

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._modules:
            return None
        package = any(name.startswith(fullname + ".") for name in self._modules)
        # typeshed demands load_module(), which import has not needed since Python 3.4.
        return importlib.util.spec_from_loader(fullname, self, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """None: the usual kind of module."""

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        sent = self._modules[name]
        if isinstance(sent, bytes):
            code = marshal.loads(sent)
        else:
            code = compile(sent, f"<{name}>", "exec", dont_inherit=True)
        exec(code, module.__dict__)


def unpack(header: Mapping[str, Any], body: bytes) -> tuple[Mapping[str, str | bytes], Any]:
    """The modules and the settings that were sent: bytecode, if it is for this Python."""
    middle = header["bytecode"]
    end = middle + header["sources"]
    settings = json.loads(body[end:])
    if header["magic"] == importlib.util.MAGIC_NUMBER.hex():
        return marshal.loads(zlib.decompress(body[:middle])), settings
    return json.loads(zlib.decompress(body[middle:end])), settings


def start(header: Mapping[str, Any], body: bytes, payload: bytes) -> None:
    """Serve until the connection ends; ``payload`` is what this agent starts further ones with."""
    modules, settings = unpack(header, body)
    sys.meta_path.insert(0, SentModules(modules))
    from onestor_lib.agent import server

    server.main(settings, payload)
