"""QCOW2_OPTIONS: what OpenNebula's drivers add to the command line of qemu-img create.

Looked for in the environment, in onestorrc and in OpenNebula's own ``tmrc``, which is not in the
environment of every caller (contract section 1.1). Only options of the qcow2 format are taken, and
none that names another file.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import config
from onestor_lib.frontend.config import Settings

_NAME = "QCOW2_OPTIONS"
_ALLOWED = {
    "cluster_size", "compat", "compression_type", "extended_l2", "lazy_refcounts", "nocow",
    "preallocation", "refcount_bits",
}  # fmt: skip


def effective(settings: Settings) -> list[str]:
    """The options in force, as ``name=value`` pairs; raises :class:`InvalidInput`."""
    if value := os.environ.get(_NAME, "").strip():
        return _parse(value, "the environment")
    if value := settings.text(_NAME, ".*", "options"):
        return _parse(value, "onestorrc")
    path = _tmrc()
    return _parse(config.assignment_in(path, _NAME), str(path))


def _parse(value: str, origin: str) -> list[str]:
    """``-o a=b,c=d`` as often as one likes; the ``-o`` may be missing."""
    try:
        words = [word for word in shlex.split(value) if word != "-o"]
    except ValueError as error:
        raise _refused(value, origin, str(error)) from None
    pairs = [pair for word in words for pair in word.removeprefix("-o").split(",") if pair]
    for pair in pairs:
        name, equals, setting = pair.partition("=")
        if name not in _ALLOWED or not equals or not re.fullmatch(r"[A-Za-z0-9.]+", setting):
            raise _refused(value, origin, f"{pair!r} is no option for an overlay")
    return pairs


def _refused(value: str, origin: str, why: str) -> InvalidInput:
    return InvalidInput("read the settings", f"{_NAME} of {origin} is {value!r}: {why}")


def _tmrc() -> Path:
    location = os.environ.get("ONE_LOCATION")  # a self-contained OpenNebula
    return Path(location, "etc/tmrc") if location else Path("/etc/one/tmrc")
