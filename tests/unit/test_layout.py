"""The rules of the source: who imports whom, crash points, settings files, entry scripts."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onestor_lib.agent import crashpoints
from onestor_lib.agent.operations import OPERATIONS, load
from onestor_lib.frontend import bundle, config

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "onestor_lib"
REMOTES = ROOT / "remotes"
SOURCES = sorted(LIBRARY.rglob("*.py"))
SCRIPTS = sorted(path for kind in ("tm", "datastore") for path in (REMOTES / kind).rglob("*"))
SCRIPTS = [path for path in SCRIPTS if path.is_file() and "__pycache__" not in path.parts]
ACTION_SCRIPTS = [path for path in SCRIPTS if path.name != "monitor_ds"]
HEAVY = ("click", "lxml", "paramiko")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, at_import_only: bool = False) -> tuple[str, ...]:
    """Names of the modules that a file imports, not counting those for type checkers only."""
    return _imports(path, at_import_only)


@functools.cache  # most tests here ask for those of all files
def _imports(path: Path, at_import_only: bool) -> tuple[str, ...]:
    return tuple(_found_imports(path, at_import_only))


def _found_imports(path: Path, at_import_only: bool) -> Iterator[str]:
    skipped: set[ast.AST] = set()
    for node in ast.walk(parse(path)):
        if node in skipped:
            skipped.update(ast.iter_child_nodes(node))
            continue
        if isinstance(node, ast.If) and is_for_type_checkers(node.test):
            skipped.update(node.body)
        elif at_import_only and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            skipped.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_type_checkers(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """The calls in a file of what has a name, be it of a module's, that ends in ``name``."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            called = node.func
            said = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if said.endswith(name):
                yield node


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("onestor_lib")}


@pytest.mark.parametrize("path", sorted((LIBRARY / "agent").rglob("*.py")), ids=relative)
def test_the_agent_needs_nothing_but_the_standard_library(path: Path) -> None:
    for name in imports(path):
        if name.startswith("onestor_lib"):
            assert name == "onestor_lib" or name.startswith("onestor_lib.agent"), name
            continue
        spec = importlib.util.find_spec(name.partition(".")[0])
        assert spec, name
        assert "site-packages" not in str(spec.origin), f"{name} is not in the standard library"


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_have_one_door_and_stay_outside_until_needed(package: str) -> None:
    def uses(path: Path, *, at_import_only: bool = False) -> bool:
        names = imports(path, at_import_only=at_import_only)
        return package in {name.partition(".")[0] for name in names}

    # What people run may take its time for click; nothing else loads it, see below.
    sources = SOURCES if package != "click" else [each for each in SOURCES if not is_command(each)]
    doors = [path for path in sources if uses(path)]
    assert len(doors) <= 1
    assert not [path for path in doors if uses(path, at_import_only=True)]


def is_command(path: Path) -> bool:
    return path.parent == LIBRARY / "frontend" / "commands"


def test_nothing_loads_the_commands() -> None:
    """They import click, which takes a while."""
    for path in SOURCES:
        commands = [name for name in ours(path) if name.startswith("onestor_lib.frontend.commands")]
        assert is_command(path) or not commands, path


def test_what_hosts_get_needs_nothing_of_what_only_datastores_need() -> None:
    """Neither at import nor later: it is not there."""
    modules = bundle.sources(LIBRARY)
    core = bundle._core(modules)
    left_out = set(modules) - set(core)
    assert "onestor_lib.agent.sources.http" in left_out and "onestor_lib.agent.origin" in core
    for name in core:
        file = LIBRARY.parent / name.replace(".", "/")
        path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        assert not left_out & set(imports(path)), name
    for operation, place in OPERATIONS.items():
        module = f"onestor_lib.agent.operations.{place.partition(':')[0]}"
        is_of_datastores = operation.split(".")[0] in ("intake", "source", "snapshot")
        is_of_datastores |= operation in ("image.create", "image.measure", "image.remove")
        is_of_datastores |= operation in ("image.identify", "image.make")
        assert (module in left_out) is is_of_datastores, operation


def test_imports_run_one_way() -> None:
    """Entry scripts, actions, services, primitives: nobody imports what lies above."""
    services, actions = "onestor_lib.frontend.services", "onestor_lib.frontend.actions"
    frontend = LIBRARY / "frontend"
    for path in [*frontend.glob("*.py"), *(frontend / "services").glob("*.py")]:
        above = (actions,) if path.parent.name == "services" else (services, actions)
        assert not [name for name in ours(path) if name.startswith(above)], path
    for path in (frontend / "actions").glob("*.py"):
        assert not [n for n in ours(path) if n.startswith(actions)], "an action imports an action"


def test_agent_primitives_do_not_import_operations() -> None:
    for path in (LIBRARY / "agent").glob("*.py"):
        found = {name for name in ours(path) if name.startswith("onestor_lib.agent.operations")}
        assert not found or path.name == "server.py", path


def test_K13_the_host_probe_is_python_3_6_and_imports_little() -> None:
    usage, probe = LIBRARY / "agent" / "usage.py", REMOTES / "tm" / "onestor" / "monitor_ds"
    packages = [LIBRARY / "__init__.py", LIBRARY / "agent" / "__init__.py"]
    for path in [usage, probe, *packages]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    tops = {name.partition(".")[0] for name in imports(usage)}
    assert tops <= {"os", "re", "base64", "typing"}
    assert set(imports(probe)) == {"os", "sys", "onestor_lib.agent", "onestor_lib.agent.usage"}
    assert not [name for path in packages for name in imports(path)]


def test_nothing_starts_a_shell() -> None:
    """Programs start from argv lists in three modules; no shell, no os.system."""
    starting = {LIBRARY / "agent" / f"{name}.py" for name in ("process", "client", "filter")}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.name == "scripts.py":
            text = text.replace("os.execv(", "")  # an argv, too: it takes our place
        assert not re.search(r"shell\s*=\s*True|os\.(system|popen|exec|spawn)", text), path
        assert "subprocess" not in set(imports(path)) or path in starting, path


def test_K15_no_thread_keeps_an_action_from_ending() -> None:
    """A signal that interrupts an import can leave another thread waiting for its lock for ever."""
    for path in SOURCES:
        for node in calls(path, "Thread"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("daemon") == "True", f"{path}: {ast.unparse(node)}"


def reached() -> list[str]:
    """The names in all calls of crashpoints.reach()."""
    found = []
    for path in SOURCES:
        for node in calls(path, "reach"):
            (name,) = node.args
            assert isinstance(name, ast.Constant), f"{path}: a name must be a literal"
            found.append(str(name.value))
    return found


def test_crash_points_match_the_source() -> None:
    assert sorted(reached()) == sorted(crashpoints.POINTS), "each point at exactly one place"


def test_crash_points_belong_to_actions_that_exist() -> None:
    for point, actions in crashpoints.POINTS.items():
        assert actions, point
        for action in actions:
            if action in ("eviction", "recovery", "flatten", "thin"):
                continue  # part of other actions, driven by a test of its own
            kind, _, name = action.partition(" ")[0].partition(".")
            assert (REMOTES / kind / "onestor" / name).is_file(), action


def test_operations_all_exist() -> None:
    for name in OPERATIONS:
        assert callable(load(name)), name


def described(attribute: config.Attribute) -> str:
    where = f"; template: {', '.join(attribute.templates)}" if attribute.templates else ""
    return f"{attribute.meaning} ({attribute.kind}{where})"


@pytest.mark.parametrize("kind", sorted(config.FILES))
def test_settings_files_are_the_tables(kind: str) -> None:
    file, attributes = config.FILES[kind]
    text = (REMOTES / file).read_text(encoding="utf-8")
    entries = re.findall(r'((?:^# .*\n)+)#([A-Z0-9_]+)="(.*)"$', text, re.MULTILINE)
    found = [(comment.replace("\n# ", " ")[2:-1], name, value) for comment, name, value in entries]
    assert found == [(described(each), each.name, each.default) for each in attributes]
    assert len(re.findall(r"^#?[A-Z0-9_]+=", text, re.MULTILINE)) == len(attributes)
    assert config.parse(text, file) == {}, "everything is commented out"
    assert config.parse(re.sub(r"^#(?=[A-Z0-9_]+=)", "", text, flags=re.MULTILINE), file) == {
        each.name: each.default for each in attributes
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_entry_scripts_are_executable_and_named_like_actions(path: Path) -> None:
    assert path.parent.name == "onestor", "nothing but our drivers"
    assert path.stat().st_mode & 0o777 == 0o755
    assert re.fullmatch(r"[a-z_]+", path.name), "a suffix would hide the bare name (trap 13)"
    kind = path.parent.parent.name
    module = LIBRARY / "frontend" / "actions" / f"{kind}_{path.name}.py"
    assert module.is_file() or path.name == "monitor_ds"


def test_every_action_has_its_entry_script() -> None:
    modules = {path.stem for path in (LIBRARY / "frontend" / "actions").glob("[a-z]*.py")}
    assert modules == {f"{path.parent.parent.name}_{path.name}" for path in ACTION_SCRIPTS}


def test_entry_scripts_are_all_alike() -> None:
    def shape(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        kind, name = path.parent.parent.name, path.name
        assert f'"""{kind} {name}: ' in text
        assert text.count(f'boundary.run("{kind}", "{name}", sys.argv[1:])') == 1
        text = re.sub(r'^""".*"""$', "", text, flags=re.MULTILINE)
        return text.replace(f'"{kind}", "{name}"', "")

    assert len({shape(path) for path in ACTION_SCRIPTS}) == 1


def test_scripts_never_leave_bytecode_in_remotes() -> None:
    """What appears in remotes is copied to every host (traps 37 and 38)."""
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        switch = text.index("sys.dont_write_bytecode = True")
        assert switch < text.index("from onestor_lib")
