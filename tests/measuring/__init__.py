"""Coverage of onestor_lib in every process of a test run; docs/coverage.md says how it is done.

`tests/coverage` names a directory in ONESTOR_COVERAGE. All processes then leave there what they
have executed: those of the tests, and those in the test cluster, whose nodes see it at AT_NODES.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

VARIABLE = "ONESTOR_COVERAGE"
AT_NODES = "/coverage"  # start.py looks there, too
START = "tests/measuring/start.py"  # in the checkout
SYSTEM_PYTHON = Path("/usr/bin/python3")

# Agents run without site, and so without what start.py is started by: they get it back. Else this
# is the interpreter itself, under the name that it was called by.
_WRAPPER = """\
#!/bin/bash
[[ ${{1-}} != -ISB ]] || set -- -IB "${{@:2}}"
exec -a "$0" {python} "$@"
"""


def directory() -> str:
    """Where data goes; "" in a run that is not measured."""
    return os.environ.get(VARIABLE, "")


def put_on_node(usr: Path, etc: Path) -> None:
    """Have what runs on a node measured; the arguments are its own layers of /usr and /etc."""
    write_wrapper(usr / SYSTEM_PYTHON.relative_to("/usr"))
    # Debian's standard library has a link to it.
    site = etc / SYSTEM_PYTHON.resolve().name / "sitecustomize.py"
    site.parent.mkdir()
    site.symlink_to(f"/src/{START}")


def write_wrapper(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(_WRAPPER.format(python=shlex.quote(str(SYSTEM_PYTHON.resolve()))))
    path.chmod(0o755)
