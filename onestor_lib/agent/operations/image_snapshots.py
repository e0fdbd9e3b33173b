"""Snapshots of an image: the files ``<image>.snap/<id>`` (contract section 1.8).

Ours are complete copies. Older drivers have left chains: the image is a link to the newest of its
snapshots, and each of them a qcow2 overlay on the one before. Nothing that others need is removed
from such a chain, and what comes out of it is a complete image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent import chain, companions, mounts, paths, publish, replacement
from onestor_lib.agent.errors import NotAllowed, from_os_error
from onestor_lib.agent.server import Call


def delete(
    call: Call, *, path: str, base: str, snapshot: int, image_format: str, timeout: float
) -> None:
    """Remove one snapshot; one that is not there is removed already."""
    step = "delete snapshot"
    found = _Snapshots(path, base, image_format, step)
    target = found.file(snapshot)
    try:
        publish.sweep(found.image.parent)
        if not os.path.lexists(target):
            call.log("WARN", f"snapshot {snapshot} of {found.image} was not there")
        elif users := found.users(target):
            cause = f"{', '.join(map(str, users))} cannot be read without it"
            raise NotAllowed(step, cause, path=str(target))
        else:
            publish.remove(target)
            publish.sync_dir(found.directory)
        found.remove_if_empty()
    except OSError as error:
        raise from_os_error(step, error, where=path) from error


def revert(
    call: Call, *, path: str, base: str, snapshot: int, image_format: str, timeout: float
) -> None:
    """Let the image be a copy of one snapshot; until that is complete it is what it was."""
    step = "revert to snapshot"
    found = _Snapshots(path, base, image_format, step)
    source = found.require(snapshot)
    if users := found.users(found.image):
        cause = f"{', '.join(map(str, users))} cannot be read without the image as it is"
        raise NotAllowed(step, cause, path=str(found.image))
    try:
        publish.sweep(found.image.parent)
        with publish.Temporary(found.image) as temporary:
            found.copy(source, temporary.path, timeout)
            found.replace_image(temporary)
    except OSError as error:
        raise from_os_error(step, error, where=path) from error


def flatten(
    call: Call, *, path: str, base: str, snapshot: int, image_format: str, timeout: float
) -> None:
    """Let the image be one of its snapshots, and remove them all."""
    step = "flatten snapshots"
    found = _Snapshots(path, base, image_format, step)
    if not os.path.lexists(found.directory) and found.image.is_file():
        publish.sweep(found.image.parent)
        call.log("WARN", f"{found.image} has no snapshots: they are flattened already")
        return
    source = found.require(snapshot)
    try:
        publish.sweep(found.image.parent)
        with publish.Temporary(found.image) as temporary:
            if found.backing(source) or not temporary.become_link(source):
                found.copy(source, temporary.path, timeout)
            os.utime(temporary.path)  # another version, whatever the snapshot had been before
            found.replace_image(temporary)
        publish.take_away(found.directory)
        publish.sync_dir(found.image.parent)
    except OSError as error:
        raise from_os_error(step, error, where=path) from error


class _Snapshots:
    """The snapshots of the image ``path``, which is in the format that is on record."""

    def __init__(self, path: str, base: str, image_format: str, step: str) -> None:
        self.image = paths.inside(path, base, step=step)
        self.directory = companions.snapshots(self.image)
        mounts.require(base, required=False, step=step)
        replacement.finish(self.image)
        if self.directory.is_symlink():
            raise NotAllowed(step, "it is a symbolic link", path=str(self.directory))
        self._format, self._step = image_format, step

    def file(self, snapshot: int) -> Path:
        return self.directory / str(snapshot)

    def require(self, snapshot: int) -> Path:
        """The file of a snapshot all of whose data is this image's own."""
        file = self.file(snapshot)
        chain.require_regular(file, step=self._step)
        seen = [file]
        while (backing := self.backing(seen[-1])) is not None:
            is_ours = backing.parent == self.directory or backing == self.image
            if not is_ours or backing in seen:
                raise NotAllowed(
                    self._step, f"its backing file is {backing}, no snapshot of it", path=str(file)
                )
            chain.require_regular(backing, step=self._step)
            seen.append(backing)
        return file

    def backing(self, file: Path) -> Path | None:
        """What a qcow2 overlay lies on, with links resolved; None for a complete image."""
        return chain.backing(file, self._format, step=self._step)

    def users(self, file: Path) -> list[Path]:
        """The snapshots, and the image, whose content is in part that of ``file``."""
        using = chain.users(file, self._files(), self._format, step=self._step)
        if self.image.is_symlink() and os.path.realpath(self.image) == str(file):
            using.append(self.image)
        return using

    def copy(self, source: Path, target: Path, timeout: float) -> None:
        """Write the content of a snapshot to ``target``, as a complete image."""
        found = chain.layers(source, self._format, within=self.image.parent, step=self._step)
        chain.flatten(found, target, self._format, step=self._step, timeout=timeout)

    def replace_image(self, temporary: publish.Temporary) -> None:
        """Publish the new content; what is known of the old one goes first (trap 22)."""
        companions.forget(self.image)
        temporary.publish(mode=0o660, replace=True)

    def remove_if_empty(self) -> None:
        """Remove the directory when nothing is in it but the link to itself that chains need."""
        if not self.directory.is_dir():
            return
        publish.sweep(self.directory)
        if all(each.is_symlink() for each in self.directory.iterdir()):
            publish.take_away(self.directory)
            publish.sync_dir(self.image.parent)

    def _files(self) -> Iterator[Path]:
        """Everything that has content of this image, each file once."""
        if self.image.is_file() and not self.image.is_symlink():
            yield self.image
        if self.directory.is_dir():
            for each in sorted(self.directory.iterdir()):
                if not each.name.startswith(".") and stat.S_ISREG(each.lstat().st_mode):
                    yield each
