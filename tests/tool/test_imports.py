"""What a fresh interpreter loads: start-up time is part of every action."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tool.conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", "")
    for path in (ROOT / "onestor_lib").rglob("*.py")
)
HEAVY = ("paramiko", "lxml", "click", "cryptography")
COMMANDS = "onestor_lib.frontend.commands."  # no action loads them


# Imports each of the modules as if it were the first of ours. What they need of others stays: a
# heavy package that was loaded is told at each module from then on.
EACH = """
for name in {names!r}:
    for each in [each for each in sys.modules if each.startswith("onestor_lib")]:
        del sys.modules[each]
    __import__(name)
    print(name, *sys.modules)
"""


def loaded(names: list[str], *options: str, python: str = sys.executable) -> set[str]:
    imports = "".join(f"import {name}\n" for name in names)
    return set(said(imports + "print(*sys.modules)", *options, python=python).split())


def said(code: str, *options: str, python: str = sys.executable) -> str:
    """What the code prints, which finds onestor_lib here."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    # Compiled once for all of them, where tests/conftest.py has it done.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [python, "-X", f"pycache_prefix={sys.pycache_prefix}", *options, "-c", code],
        capture_output=True, text=True, check=False, cwd="/", env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_heavy_package() -> None:
    names = sorted(MODULES, key=lambda name: name.startswith(COMMANDS))  # these last: see EACH
    lines = [line.split() for line in said(EACH.format(names=names)).splitlines()]
    assert [name for name, *_ in lines] == names
    for name, *found in lines:
        assert name in found
        heavy = {each.partition(".")[0] for each in found} & set(HEAVY)
        assert heavy <= ({"click"} if name.startswith(COMMANDS) else set()), name


def test_the_boundary_loads_no_action_and_no_connection() -> None:
    found = loaded(["onestor_lib.frontend.boundary"])
    assert not [name for name in found if name.startswith("onestor_lib.frontend.actions")]
    assert not {"onestor_lib.frontend.ssh", "onestor_lib.frontend.oned"} & found


def test_K13_the_agent_runs_isolated_and_without_site() -> None:
    names = [name for name in MODULES if name.startswith("onestor_lib.agent")]
    found = loaded(names, "-I", "-S", python="/usr/bin/python3")
    assert set(names) <= found
    assert not [name for name in found if name.startswith("onestor_lib.frontend")]


def test_K13_the_host_probe_loads_little() -> None:
    found = loaded(["onestor_lib.agent.usage"], "-I", "-S", python="/usr/bin/python3")
    ours = {name for name in found if name.startswith("onestor_lib")}
    assert ours == {"onestor_lib", "onestor_lib.agent", "onestor_lib.agent.usage"}
    assert "subprocess" not in found and "threading" not in found
    assert Path("/usr/bin/python3").exists()


def test_the_agent_starts_with_little() -> None:
    """Each of these takes a millisecond or more, on each host of each action."""
    names = ["onestor_lib.agent.bootstrap", "onestor_lib.agent.server"]
    found = loaded(names, "-I", "-S", python="/usr/bin/python3")
    spared = {
        "dataclasses", "hashlib", "importlib.abc", "inspect", "random", "shutil", "socket",
        "subprocess", "tempfile", "traceback",
    }  # fmt: skip
    assert not spared & found


@pytest.mark.parametrize("name", ["disk", "image", "program", "usage"])
def test_operations_load_no_code_generator(name: str) -> None:
    """dataclasses comes with inspect, ast and dis."""
    found = loaded([f"onestor_lib.agent.operations.{name}"], "-I", "-S", python="/usr/bin/python3")
    assert not {"dataclasses", "inspect", "tempfile"} & found
