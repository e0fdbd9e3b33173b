"""The code that is sent to hosts: what is in it, and when what install.sh has made is used."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onestor_lib
from onestor_lib.agent import bootstrap, crashpoints
from onestor_lib.agent.bootstrap import SentModules
from onestor_lib.frontend import bundle

LIBRARY = Path(__file__).resolve().parents[2] / "onestor_lib"
LOCKS = "agent/locks.py"
# As much as shows what fits and what does not: making the code of all takes a while.
FEW = ("__init__.py", "agent/__init__.py", "agent/bootstrap.py", LOCKS, "agent/usage.py",
       "frontend/bundle.py")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library with the file."""
    copy = tmp_path_factory.mktemp("made") / "onestor_lib"
    shutil.copytree(LIBRARY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / bundle.PREBUILT).write_bytes(bundle.prebuild(copy))
    return copy


@pytest.fixture
def library(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """It, which :func:`bundle.build` takes for its own."""
    yield from building_from(made, monkeypatch)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library of its own with a few modules, to be changed by a test."""
    copy = tmp_path / "onestor_lib"
    for file in FEW:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(LIBRARY / file, copy / file)
    (copy / bundle.PREBUILT).write_bytes(bundle.prebuild(copy))
    yield from building_from(copy, monkeypatch)


def building_from(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(onestor_lib, "__file__", str(library / "__init__.py"))
    bundle._build.cache_clear()
    yield library
    bundle._build.cache_clear()


def read(code: bytes) -> tuple[dict[str, Any], bytes]:
    line, _, body = code.partition(b"\n")
    return json.loads(line), body


class TestContent:
    @pytest.mark.parametrize("changed", [{}, {"magic": "another Python's"}])
    def test_the_agent_and_nothing_else(
        self, library: Path, changed: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(crashpoints.VARIABLE, "publish.synced")
        header, body = read(bundle.build())
        modules, settings = bootstrap.unpack({**header, **changed}, body)
        assert settings["crash_at"] == "publish.synced" and settings["host_path"] == ""
        assert {"onestor_lib", "onestor_lib.agent.operations.disk"} <= set(modules)
        assert not [name for name in modules if "frontend" in name]
        assert {type(module) for module in modules.values()} == {str if changed else bytes}
        assert "def start(" in header["bootstrap"]

    @pytest.mark.parametrize("magic", ["", "another Python's"])
    def test_both_kinds_of_code_do_the_same(self, magic: str) -> None:
        source = '"""What for."""\nassert True\nanswer = 42\n'
        sent = {"onestor_lib.agent.bootstrap": "", "sent": "", "sent.inner": source, "other": ""}
        header, body = read(bundle.with_settings(bundle.pack(sent)))
        modules, _ = bootstrap.unpack({**header, "magic": magic or header["magic"]}, body)
        finder = SentModules(modules)
        package = finder.find_spec("sent", None)
        inner = finder.find_spec("sent.inner", None)
        assert package and package.submodule_search_locations == []
        assert inner and inner.submodule_search_locations is None
        assert finder.find_spec("json", None) is None
        module = types.ModuleType("sent.inner")
        finder.exec_module(module)
        assert (module.answer, module.__doc__) == (42, "")

    def test_what_is_sent_has_no_docstrings(self) -> None:
        """Its lines are where they were; other strings are not touched."""
        text = (
            '"""What for.\n\nMore."""\nfrom __future__ import annotations  # now\n'
            "class A:\n    '''Doc\n    # of it'''\n    text = \"# no comment\"\n"
            '    def f(self):\n        """Only this."""\n    def g(self): ...\n'
        )
        bare = bundle.bare(text)
        assert bare == (
            '""\n\n\nfrom __future__ import annotations  # now\n'
            'class A:\n    ""\n\n    text = "# no comment"\n'
            '    def f(self):\n        ""\n    def g(self): ...\n'
        )
        compile(bare, "bare", "exec")


def rewrite(library: Path, old: bytes, new: bytes) -> None:
    file = library / bundle.PREBUILT
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


def cut(library: Path, size: int) -> None:
    os.truncate(library / bundle.PREBUILT, size)


def flip(library: Path, place: int) -> None:
    file = library / bundle.PREBUILT
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def touch(library: Path, file: str) -> None:
    """One nanosecond later, and not a byte longer."""
    status = (library / file).stat()
    os.utime(library / file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def grow(library: Path, file: str) -> None:
    status = (library / file).stat()
    with (library / file).open("a") as module:
        module.write("\n")
    os.utime(library / file, ns=(status.st_atime_ns, status.st_mtime_ns))


def become_a_directory(library: Path) -> None:
    (library / bundle.PREBUILT).unlink()
    (library / bundle.PREBUILT).mkdir()


SPOILED: dict[str, Callable[[Path], object]] = {
    "missing": lambda library: (library / bundle.PREBUILT).unlink(),
    "a directory": become_a_directory,
    "empty": lambda library: cut(library, 0),
    "cut in the first line": lambda library: cut(library, 20),
    "cut behind the first line": lambda library: cut(library, len(bundle._stamp(library))),
    "cut in the checksum": lambda library: cut(library, len(bundle._stamp(library)) + 4),
    "without its last byte": lambda library: cut(
        library, (library / bundle.PREBUILT).stat().st_size - 1
    ),
    "a bit in the first line": lambda library: flip(library, 3),
    "a bit in the checksum": lambda library: flip(library, len(bundle._stamp(library)) + 2),
    "a bit in the code": lambda library: flip(library, -1000),
    "of another Python": lambda library: rewrite(
        library, f'["{importlib.util.MAGIC_NUMBER.hex()}", '.encode(), b'["0d0d0d0a", '
    ),
    "a younger module": lambda library: touch(library, LOCKS),
    "a longer module": lambda library: grow(library, LOCKS),
    "a younger package": lambda library: touch(library, "__init__.py"),
    "a younger layout": lambda library: touch(library, "frontend/bundle.py"),
    "a module more": lambda library: (library / "agent/more.py").write_text(""),
    "a module less": lambda library: (library / "agent/usage.py").unlink(),
}


class TestPrebuilt:
    def test_it_is_used_as_it_is(self, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = bundle.with_settings(bundle.pack(bundle.sources(library)))
        monkeypatch.setattr(bundle, "pack", None)  # cannot be called
        monkeypatch.setattr(bundle, "sources", None)
        assert bundle.build() == expected

    def test_actions_of_the_transfer_manager_send_less(
        self, library: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = bundle.with_settings(bundle.pack(bundle._core(bundle.sources(library))))
        monkeypatch.setattr(bundle, "_everything", True)
        whole = bundle.build()
        bundle.choose("tm")
        monkeypatch.setattr(bundle, "pack", None)  # cannot be called
        assert bundle.build() == expected and len(expected) < len(whole) * 0.8
        bundle.choose("datastore")
        assert bundle.build() == whole

    def test_settings_are_not_part_of_it(
        self, library: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = bundle.prebuild(library)
        monkeypatch.setenv(crashpoints.VARIABLE, "publish.synced")
        assert bundle.prebuild(library) == before
        assert b'"crash_at": "publish.synced"' in bundle.build()[-200:]

    @pytest.mark.parametrize("name", SPOILED)
    def test_one_that_does_not_fit_is_never_used(self, small: Path, name: str) -> None:
        assert bundle.prebuilt(small)
        SPOILED[name](small)
        assert bundle.prebuilt(small) is None
        header, body = read(bundle.build())
        modules, _ = bootstrap.unpack(header, body)
        names = {*modules, "onestor_lib.agent.bootstrap"}
        assert names == set(bundle.sources(small))
