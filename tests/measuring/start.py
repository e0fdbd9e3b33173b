"""Start coverage.py in this process, and save what it has seen at the end.

The sitecustomize of the test cluster's nodes; elsewhere a .pth file of .venv runs it. A process
that is killed saves nothing.
"""

import atexit
import marshal
import os
import sys
from types import CodeType
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
DATA = os.environ.get("ONESTOR_COVERAGE") or "/coverage"
PACKAGES = "lib/python{}.{}/site-packages".format(*sys.version_info)


def start() -> None:
    # It must be found, and nothing else of what lies beside it.
    sys.path.append(os.path.join(ROOT, ".venv", PACKAGES))
    try:
        import coverage
    finally:
        sys.path.pop()
    if coverage.Coverage.current():
        return  # site goes over a .pth file twice where lib64 is a link
    measuring = coverage.Coverage(
        data_file=os.path.join(DATA, "process"),
        data_suffix=True,
        branch=True,
        include=["*/onestor_lib/*"],
        config_file=False,
    )
    # Not a word on stderr, which belongs to the program.
    quiet = ["no-data-collected", "module-not-measured", "trace-changed"]
    measuring.set_option("run:disable_warnings", quiet)
    measuring.set_option("run:patch", ["_exit", "execv"])  # they end a process, too
    measuring.start()

    def save() -> None:
        measuring.stop()
        measuring.save()

    atexit.register(save)
    _name_files_of_agents()


def _name_files_of_agents() -> None:
    """An agent's code comes by its connection: let it bear the names of the files it is from."""
    loads = marshal.loads

    def loads_with_files(data: Any) -> Any:
        found = loads(data)
        if isinstance(found, CodeType) and found.co_filename.startswith("<onestor_lib"):
            path = os.path.join(ROOT, *found.co_filename[1:-1].split("."))
            is_package = os.path.isdir(path)
            return _renamed(found, path + ("/__init__.py" if is_package else ".py"))
        return found

    marshal.loads = loads_with_files


def _renamed(code: CodeType, file: str) -> CodeType:
    inner = (
        _renamed(each, file) if isinstance(each, CodeType) else each for each in code.co_consts
    )
    return code.replace(co_filename=file, co_consts=tuple(inner))


if os.path.isdir(DATA):
    start()
