"""Two steps of tests/coverage: `python -m tests.measuring prepare` and `report DIRECTORY`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import coverage

from tests import measuring

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "onestor_lib"
# Where the library lies: in the checkout, on front-ends, on hosts after `onehost sync`, and where
# the tests of install.sh install from.
PLACES = [
    str(LIBRARY),
    "/src/onestor_lib",
    "*/remotes/onestor_lib",
    "/var/tmp/one/onestor_lib",
    "*/check out/onestor_lib",
]


def prepare() -> None:
    """Make the .venv measure; print the interpreter that runs the tests then."""
    site = Path(coverage.__file__).parents[1]
    start = f"import runpy; runpy.run_path({str(ROOT / measuring.START)!r})"
    chosen = f"import os; os.environ.get({measuring.VARIABLE!r}) and exec({start!r})\n"
    (site / "onestor-measuring.pth").write_text(chosen)
    interpreter = Path(sys.prefix) / "bin/python3-measured"
    measuring.write_wrapper(interpreter)
    print(interpreter)


def report(directory: Path) -> None:
    """Add up what the processes have left, and print it by module and by package."""
    total = coverage.Coverage(data_file=directory / "total", branch=True, config_file=False)
    total.set_option("paths", {"onestor_lib": PLACES})
    total.load()
    if parts := [str(path) for path in directory.glob("process.*")]:
        total.combine(parts)
        total.save()
    total.get_data().touch_files([str(path) for path in LIBRARY.rglob("*.py")])
    ours = [f"{LIBRARY}/*"]
    total.report(include=ours, show_missing=True, skip_empty=True)
    result = directory / "coverage.json"
    total.json_report(include=ours, outfile=str(result))
    _print_packages(json.loads(result.read_text())["files"])


def _print_packages(files: dict[str, dict[str, dict[str, int]]]) -> None:
    fields = ("num_statements", "missing_lines", "num_branches", "missing_branches")
    sums: dict[str, Counter[str]] = {}
    for name, found in files.items():
        path = Path(name).resolve().relative_to(ROOT)
        for each in ("in all", ".".join(path.parts[:3] if len(path.parts) > 3 else path.parts[:2])):
            sums.setdefault(each, Counter()).update(
                {field: found["summary"][field] for field in fields}
            )
    print(f"\n{'package':<36}{'statements':>11}{'missed':>8}{'branches':>10}{'missed':>8}")
    for package, counts in sorted(sums.items()):
        print(f"{package:<36}" + "{:>11}{:>8}{:>10}{:>8}".format(*(counts[f] for f in fields)))


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare()
    else:
        report(Path(sys.argv[2]))
