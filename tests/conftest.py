"""What is said at the beginning of each run."""

from __future__ import annotations

from tests.sampling import EVERYWHERE, SEED


def pytest_report_header() -> str:
    return "faults: all of them" if EVERYWHERE else f"faults: a sample, FAULTS_SEED={SEED}"
