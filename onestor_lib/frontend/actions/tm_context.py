"""tm context: the ISO image a VM reads its context from (contract section 2.4)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestor_lib.agent import process, publish
from onestor_lib.agent.errors import CommandFailed, InvalidInput, Missing, NotAllowed
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import transfer, vms
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "make the context"
_LABEL = "CONTEXT"
_FILE_DATASTORE = "2"  # TYPE
_TIMEOUT = 600.0  # seconds; the files of a context are small
_TOOLS = (["genisoimage"], ["mkisofs"], ["xorriso", "-as", "mkisofs"])
# "path:'name'" as oned writes a file of a file datastore, or a path alone.
_FILE = re.compile(r"(?P<path>[^\s']+):'(?P<name>[^']*)'(?:\s|$)|(?P<plain>\S+)(?:\s|$)")


def run(request: Request) -> None:
    """``context context.sh [file ...] host:DIR/disk.i vmid dsid``, also while the VM runs."""
    if len(request.argv) < 4:
        raise InvalidInput(
            "read the arguments", "expected context.sh [file ...] host:DIR/disk.i vmid dsid"
        )
    *files, place, vm, _ = request.argv
    target = vms.disk_path(place, vm)
    client = oned.Client()
    known = client.vm(target.vm_id)
    sequence = vms.sequence(known)
    settings, _ = vms.settings_of(request.settings, client, target)
    hosts = Hosts(settings, request.log)
    sources = _Sources(client, known)
    common = Path(tempfile.gettempdir())
    publish.sweep(common)  # what a killed one has left has passwords in it
    with publish.temporary_directory(common / "onestor-context") as scratch:
        image = _make(scratch, _named_files(files, sources.require))
        with hosts.local_agent() as here, hosts.agent(target.host) as host:

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                if question["ask"] == "wanted":
                    vms.require_wanted(client, target.vm_id, sequence, request.log)
                    return {}
                return transfer.bring(
                    hosts,
                    here,
                    str(image),
                    host=target.host,
                    version=None,
                    temporary=vms.require_temporary(question["temporary"], target),
                    manifest="",
                    reuse=False,
                )

            host.call(
                "disk.receive",
                on_ask=answer,
                path=target.path,
                size=image.stat().st_size,
                record=vms.record_of("context", known, target),
                lock_timeout=settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
            )
    request.log.info(f"VM {target.vm_id} {target.name} on {target.host}: context")


class _Sources:
    """The files that a VM may have in its context.

    A file's name is its owner's to choose, and oned writes it as it is between quotes: it may look
    like more words. So what a word names must be what oned can have meant.
    """

    def __init__(self, client: oned.Client, vm: xml.Element) -> None:
        self._client = client
        # A user cannot set FILES: oned restricts that attribute to administrators.
        self._given = set(vm.text("TEMPLATE/CONTEXT/FILES").split())
        self._id = vm.text("ID")

    def require(self, path: str, named: bool) -> None:
        """Raise :class:`NotAllowed` for what is neither ours to read nor meant."""
        if named:
            allowed = self._is_in_file_datastore(path)
        else:
            own = re.fullmatch(rf"/.*/{re.escape(self._id)}/context\.sh", path)
            allowed = bool(own) or path in self._given
        if not allowed:
            raise NotAllowed(_STEP, "no file of this VM's context", path=path)

    def _is_in_file_datastore(self, path: str) -> bool:
        directory, _, name = path.rpartition("/")
        datastore = os.path.basename(directory)
        if not datastore.isascii() or not datastore.isdigit() or not name:
            return False
        found = self._client.datastore(int(datastore))
        base = os.path.normpath(found.text("BASE_PATH"))
        return found.text("TYPE") == _FILE_DATASTORE and os.path.normpath(directory) == base


def _named_files(
    words: list[str], require: Callable[[str, bool], None] = lambda path, named: None
) -> dict[str, str]:
    """The files by their names on the image; ``require`` looks whether each may be there.

    oned's line was split at blanks, those in a file's name too: they come together again.
    """
    found: dict[str, str] = {}
    for match in _FILE.finditer(" ".join(words)):
        path = arguments.checked_path(match["path"] or match["plain"])
        name = match["name"] or os.path.basename(path)
        if "/" in name or name in (".", ".."):
            raise InvalidInput(_STEP, f"{name!r} is no name of a file", path=path)
        if found.setdefault(name, path) != path:
            raise InvalidInput(_STEP, f"{found[name]} is called {name} too", path=path)
        require(path, match["path"] is not None)
    return found


def _make(scratch: Path, files: dict[str, str]) -> Path:
    """The image of ``files``, in the directory ``scratch``."""
    content, image = scratch / "content", scratch / "image"
    content.mkdir()
    for name, path in files.items():
        if not os.path.isfile(path):
            raise Missing(_STEP, "no such file", path=path)
        (content / name).symlink_to(path)
    argv = [*_tool(), "-o", str(image), "-V", _LABEL, "-J", "-R", "-f", str(content)]
    process.run(argv, timeout=_TIMEOUT, step=_STEP).check(_STEP)
    return image


def _tool() -> list[str]:
    for argv in _TOOLS:
        try:
            process.find(argv[0], _STEP)
        except CommandFailed:
            continue
        return argv
    raise CommandFailed(_STEP, "neither genisoimage, mkisofs nor xorriso is installed")
