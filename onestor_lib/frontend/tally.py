"""What an action has done, in figures: its summary in the log, and counters for monitoring.

The counters of all actions are kept in one small file (``onestor_lib.frontend.state``) under the
names and labels that Prometheus shows. They are for people who watch; nothing depends on them.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

from onestor_lib.agent import counters, locks
from onestor_lib.agent.errors import InvalidInput, LockTimeout
from onestor_lib.frontend import arguments, state

PREFIX = "onestor_"
_MOST = 1e9  # that an agent may count at once
_MOST_BYTES = 1 << 50  # of one transfer
_MOST_SERIES = 10_000  # names with labels in the file; those that come later are not counted
_PATIENCE = 2.0  # seconds for other actions that write down theirs
# host:DIR or host:DIR/disk.N of a VM (contract section 2.1)
_PLACE = re.compile(r"(?P<host>[^:/\s]+):/\S*/(?P<vm>\d+)(?:/(?P<disk>disk\.\d+))?")
_ORDER = ("vm", "disk", "image", "host", "bytes", "cache")


class Tally:
    """What one action counts; threads may share it."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._facts: dict[str, str | int] = {}
        self._counters: dict[str, float] = {}
        self._lock = threading.Lock()

    def fact(self, **facts: str | int) -> None:
        """What the summary shall say: ``vm``, ``disk``, ``image``, ``host``, ``cache``."""
        with self._lock:
            self._facts.update({name: value for name, value in facts.items() if value != ""})

    def add(self, name: str, value: float, **labels: str) -> None:
        """Count; ``name`` without "onestor_"."""
        key = series(name, **labels)
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + value

    def sent(self, source: str, target: str, size: int) -> None:
        """Bytes that have crossed a link, as its ends tell."""
        size = min(max(0, size), _MOST_BYTES)
        if size:
            self.add("sent_bytes_total", size, source=source, target=target)
        with self._lock:
            self._facts["bytes"] = int(self._facts.get("bytes", 0)) + size

    def counted(self, peer: str, counts: Any) -> None:
        """Take over what the agent of the host ``peer`` says; none of it is trusted.

        Numbers of known names and reasons count, on itself or on a host that it has used.
        """
        for count in counts[: counters.MOST] if isinstance(counts, list) else ():
            with contextlib.suppress(TypeError, ValueError, OverflowError, InvalidInput):
                name, host, kind, value = count
                labels = {"host": arguments.host(str(host) or peer)}
                if kind:
                    labels["reason"] = str(kind)
                known = name in counters.NAMES and kind in ("", *counters.REASONS)
                if known and 0 <= float(value) < _MOST:
                    self.add(name, float(value), **labels)

    def read_arguments(self, argv: list[str]) -> None:
        """Learn from the arguments of a transfer manager's action which VM it is about."""
        for word in argv:
            if match := _PLACE.fullmatch(word):
                self.fact(vm=int(match["vm"]), host=match["host"], disk=match["disk"] or "")

    def summary(self, action: str, outcome: str) -> str:
        """One line about the action, and its end counted."""
        seconds = time.monotonic() - self._begin
        self.add("actions_total", 1, action=action, outcome=outcome)
        self.add("action_seconds_total", seconds, action=action)
        with self._lock:
            found = {name: self._facts[name] for name in _ORDER if name in self._facts}
        words = [f"{name}={value}" for name, value in found.items()]
        return " ".join(
            [f"action={action}", *words, f"seconds={seconds:.3f}", f"outcome={outcome}"]
        )

    def keep(self) -> None:
        """Add the counters to those of earlier actions, as well as that can be done."""
        with self._lock:
            counters, self._counters = self._counters, {}
        directory = state.directory()
        with contextlib.suppress(OSError, LockTimeout):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock = directory / "counters.lock"
            with locks.exclusive(lock, purpose="count", timeout=_PATIENCE):
                _add(counters)


def _add(counters: dict[str, float]) -> None:
    total = _read()
    for key, value in counters.items():
        if key in total or len(total) < _MOST_SERIES:
            total[key] = total.get(key, 0) + value
    new = _file().with_name(".counters.new")
    new.write_text(json.dumps(total), encoding="ascii")
    new.replace(_file())


def totals() -> dict[str, float]:
    """What all actions so far have counted; nothing where that cannot be read."""
    with contextlib.suppress(OSError):
        return _read()
    return {}


def _read() -> dict[str, float]:
    """The same, for what is written back: raises ``OSError`` unless there is no file."""
    try:
        found = json.loads(_file().read_bytes())
        known = {str(key): float(value) for key, value in found.items()}
        return {key: value for key, value in known.items() if math.isfinite(value)}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}  # damaged: no reason to count no more


def name_of(key: str) -> str:
    """The name of a counter without its labels."""
    return key.partition("{")[0]


def series(name: str, **labels: str) -> str:
    """A name with its labels as Prometheus writes them."""
    return PREFIX + name + _labels(labels)


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _file() -> Path:
    return state.directory() / "counters.json"
