"""Figures for Prometheus: what all actions have counted, and the age of recovery copies now.

The text is that of the exposition format, which node_exporter's textfile collector reads.
"""

from __future__ import annotations

from onestor_lib.agent.errors import OnestorError
from onestor_lib.frontend import tally
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import overview

# Name, type and meaning, in the order of the output.
_KNOWN = (
    ("actions_total", "counter", "actions by their end, ok or failed"),
    ("action_seconds_total", "counter", "time actions took"),
    ("cache_requests_total", "counter", "clones by what the host's cache had: hit, miss, none"),
    ("cache_fill_seconds_total", "counter", "time that filling a host's cache took"),
    ("sent_bytes_total", "counter", "bytes that crossed a link"),
    ("saved_bytes_total", "counter", "bytes of images that did not cross one for a clone"),
    ("evictions_total", "counter", "images that left a host's cache, by reason"),
    ("lock_wait_seconds_total", "counter", "time agents waited for each other's locks"),
    ("recovery_copies_total", "counter", "recovery copies: made, unchanged, failed"),
    ("recovery_missing", "gauge", "1 for a disk that asks for recovery copies and has none"),
    ("recovery_age_seconds", "gauge", "how old a disk's youngest recovery copy is"),
    ("recovery_lag_seconds", "gauge", "how much older than its disk asks for"),
)


def figures(request: Request) -> tuple[dict[str, float], bool]:
    """All figures by name and labels; False without those of copies: oned does not answer."""
    series = tally.totals()
    try:
        rows = overview.rows(request)
    except OnestorError as error:
        request.log.warn(str(error))
        return series, False
    for row in rows:
        labels = {"vm": str(row["vm"]), "disk": row["disk"]}
        for name in ("age", "lag"):
            if row[name] is not None:
                series[tally.series(f"recovery_{name}_seconds", **labels)] = row[name]
        if row["frequency"] is not None and row["answered"]:
            series[tally.series("recovery_missing", **labels)] = float(row["age"] is None)
    return series, True


def text(series: dict[str, float]) -> str:
    """The same as Prometheus reads it."""
    lines = []
    for name, kind, meaning in _KNOWN:
        full = tally.PREFIX + name
        found = sorted(key for key in series if tally.name_of(key) == full)
        if found:
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
            lines += [f"{key} {_number(series[key])}" for key in found]
    return "\n".join(lines)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"
