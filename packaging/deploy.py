"""Put the drivers into OpenNebula's remotes directory, check them there, take them out again.

The remotes directory is copied to every host, so whatever is wrong in it is wrong everywhere: a
file only ever appears whole, readable and with its final owner, and a second run touches nothing.
What was installed is recorded in a manifest beside the library. It tells the next run which files
are gone from the source and which configuration an administrator has edited.

The directory belongs to the drivers' user, so root changes it as that user: links in there lead to
nothing that user could not change. Root itself only takes back what has a wrong owner.

An upgrade changes a copy of the library, which then takes the library's place in one step: an
action or a pass of the timer that begins meanwhile meets the one version or the other, whole. What
is at work just then and loads a module later may get one of the new version; where the two do not
fit, that action fails, and oned or its user tries it again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import grp
import hashlib
import importlib.util
import os
import pwd
import py_compile
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import takeover
from failure import Failure, status_of
from manifest import MANIFEST, Manifest

# Of the tree that is installed from: root runs nothing out of the remotes directory.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onestor_lib.frontend import bundle

LIBRARY = "onestor_lib"
BUNDLE = f"{LIBRARY}/{bundle.PREBUILT}"
DRIVERS = ("tm/onestor", "datastore/onestor")
CONFIGURATION = ("etc/tm/onestor", "etc/datastore/onestor")
# Nobody but us puts files there.
OWN = (*DRIVERS, LIBRARY)
# monitor_ds also runs on the hosts, with their python3 and nothing but the standard library.
RUNS_ON_HOSTS = ("tm/onestor/monitor_ds",)

ENV_PYTHON = b"#!/usr/bin/env python3\n"
VENV_MARKER = "made-by-onestor"
TEMPORARY = ".onestor-tmp"


# -- what is to be installed ------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    path: str
    data: bytes
    mode: int

    @property
    def digest(self) -> str:
        return digest(self.data)

    @property
    def is_configuration(self) -> bool:
        return self.path.startswith("etc/")


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def within(path: str, directories: tuple[str, ...]) -> bool:
    return any(path.startswith(directory + "/") for directory in directories)


def source_files(source: Path, interpreter: str) -> dict[str, File]:
    """Every file as it has to be in the remotes directory, the library first.

    An action that starts during an upgrade then meets the new library before the new scripts.
    """
    found = {}
    for root, prefix in ((source / LIBRARY, LIBRARY), (source / "remotes", "")):
        if not root.is_dir():
            raise Failure("source", root, "not there; run install.sh from a complete onestor tree")
        for path in walk(root):
            name = str(PurePosixPath(prefix, path.relative_to(root).as_posix()))
            data = path.read_bytes()
            script = prefix == "" and (data.startswith(b"#!") or os.access(path, os.X_OK))
            executable = script and not name.startswith("etc/")
            driver = within(name, DRIVERS) and name not in RUNS_ON_HOSTS
            if interpreter and driver and data.startswith(ENV_PYTHON):
                data = f"#!{interpreter}\n".encode() + data[len(ENV_PYTHON) :]
            found[name] = File(name, data, 0o755 if executable else 0o644)
    return found


def walk(root: Path) -> Iterator[Path]:
    """The files of a tree, symbolic links followed, without what is no part of the drivers."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name.endswith((".pyc", "~", ".orig", ".rej")):
            continue
        if path.is_dir():
            if path.name not in ("__pycache__", "tests"):
                yield from walk(path)
        elif path.is_file():
            yield path
        else:
            raise Failure("source", path, "neither a file nor a link to one")


def source_version(source: Path) -> str:
    text = (source / LIBRARY / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return match.group(1) if match else "unknown"


def manifest_file(manifest: Manifest) -> File:
    return File(MANIFEST, manifest.text().encode(), 0o644)


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int
    name: str

    @classmethod
    def parse(cls, text: str) -> Owner:
        user, _, group = text.partition(":")
        try:
            entry = pwd.getpwnam(user)
            gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
        except KeyError as err:
            raise Failure("user", text, "no such user or group") from err
        return cls(entry.pw_uid, gid, user)

    def of(self, status: os.stat_result) -> bool:
        return (status.st_uid, status.st_gid) == (self.uid, self.gid)


@contextlib.contextmanager
def acting_as(owner: Owner) -> Iterator[None]:
    """Meet the file system as the drivers' user does: root can read what that user cannot."""
    if os.geteuid() != 0 or owner.uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(owner.name, owner.gid))
    os.setegid(owner.gid)
    os.seteuid(owner.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


# -- changing the remotes directory -----------------------------------------------------------


@contextlib.contextmanager
def acting_as_root() -> Iterator[None]:
    """For one step within :func:`acting_as`, where root runs all of this."""
    if os.getuid() != 0 or os.geteuid() == 0:
        yield
        return
    uid = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(uid)


@dataclass(frozen=True)
class Place:
    """An open directory: whose it is, and where, whatever its path leads to later."""

    uid: int
    real: Path

    @classmethod
    def of(cls, handle: int) -> Place:
        return cls(os.fstat(handle).st_uid, Path(os.readlink(f"/proc/self/fd/{handle}")))

    @classmethod
    def of_directory(cls, path: Path) -> Place:
        """The same of a path that is no link."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return cls.of(handle)
        finally:
            os.close(handle)


def acting_on(remotes: Place, owner: Owner) -> contextlib.AbstractContextManager[None]:
    """Change the remotes directory as its owner, whose it is to lead us astray in there with links.

    Raises :class:`Failure` where root would have to work in a directory of yet another user.
    """
    if remotes.uid == owner.uid:
        return acting_as(owner)
    if os.geteuid() == 0 and not only_roots(remotes.real):
        cause = f"belongs to user {remotes.uid}; chown it to {owner.name}, whose directory it is in"
        raise Failure("user", remotes.real, cause)
    return contextlib.nullcontext()


@dataclass
class Deployment:
    """Every change of the remotes directory goes through here; with dry_run none is made."""

    remotes: Path
    owner: Owner
    place: Place
    dry_run: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    removed: set[Path] = field(default_factory=set)
    final: Path | None = None  # what ``remotes`` is a copy of, to take its place

    def note(self, what: str, path: Path, tell: bool = False) -> None:
        """Count a change; say each only where an administrator has a reason to look."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if tell or self.dry_run:
            say(f"{'would be ' if self.dry_run else ''}{what}: {self.final_path(path)}")

    def final_path(self, path: Path) -> Path:
        """Where a file will be in the end."""
        return self.final / path.relative_to(self.remotes) if self.final else path

    def take_over(self, other: Deployment) -> None:
        """Count what another one has done, too."""
        for what, count in other.counts.items():
            self.counts[what] = self.counts.get(what, 0) + count

    def summary(self, idle: str) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        would_be = "would be " if self.dry_run and counts else ""
        return f"{self.remotes}: {would_be}{counts or idle}"

    def put(self, file: File) -> bool:
        """Publish a file; False when it was already there, content, mode and owner."""
        target = self.remotes / file.path
        self.directory(target.parent)
        status = lstat(target)
        if status and stat.S_ISDIR(status.st_mode):
            raise Failure("copy", self.final_path(target), "is a directory")
        if status and stat.S_ISREG(status.st_mode) and target.read_bytes() == file.data:
            self.permissions(target, status, file.mode)
            return False
        if file.path != MANIFEST:
            self.note("updated" if status else "installed", target, tell=file.is_configuration)
        if not self.dry_run:
            temporary = target.with_name(f".{target.name}{TEMPORARY}")
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            # Exclusive: root must not write through a link that waits under this name.
            with temporary.open("xb") as stream:
                stream.write(file.data)
            self.publish(temporary, target, file.mode)
        return True

    def publish(self, temporary: Path, target: Path, mode: int) -> None:
        """Owner, mode and data are final before the file has its name."""
        handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if not self.owner.of(os.fstat(handle)):
                os.fchown(handle, self.owner.uid, self.owner.gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(target)

    def directory(self, path: Path) -> None:
        """Make a directory and its parents; those of OpenNebula keep their modes and owners."""
        if path == self.remotes:
            return
        self.directory(path.parent)
        name = path.relative_to(self.remotes).as_posix() + "/"
        ours = within(name, (*OWN, *CONFIGURATION))
        status = lstat(path)
        if status is None:
            if not self.dry_run:
                self.make_directory(path)
                self.permissions(path, path.lstat(), 0o755, quiet=True)
        elif ours and stat.S_ISLNK(status.st_mode):
            cause = "is a symbolic link, the files would go elsewhere; remove it"
            raise Failure("copy", self.final_path(path), cause)
        elif ours and stat.S_ISDIR(status.st_mode):
            self.permissions(path, status, 0o755)
        elif not path.is_dir():
            raise Failure("copy", self.final_path(path), "is no directory")

    def make_directory(self, path: Path) -> None:
        """Make one directory, also in one of root's: nobody else can put a link there."""
        try:
            path.mkdir(0o755)
        except PermissionError:
            with acting_as_root(), self.opened(path.parent) as parent:
                if os.fstat(parent).st_uid == self.owner.uid:
                    raise
                os.mkdir(path.name, 0o755, dir_fd=parent)

    def permissions(
        self, path: Path, status: os.stat_result, mode: int, quiet: bool = False
    ) -> None:
        wrong_owner = not self.owner.of(status)
        wrong_mode = stat.S_IMODE(status.st_mode) != mode
        if not (wrong_owner or wrong_mode):
            return
        if not quiet:
            self.note("owner or mode corrected", path, tell=True)
        if self.dry_run:
            return
        with acting_as_root(), self.opened(path) as handle:
            if wrong_owner:
                os.fchown(handle, self.owner.uid, self.owner.gid)
            os.fchmod(handle, mode)

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """A file or directory of ours, open, which is in there in truth: root gives it away."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            place = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if self.place.real not in (place, *place.parents):
                raise Failure("owner", path, f"leads to {place}; remove the link, or chown that")
            yield handle
        finally:
            os.close(handle)

    def remove(self, path: Path) -> None:
        if lstat(path) is None:
            return
        self.note("removed", path, tell=path.suffix != ".pyc")
        self.removed.add(path)
        if not self.dry_run:
            try:
                path.unlink()
            except PermissionError:  # root's directory, a __pycache__ for one
                with acting_as_root(), self.opened(path.parent) as parent:
                    os.unlink(path.name, dir_fd=parent)

    def remove_tree(self, path: Path) -> None:
        self.note("removed", path, tell=True)
        if not self.dry_run:
            shutil.rmtree(path)

    def prune(self) -> None:
        """Remove our directories that have become empty, the deepest first."""
        if self.dry_run:
            return
        for top in (*OWN, *CONFIGURATION):
            root = self.remotes / top
            if root.is_dir() and not root.is_symlink():
                for path in sorted([root, *directories(root)], reverse=True):
                    with contextlib.suppress(OSError):  # not empty: it stays
                        path.rmdir()
                    if path.exists():
                        with (
                            contextlib.suppress(OSError, Failure),
                            acting_as_root(),
                            self.opened(path.parent) as parent,
                        ):
                            os.rmdir(path.name, dir_fd=parent)


def directories(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            yield path


def lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    sys.stderr.write(f"install.sh: warning: {text}\n")


@contextlib.contextmanager
def locked(remotes: Path) -> Iterator[Place]:
    """One run at a time; the lock is on the directory itself and leaves nothing behind."""
    handle = os.open(remotes, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Place.of(handle)
    except BlockingIOError as err:
        raise Failure("lock", remotes, "another install.sh is at work here") from err
    finally:
        os.close(handle)


# -- the library in one step --------------------------------------------------------------------


@contextlib.contextmanager
def renewed(deployment: Deployment) -> Iterator[Deployment]:
    """Where to change the library: in a copy, which takes its place if the block changes anything.

    What does not change stays the same file, so that bytecode goes on fitting its module. Where no
    copy can be made, and where there is no library yet, that is the directory itself.
    """
    live = deployment.remotes / LIBRARY
    status = lstat(live)
    if deployment.dry_run or status is None or not stat.S_ISDIR(status.st_mode):
        yield deployment
        return
    with stage_beside(deployment.remotes) as stage:
        if not link_tree(live, stage / LIBRARY):
            yield deployment
            return
        place = Place.of_directory(stage)
        if place.uid != os.geteuid():
            raise Failure("stage", stage, "somebody has replaced it")
        copy = Deployment(stage, deployment.owner, place, final=deployment.remotes)
        yield copy
        if copy.counts:
            exchange(stage / LIBRARY, live, stage / "old")
        deployment.take_over(copy)


@contextlib.contextmanager
def stage_beside(remotes: Path) -> Iterator[Path]:
    """A new directory on the file system of remotes, not in it: a host that syncs would meet it."""
    name = f".{LIBRARY}.{os.getpid()}{TEMPORARY}"
    is_one = remotes.parent.stat().st_dev == remotes.stat().st_dev
    can_write = os.access(remotes.parent, os.W_OK, effective_ids=True)
    parent = remotes.parent if is_one and can_write else remotes
    for top in {remotes.parent, remotes}:
        for leftover in [*top.glob(f".{LIBRARY}.*{TEMPORARY}")]:  # of a run that was cut short
            with acting_as_root():  # which may have been root's; no link is followed
                shutil.rmtree(leftover, ignore_errors=True)
    stage = parent / name
    stage.mkdir(0o755)
    try:
        yield stage
    finally:
        with acting_as_root():  # what was in the old library may be anybody's; no link is followed
            shutil.rmtree(stage, ignore_errors=True)


def link_tree(source: Path, target: Path) -> bool:
    """The same files once more, in directories of the same modes, and owners if we may."""
    try:
        for top, _, _files in os.walk(source):
            directory = target / Path(top).relative_to(source)
            status = os.stat(top)
            directory.mkdir(0o700)
            with contextlib.suppress(PermissionError):
                os.chown(directory, status.st_uid, status.st_gid)
            directory.chmod(stat.S_IMODE(status.st_mode))
            with os.scandir(top) as entries:
                for entry in entries:
                    if entry.is_symlink() or not entry.is_dir():
                        os.link(entry.path, directory / entry.name, follow_symlinks=False)
    except OSError as err:
        if err.errno not in (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def exchange(new: Path, live: Path, old: Path) -> None:
    """Let ``new`` be at ``live``; what was there is at ``new`` or at ``old``.

    Nobody finds anything but the one or the other there. Only where the file system cannot do that
    (some on a network) there is nothing for a moment.
    """
    at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: renameat2(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):  # glibc 2.28
        paths = os.fsencode(new), os.fsencode(live)
        if libc.renameat2(at_cwd, paths[0], at_cwd, paths[1], swap) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise OSError(number, os.strerror(number), str(live))
    live.rename(old)
    try:
        new.rename(live)
    except OSError:
        old.rename(live)
        raise


# -- bytecode ---------------------------------------------------------------------------------


def bytecode_path(source: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(source)))


def bytecode_is_valid(source: Path) -> bool:
    """Whether the interpreter at work would use the bytecode beside this module."""
    try:
        with bytecode_path(source).open("rb") as stream:
            header = stream.read(16)
        status = source.stat()
    except FileNotFoundError:
        return False
    words = [0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]
    return header == importlib.util.MAGIC_NUMBER + b"".join(
        word.to_bytes(4, "little") for word in words
    )


def compile_library(deployment: Deployment, modules: list[str], changed: set[str]) -> None:
    """Bytecode beside each module: the drivers never write any, or every host would get it."""
    for name in modules:
        source = deployment.remotes / name
        target = bytecode_path(source)
        deployment.directory(target.parent)
        # A change within one second and of the same size would not show in the bytecode's header.
        if name not in changed and bytecode_is_valid(source):
            deployment.permissions(target, target.lstat(), 0o644)
        elif not deployment.dry_run:
            temporary = target.with_name(f".{target.name}{TEMPORARY}")
            py_compile.compile(
                str(source),
                str(temporary),
                dfile=str(deployment.final_path(source)),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP,
            )
            deployment.note("compiled", target)
            deployment.publish(temporary, target, 0o644)


def bundle_agent(deployment: Deployment, recorded: str) -> str:
    """What agents are started with, made of the installed modules; returns its digest.

    Without it every action would have to make it.
    """
    if deployment.dry_run:
        return recorded
    file = File(BUNDLE, bundle.prebuild(deployment.remotes / LIBRARY), 0o644)
    deployment.put(file)
    return file.digest


def foreign_bytecode(remotes: Path, modules: list[str]) -> Iterator[Path]:
    """Bytecode of modules that are gone, of another interpreter, or beside entry scripts."""
    expected = {bytecode_path(remotes / name) for name in modules}
    for top in OWN:
        for path in (remotes / top).rglob("__pycache__/*"):
            if path not in expected:
                yield path


def modules_of(files: dict[str, File]) -> list[str]:
    return [name for name in files if within(name, (LIBRARY,)) and name.endswith(".py")]


# -- commands ---------------------------------------------------------------------------------


def install(deployment: Deployment, source: Path, interpreter: str, venv: str) -> None:
    files = source_files(source, interpreter)
    for name in modules_of(files):
        try:
            compile(files[name].data, name, "exec")
        except (SyntaxError, ValueError) as err:
            raise Failure("compile", source / name, str(err)) from err
    with acting_on(deployment.place, deployment.owner):
        put_in_place(deployment, files, Manifest(source_version(source), interpreter, venv))


def put_in_place(deployment: Deployment, files: dict[str, File], new: Manifest) -> None:
    """All of :func:`install` that the remotes directory sees; ``new`` is what will be recorded."""
    remotes = deployment.remotes
    old = Manifest.read(remotes)
    changed = set()
    planned = {name: file.digest for name, file in files.items() if not file.is_configuration}
    planned[BUNDLE] = ""  # what it will be is not known yet
    if not set(planned) <= set(old.files):
        # Should this run be cut short, --uninstall still knows all that it may have left.
        both = Manifest(old.version, old.interpreter, old.venv, planned | old.files)
        deployment.put(manifest_file(both))
    modules = modules_of(files)
    vanished = sorted(set(old.files) - set(planned) - set(files))
    with renewed(deployment) as library:
        for name, file in files.items():
            if within(name, (LIBRARY,)):
                new.files[name] = file.digest
                if library.put(file):
                    changed.add(name)
        for name in vanished:
            if within(name, (LIBRARY,)):
                remove_installed(library, name, old.files[name])
        compile_library(library, modules, changed)
        clean(library, modules, (LIBRARY,))
        # Last: it fits only as long as no module comes or goes.
        new.files[BUNDLE] = bundle_agent(library, old.files.get(BUNDLE, ""))
    for name, file in files.items():
        if file.is_configuration:
            new.files.update(install_configuration(deployment, file, old.files.get(name)))
        elif not within(name, (LIBRARY,)):
            new.files[name] = file.digest
            deployment.put(file)
    for name in vanished:
        if name in new.files or within(name, (LIBRARY,)):
            continue
        if not remove_installed(deployment, name, old.files[name]):
            say(f"edited, left alone: {remotes / name}")
    clean(deployment, modules, (*DRIVERS, *CONFIGURATION))
    if old.venv and old.venv != new.venv:
        remove_venv(deployment, old.venv)
    deployment.put(manifest_file(new))
    if old.version:
        tell_of_upgrade(deployment, old.version, new.version)


def clean(deployment: Deployment, modules: list[str], tops: tuple[str, ...]) -> None:
    """Remove from directories of ours what no version has meant to be there."""
    for path in [*foreign_bytecode(deployment.remotes, modules)]:
        if within(path.relative_to(deployment.remotes).as_posix(), tops):
            deployment.remove(path)
    for top in tops:
        for path in [*(deployment.remotes / top).rglob(f".*{TEMPORARY}")]:
            deployment.remove(path)
    deployment.prune()


def tell_of_upgrade(deployment: Deployment, old: str, new: str) -> None:
    """What an administrator has to know behind it; nothing when nothing has changed."""
    if not deployment.counts:
        return
    what = f"from {old} to {new}" if old != new else f"{new}, of which files were different"
    if deployment.dry_run:
        say(f"would be upgraded: onestor {what}")
        return
    say(f"upgraded: onestor {what}; the drivers need no restart of anything")
    say(f"what the hosts have of it is older now: onehost sync -f, as {deployment.owner.name}")


def install_configuration(
    deployment: Deployment, file: File, recorded: str | None
) -> dict[str, str]:
    """Install, update or leave alone one configuration file; returns the manifest's entries."""
    target = deployment.remotes / file.path
    beside = File(file.path + ".new", file.data, file.mode)
    status = lstat(target)
    taken_over: list[str] = []
    if file.path == takeover.ONESTORRC and recorded is None:
        file, taken_over = take_over(deployment, file)
    else:
        file = carry_over(deployment.remotes, file, recorded)
    edited = (
        status is not None
        and (current := digest(target.read_bytes())) != file.digest
        and current != recorded
    )
    if not edited:
        deployment.put(file)
        deployment.remove(deployment.remotes / beside.path)
        for line in taken_over:
            would_be = "would be " if deployment.dry_run else ""
            say(f"{would_be}taken over from sshrc: {line}")
        return {file.path: file.digest}
    say(f"edited, left alone: {target}; the packaged one is {target}.new")
    if names := new_settings(file.data, target.read_bytes()):
        say(f"  new in it: {' '.join(names)}")
    deployment.put(beside)
    entries = {beside.path: beside.digest}
    # The digest of what was installed, not of what is there: it still counts as edited next time.
    return entries if recorded is None else {**entries, file.path: recorded}


def new_settings(packaged: bytes, edited: bytes) -> list[str]:
    """The settings that the packaged file has and the edited one does not even comment out."""
    setting = re.compile(rb"^#?([A-Z][A-Z0-9_]*)=", re.MULTILINE)
    known = set(setting.findall(edited))
    return [name.decode("ascii") for name in setting.findall(packaged) if name not in known]


def take_over(deployment: Deployment, file: File) -> tuple[File, list[str]]:
    """onestorrc with the ssh driver's values, and the lines to tell, when it is not there yet."""
    path = deployment.remotes / takeover.SSHRC
    try:
        # Not as root: through a link, that would read what the drivers' user must not.
        with acting_as(deployment.owner):
            text = takeover.read(path)
        plan = takeover.plan(path, text or "")
    except OSError as err:
        plan = takeover.Plan({}, [f"{path}: {err.strerror}; nothing was taken over from it"])
    target = deployment.remotes / file.path
    with_values = replace(file, data=takeover.activate(file.data, plan.lines))
    if lstat(target) is None:
        for warning in plan.warnings:
            warn(warning)
        return with_values, [*plan.lines.values()]
    # No record of it: the administrator's, unless the run that wrote it was cut short.
    return (with_values if target.read_bytes() == with_values.data else file), []


def carry_over(remotes: Path, file: File, recorded: str | None) -> File:
    """The packaged onestorrc with what was taken over into the one that is there.

    So that an upgrade may replace it as any file that nobody has edited.
    """
    path = remotes / file.path
    if file.path != takeover.ONESTORRC or path.is_symlink() or not path.is_file():
        return file
    try:
        current = path.read_bytes()
    except OSError:  # whoever compares the two meets it again, and tells
        return file
    if digest(current) != recorded:
        return file
    return replace(file, data=takeover.carry(current, file.data))


def remove_installed(deployment: Deployment, name: str, recorded: str) -> bool:
    """Remove a file of an earlier run; outside our own directories only as it was installed."""
    path = deployment.remotes / name
    if lstat(path) is None:
        return True
    if not within(name, OWN) and digest(path.read_bytes()) != recorded:
        return False
    deployment.remove(path)
    return True


def remove_venv(deployment: Deployment, venv: str) -> None:
    """Remove a private environment, if install.sh made it."""
    path = Path(venv)
    if venv and (path / VENV_MARKER).is_file():
        with acting_as_root() if only_roots(path) else contextlib.nullcontext():
            deployment.remove_tree(path)
            if path.parent.name == "onestor" and not deployment.dry_run:
                with contextlib.suppress(OSError):  # not empty: it stays
                    path.parent.rmdir()


def only_roots(path: Path) -> bool:
    """Whether none but root can have put there what is at ``path``, links followed."""
    real = path.resolve()
    found = [each.stat() for each in (real, *real.parents)]
    sticky_or_closed = [not each.st_mode & 0o002 or each.st_mode & stat.S_ISVTX for each in found]
    return all(each.st_uid == 0 for each in found) and all(sticky_or_closed)


def uninstall(deployment: Deployment, venv: str) -> None:
    """Remove what was installed, and nothing else; what stays in our directories is told."""
    with acting_on(deployment.place, deployment.owner):
        take_out(deployment, venv)


def take_out(deployment: Deployment, venv: str) -> None:
    """The work of :func:`uninstall`."""
    remotes = deployment.remotes
    manifest = Manifest.read(remotes)
    for top in OWN:
        if (remotes / top).is_dir():
            deployment.directory(remotes / top)
    for name, recorded in sorted(manifest.files.items()):
        remove_installed(deployment, name, recorded)
    for path in [*foreign_bytecode(remotes, [])]:
        deployment.remove(path)
    for environment in {manifest.venv, venv}:
        remove_venv(deployment, environment)
    deployment.remove(remotes / MANIFEST)
    deployment.prune()
    for top in (*OWN, *CONFIGURATION):
        for path in sorted((remotes / top).rglob("*")):
            if not path.is_dir() and path not in deployment.removed:
                reason = "edited" if within(top, ("etc",)) else "not installed by install.sh"
                say(f"kept, {reason}: {path}")


def check(remotes: Path, owner: Owner, source: Path, mend: str) -> int:
    """One line per finding; 1 when there is a problem."""
    problems = 0

    def problem(text: str, cure: str) -> None:
        nonlocal problems
        problems += 1
        say(f"problem: {text}; mend: {cure}")

    if lstat(remotes / MANIFEST) is None:
        problem(f"{remotes}: onestor is not installed", mend)
    else:
        manifest = Manifest.read(remotes)
        files = {
            name: carry_over(remotes, file, manifest.files.get(name))
            for name, file in source_files(source, manifest.interpreter).items()
        }
        found = [*compare(remotes, owner, files, manifest)]
        for text in found:
            problem(text, mend)
        for path in strangers(remotes, files):
            problem(f"{path}: not a file of this version", f"rm {quoted(path)}")
        if not found:
            say(f"ok: {remotes}: {len(files)} files as in this tree")
    hazards = 0
    with acting_as(owner):
        for text, cure in host_hazards(remotes, owner):
            problem(text, cure)
            hazards += 1
    if not hazards:
        say(f"ok: {remotes}: all readable by {owner.name}, no dangling link, no foreign bytecode")
    return 1 if problems else 0


def compare(
    remotes: Path, owner: Owner, files: dict[str, File], manifest: Manifest
) -> Iterator[str]:
    if not remotes.is_dir():
        return
    for name, file in files.items():
        path = remotes / name
        try:
            status = lstat(path)
            if status is None:
                yield f"{path}: missing"
                continue
            if not stat.S_ISREG(status.st_mode):
                yield f"{path}: not a regular file"
                continue
            data = path.read_bytes()
        except OSError as err:
            yield f"{path}: {err.strerror}"
            continue
        if data != file.data:
            if not file.is_configuration or digest(data) == manifest.files.get(name):
                yield f"{path}: differs from this tree"
            else:
                say(f"ok: {path}: edited")
        else:
            yield from wrong_mode(path, status, file.mode)
        yield from wrong_owner(path, status, owner)
    for name in modules_of(files):
        if lstat(remotes / name) is not None and not bytecode_is_valid(remotes / name):
            yield f"{remotes / name}: no valid bytecode beside it"
    yield from compare_bundle(remotes, owner)


def compare_bundle(remotes: Path, owner: Owner) -> Iterator[str]:
    path = remotes / BUNDLE
    status = lstat(path)
    if status is None:
        yield f"{path}: missing"
    elif not stat.S_ISREG(status.st_mode):
        yield f"{path}: not a regular file"
    else:
        if bundle.prebuilt(remotes / LIBRARY) is None:
            yield f"{path}: damaged, or made of other modules or for another python"
        yield from wrong_mode(path, status, 0o644)
        yield from wrong_owner(path, status, owner)


def wrong_mode(path: Path, status: os.stat_result, mode: int) -> Iterator[str]:
    if stat.S_IMODE(status.st_mode) != mode:
        yield f"{path}: mode {stat.S_IMODE(status.st_mode):04o} instead of {mode:04o}"


def wrong_owner(path: Path, status: os.stat_result, owner: Owner) -> Iterator[str]:
    if not owner.of(status):
        yield f"{path}: owner {status.st_uid}:{status.st_gid}, not {owner.uid}:{owner.gid}"


def strangers(remotes: Path, files: dict[str, File]) -> Iterator[Path]:
    """Files in our directories that this version does not have."""
    for top in OWN:
        for path in sorted((remotes / top).rglob("*")):
            name = path.relative_to(remotes).as_posix()
            if path.is_dir() or name in files or name in (MANIFEST, BUNDLE):
                continue
            if "__pycache__" not in path.parts:
                yield path
    yield from foreign_bytecode(remotes, modules_of(files))


def host_hazards(remotes: Path, owner: Owner) -> Iterator[tuple[str, str]]:
    """What makes the copy to the hosts fail: `rsync -L` ends with 23, and each host is in ERROR."""
    seen = set()
    queue = [remotes]
    while queue:
        path = queue.pop()
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                queue.extend(sorted(path.iterdir(), reverse=True))
            elif stat.S_ISREG(status.st_mode):
                path.open("rb").close()
        except FileNotFoundError:
            yield f"{path}: dangling symbolic link, every host fails to sync", f"rm {quoted(path)}"
            continue
        except OSError as err:
            reason = (
                f"{path}: {owner.name} cannot read it ({err.strerror}), every host fails to sync"
            )
            yield reason, f"chown {owner.name} {quoted(path)} && chmod u+rX {quoted(path)}"
            continue
        bytecode = path.name == "__pycache__" or path.suffix == ".pyc"
        if bytecode and status.st_uid != owner.uid:
            text = f"{path}: bytecode that is not {owner.name}'s goes to every host"
            yield text, f"rm -r {quoted(path)}"


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("install", "uninstall", "check"))
    parser.add_argument("--remotes", type=Path, required=True)
    parser.add_argument("--user")
    parser.add_argument("--interpreter", default="", help="for the #! lines; empty: env python3")
    parser.add_argument("--venv", default="", help="the private environment in use, if any")
    parser.add_argument("--mend", default="install.sh")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    # The umask and these settings of the caller must not show in what hosts get.
    os.umask(0o022)
    sys.pycache_prefix = None
    return status_of(args.command, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    source, remotes = Path(__file__).resolve().parent.parent, args.remotes
    owner = Owner.parse(args.user)
    if args.command == "check":
        return check(remotes, owner, source, args.mend)
    with locked(remotes) as place:
        deployment = Deployment(remotes, owner, place, args.dry_run)
        if args.command == "install":
            install(deployment, source, args.interpreter, args.venv)
            say(deployment.summary("everything is in place already, nothing to change"))
        else:
            uninstall(deployment, args.venv)
            say(deployment.summary("onestor is not installed, nothing to remove"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
