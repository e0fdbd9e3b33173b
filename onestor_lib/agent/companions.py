"""What lies beside an image in its datastore and is about its content."""

from __future__ import annotations

from pathlib import Path

from onestor_lib.agent import publish


def manifest(image: Path) -> Path:
    """Where the manifest of an origin lies."""
    return image.with_name(f".{image.name}.manifest")


def digest(image: Path) -> Path:
    """Where the MD5 of an image is written down, for ``datastore export``."""
    return image.with_name(f".{image.name}.md5")


def returned(image: Path) -> Path:
    """Where it is written down which disk came back to the image last."""
    return image.with_name(f".{image.name}.returned")


def snapshots(image: Path) -> Path:
    """The directory of the image's snapshots (contract section 1.8)."""
    return image.with_name(f"{image.name}.snap")


def forget(image: Path) -> None:
    """Remove what is written down about the content of ``image``, which is about to change.

    The ``.md5sum`` is what older drivers have left (contract section 8, trap 22).
    """
    old_drivers = image.with_name(f"{image.name}.md5sum")
    for note in (old_drivers, digest(image), manifest(image), returned(image)):
        publish.remove(note)
