"""The files of one disk while its lock is held: the disk, what it lies on, and its snapshots."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from onestor_lib.agent import (
    chain,
    crashpoints,
    extents,
    layout,
    publish,
    qemu_img,
    space,
    vm_directory,
)
from onestor_lib.agent.errors import Missing, NotAllowed, OnestorError, from_os_error
from onestor_lib.agent.server import Call


@contextlib.contextmanager
def held(
    call: Call, path: str, image_format: str, step: str, lock_timeout: float
) -> Iterator[DiskFiles]:
    """The disk, with its lock: nothing else of ours changes or copies it meanwhile."""
    file = Path(path)
    if not file.parent.is_dir():
        raise Missing(step, "no such directory", path=str(file.parent))
    try:
        with vm_directory.lock(file, purpose=step, timeout=lock_timeout):
            disk = DiskFiles(call, file, image_format, step)
            publish.sweep(file.parent)
            publish.sweep(disk.directory)
            disk.finish_replacing()
            yield disk
    except OSError as error:
        raise from_os_error(step, error, where=path) from error


class DiskFiles:
    """A disk and its snapshots: ``image_format`` is that of all of them."""

    def __init__(self, call: Call, file: Path, image_format: str, step: str) -> None:
        self.file, self.step = file, step
        self.directory = vm_directory.snapshots_path(file)
        if self.directory.is_symlink():
            raise NotAllowed(step, "it is a symbolic link", path=str(self.directory))
        self._call, self._format = call, image_format

    def snapshot(self, number: int) -> Path:
        return self.directory / str(number)

    def layers(self, file: Path) -> list[chain.Layer]:
        """The files that ``file`` is made of; all of them lie in datastores on this machine."""
        within = self.file.parent.parent.parent
        return chain.layers(file, self._format, within=within, step=self.step)

    def is_ours(self, layers: list[chain.Layer]) -> bool:
        """Whether a copy of the topmost file is enough, in the disk's place or as a snapshot."""
        return layout.is_own(self.file, layers, self._format, step=self.step)

    def before_revert(self) -> list[chain.Layer]:
        """The files of the disk that will be replaced; none when it is gone or damaged."""
        if not self.file.exists():
            return []
        try:
            self.warn_of_backups(self.require_unused())
            return self.layers(self.file)
        except qemu_img.InUse:
            raise
        except OnestorError as error:
            self._call.log("WARN", f"the disk could not be read before: {error}")
            return []

    def warn_of_backups(self, bitmaps: list[str]) -> None:
        """Increments go from the bitmaps of the disk, if it has any, which will be gone."""
        if bitmaps:
            warning = "the next backup of the VM has to be a full one (onevm backup --reset)"
            self._call.log("WARN", warning)

    def bitmaps(self, file: Path) -> list[str]:
        """Those in a disk or snapshot that no VM uses."""
        return qemu_img.bitmaps(file, step=self.step) if self._format == "qcow2" else []

    def require_unused(self) -> list[str]:
        """The bitmaps of the disk. A VM that runs in spite of all is an error."""
        real = Path(os.path.realpath(self.file))
        qemu_img.require_unused(real, step=self.step)
        return self.bitmaps(real)

    def remove_bitmaps(self, copy: Path, bitmaps: list[str]) -> None:
        """Let nobody take the bitmaps of a copy for what has changed since the last backup.

        They may be of an earlier series of backups whose names come again: the next increment
        would lack blocks. Without them it fails, and the next full backup begins anew.
        """
        for name in bitmaps:
            qemu_img.remove_bitmap(copy, name, step=self.step)

    @contextlib.contextmanager
    def new(self, number: int) -> Iterator[publish.Temporary]:
        """A temporary for a snapshot, in the directory of the snapshots, which is made for it."""
        made = not self.directory.is_dir()
        self.directory.mkdir(mode=0o755, exist_ok=True)
        try:
            if vm_directory.base_path(self.file).exists():
                self._link_base()
            with publish.Temporary(self.snapshot(number)) as temporary:
                yield temporary
        except BaseException:
            if made:
                publish.take_away(self.directory)
            raise

    def _link_base(self) -> None:
        """Let snapshots find the base of the disk by the name that is in their headers."""
        base = vm_directory.base_path(self.file).name
        link = self.directory / base
        if not os.path.lexists(link):
            link.symlink_to(f"../{base}")

    def copy(
        self,
        layers: list[chain.Layer],
        target: Path,
        *,
        check_space: bool,
        sparse: bool,
        timeout: float,
    ) -> None:
        """Copy a disk or snapshot to the existing file ``target``, which lies on the same base."""
        top, shallow = layers[0].path, self.is_ours(layers)
        if check_space and not (shallow and sparse and extents.can_share(target.parent)):
            needed = chain.allocated(layers[:1] if shallow else layers)
            full = chain.virtual_size(top, self._format, step=self.step)
            space.require(target.parent, needed if sparse else max(needed, full))
        if shallow:
            extents.copy_path(top, target, sparse=sparse, step=self.step)
        else:
            chain.flatten(layers, target, self._format, step=self.step, timeout=timeout)

    def put(self, number: int, temporary: publish.Temporary) -> None:
        """Give a snapshot its name, and whatever had that another (known failure F2)."""
        final = self.snapshot(number)
        crashpoints.reach("snapshot.copied")
        if os.path.lexists(final):
            if users := self.users(final):
                cause = f"{', '.join(map(str, users))} cannot be read without what is there"
                raise NotAllowed(self.step, cause, path=str(final))
            aside = vm_directory.unknown(final)
            final.rename(aside)
            crashpoints.reach("snapshot.aside")
            self._call.log("WARN", f"{final} was there, unknown to oned: it is {aside.name} now")
        try:
            temporary.publish(mode=0o660)
            publish.sync_dir(self.file.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                publish.remove(final)
            raise

    def become_regular(self, layers: list[chain.Layer], check_space: bool, timeout: float) -> None:
        """Let a disk that is a link to a chain of files be one file of its own."""
        if check_space:
            space.require(self.file.parent, chain.allocated(layers))
        with publish.Temporary(self.file) as temporary:
            chain.flatten(layers, temporary.path, self._format, step=self.step, timeout=timeout)
            self.replace(temporary, layers)

    def replace(self, temporary: publish.Temporary, before: list[chain.Layer]) -> None:
        """Give the disk new content; what it was made of ``before`` goes when nothing needs it.

        A note says so until it is done: a number in the directory of the snapshots looks like one.
        """
        names = [layer.path.name for layer in before if layer.path.parent != self.file.parent]
        if names:
            publish.write_file(self._former, json.dumps(names).encode("ascii") + b"\n")
        temporary.publish(mode=0o660, replace=True)
        self.forget_former(before)
        publish.remove(self._former)

    def finish_replacing(self) -> None:
        """Do what a killed :meth:`replace` has left to do."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            names = [str(name) for name in json.loads(self._former.read_bytes())]
            if not self.file.is_symlink():
                directory = Path(os.path.realpath(self.directory))
                files = [directory / os.path.basename(name) for name in names]
                self.forget_former(
                    [chain.Layer(file, self._format) for file in files if file.exists()]
                )
        publish.remove(self._former)

    @property
    def _former(self) -> Path:
        return self.file.parent / f".{self.file.name}.former"

    def forget_former(self, layers: list[chain.Layer]) -> None:
        """Remove the files that a disk was made of until now and that nothing needs any more.

        The topmost one was written to, so it is no snapshot; of those below, numbers are.
        """
        for index, layer in enumerate(layers):
            path = layer.path
            if path.parent != Path(os.path.realpath(self.directory)):
                continue
            if (index and vm_directory.is_snapshot(path.name)) or self.users(path):
                break
            publish.remove(path)

    def is_made_of(self, file: Path, layers: list[chain.Layer]) -> bool:
        """Whether ``file`` is one of those that the disk consists of."""
        return Path(os.path.realpath(file)) in [layer.path for layer in layers]

    def require_not_made_of(self, file: Path, layers: list[chain.Layer]) -> None:
        """Raise :class:`NotAllowed` when ``file`` is part of the disk as it is."""
        if self.is_made_of(file, layers):
            raise NotAllowed(self.step, "the disk itself is made of it", path=str(file))

    def users(self, file: Path) -> list[Path]:
        """The snapshots, and the disk, that lie directly on ``file``."""
        real = Path(os.path.realpath(file))
        return chain.users(real, self._files(), self._format, step=self.step)

    def tidy(self) -> None:
        """Remove the directory when it has nothing but links, and a base that nothing lies on."""
        if self.directory.is_dir() and all(each.is_symlink() for each in self.directory.iterdir()):
            publish.take_away(self.directory)
        base = vm_directory.base_path(self.file)
        if self.file.exists() and base.exists() and not self.users(base):
            try:
                self.layers(self.file)
                publish.remove(base)
            except OnestorError as error:
                self._call.log("WARN", f"{base} is kept: {error}")
        publish.sync_dir(self.file.parent)

    def _files(self) -> Iterator[Path]:
        if self.file.is_file():
            yield self.file
        if self.directory.is_dir():
            for each in sorted(self.directory.iterdir()):
                if stat.S_ISREG(each.lstat().st_mode) and not publish.is_temporary(each.name):
                    yield each
