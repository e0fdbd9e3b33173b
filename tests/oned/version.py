"""OpenNebula's version numbers, compared by number: 6.10 comes after 6.8."""

from __future__ import annotations


def at_least(version: str, minimum: str) -> bool:
    """Tell whether `version`, such as 6.10.0.1, is `minimum`, such as 6.8, or later."""
    return _numbers(version) >= _numbers(minimum)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
