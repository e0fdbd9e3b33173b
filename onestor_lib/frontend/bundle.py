"""The agent's code as it is sent to a host: all modules of ``onestor_lib.agent``, compressed.

Twice: as bytecode of this Python, which an agent on the same version of Python need not compile,
and as source for all others. Making that takes longer than loading it, so install.sh leaves it,
made, in a file beside the library: without and with what only the image datastore's actions need,
which is a third of it. The file counts only as long as it fits: to the names, sizes and
times of the sources, as Python's own bytecode does, and to this Python. It lies where the sources
lie, so whoever can write the one can write the other.

The layout: a line of JSON (``bootstrap``, ``magic``, and the sizes ``bytecode`` and ``sources``),
those two parts, and the settings of this process as JSON up to the end.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import marshal
import os
import re
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path

import onestor_lib
from onestor_lib.agent import crashpoints

PREBUILT = "agent.bundle"  # the name of the file, in the library's directory
_building = threading.Lock()
_BOOTSTRAP = "onestor_lib.agent.bootstrap"
_LENGTH = b"%10d\n"  # of the smaller of two codes that follow
_DATASTORE = re.compile(
    r"onestor_lib\.agent\.(sources|intake|filter|compression|measuring|deadline|urls"
    r"|operations\.(datastore|intake|source|image_snapshots|exporting|formatting))(\..*)?$"
)


_everything = True
_host_path = ""


def choose(kind: str, host_path: str = "") -> None:
    """Send from now on what actions of this ``kind`` ("tm" or "datastore") need.

    ``host_path`` are the directories that hosts search first for programs (known failure K14).
    """
    global _everything, _host_path
    _everything, _host_path = kind != "tm", host_path
    _build.cache_clear()


def build() -> bytes:
    """What :meth:`onestor_lib.agent.client.AgentClient.start` sends."""
    with _building:  # one thread makes it; those of ast in Python 3.11 disturb each other
        return _build(_everything)


@functools.lru_cache(maxsize=2)
def _build(everything: bool) -> bytes:
    library = Path(onestor_lib.__file__).parent
    if made := prebuilt(library):
        first = len(_LENGTH % 0)
        middle = first + int(made[:first])
        return with_settings(made[middle:] if everything else made[first:middle])
    modules = sources(library)
    return with_settings(pack(modules if everything else _core(modules)))


def _core(modules: Mapping[str, str]) -> dict[str, str]:
    """The modules without those of the image datastore's actions."""
    return {name: text for name, text in modules.items() if not _DATASTORE.match(name)}


def _pack_both(modules: Mapping[str, str]) -> bytes:
    core = pack(_core(modules))
    return _LENGTH % len(core) + core + pack(modules)


def with_settings(code: bytes) -> bytes:
    """The code of :func:`pack`, and what is so in this process only.

    A crash point chosen for this process is chosen for its agents, too.
    """
    settings = {
        "crash_at": os.environ.get(crashpoints.VARIABLE, ""),
        "frontend": os.uname().nodename,
        "host_path": _host_path,
    }
    return code + json.dumps(settings).encode("ascii")


def pack(modules: Mapping[str, str]) -> bytes:
    """The code, from the source of each module by its name."""
    sent = {name: bare(text) for name, text in sorted(modules.items()) if name != _BOOTSTRAP}
    # The file name is what tracebacks show. Nothing of the options of this Python gets in.
    compiled = {
        name: marshal.dumps(compile(text, f"<{name}>", "exec", dont_inherit=True, optimize=0))
        for name, text in sent.items()
    }
    bytecode = zlib.compress(marshal.dumps(compiled))
    text = zlib.compress(json.dumps(sent).encode("ascii"))
    header = {
        "bootstrap": modules[_BOOTSTRAP],
        "magic": importlib.util.MAGIC_NUMBER.hex(),
        "bytecode": len(bytecode),
        "sources": len(text),
    }
    return json.dumps(header).encode("ascii") + b"\n" + bytecode + text


def bare(text: str) -> str:
    """A module without its docstrings, a sixth of what is sent; every line stays where it is."""
    lines = text.splitlines(keepends=True)
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        nodes += node.body
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            start, end = first.lineno - 1, first.end_lineno or first.lineno
            lines[start:end] = [" " * first.col_offset + '""\n', *["\n"] * (end - start - 1)]
    return "".join(lines)


def sources(library: Path) -> dict[str, str]:
    """The modules of the agent in the library at ``library``: their source by their name."""
    found = {}
    for file in _files(library):
        parts = file[: -len(".py")].split("/")
        name = ".".join([library.name, *(parts[:-1] if parts[-1] == "__init__" else parts)])
        found[name] = (library / file).read_text(encoding="utf-8")
    return found


def prebuild(library: Path) -> bytes:
    """The content of the file that :func:`prebuilt` reads, to be written by install.sh.

    Code that is there and fits stays: the bytes of bytecode may differ from one run to the next.
    """
    stamp = _stamp(library)  # first: should a source change meanwhile, the file will not fit
    code = prebuilt(library) or _pack_both(sources(library))
    return stamp + _checksum(code) + code


def prebuilt(library: Path) -> bytes | None:
    """Both codes from the file beside the library; None unless it is whole and fits."""
    try:
        content = (library / PREBUILT).read_bytes()
        stamp = _stamp(library)
    except OSError:
        return None
    if not content.startswith(stamp):
        return None
    code = content[len(stamp) + len(_checksum(b"")) :]
    return code if content.startswith(_checksum(code), len(stamp)) else None


def _checksum(code: bytes) -> bytes:
    """Tells damage, not intent; a cryptographic digest would cost more than reading the file."""
    return b"%08x\n" % zlib.crc32(code)


def _stamp(library: Path) -> bytes:
    """What code that was made from this library with this Python begins with: one line."""
    facts: list[object] = [importlib.util.MAGIC_NUMBER.hex()]
    for file in [*_files(library), "frontend/bundle.py"]:  # the latter decides on the layout
        status = os.stat(library / file)
        facts.append([file, status.st_size, status.st_mtime_ns])
    return json.dumps(facts).encode("ascii") + b"\n"


def _files(library: Path) -> list[str]:
    """The agent's modules as paths below ``library``, in a fixed order."""
    found = [path.relative_to(library).as_posix() for path in (library / "agent").rglob("*.py")]
    return ["__init__.py", *sorted(found)]
