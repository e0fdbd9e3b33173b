"""Operations on images that are registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestor_lib.agent import origin
from onestor_lib.agent.server import Call


def describe(call: Call, *, path: str, image_format: str, snapshots: bool) -> dict[str, Any]:
    """What has to be known of a registered image before it is copied."""
    return origin.describe(Path(path), image_format, snapshots=snapshots)


def missing(call: Call, *, directory: str, names: list[str]) -> dict[str, list[str]]:
    """Which of the files ``names`` are not in ``directory``; none when that is not there itself."""
    return {"names": origin.missing(Path(directory), names)}
