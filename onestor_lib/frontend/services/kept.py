"""VMs that leave their files on the host while they are stopped or undeployed (KEEP_ON_HOST).

oned believes that their directory is on the front-end then. All that is there is a note that says
where it really is; whoever is told the front-end's path looks for that note first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from onestor_lib.agent import publish
from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.services.hosts import Hosts

_NOTE = ".onestor-kept"


def keep(source: VmPath, target: VmPath) -> None:
    """Note on this machine, at ``target``, that the VM's directory stays at ``source``."""
    directory = Path(target.path)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    note = {"host": source.host, "path": source.path}
    publish.write_file(directory / _NOTE, json.dumps(note).encode("ascii") + b"\n")
    publish.sync_dir(directory.parent)


def located(hosts: Hosts, place: VmPath) -> VmPath:
    """Where ``place``, a VM's directory or a disk in it, really is."""
    if not hosts.is_here(place.host):
        return place
    note = Path(place.path) if not place.name else Path(place.path).parent
    try:
        found = json.loads((note / _NOTE).read_bytes())
        where = f"{found['host']}:{found['path']}"
    except FileNotFoundError:
        return place
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput("read where the VM is", str(error), path=str(note / _NOTE)) from None
    real = arguments.vm_path(where, place.vm_id)
    path = f"{real.path}/{place.name}".rstrip("/")
    return dataclasses.replace(real, path=path, name=place.name)


def forget(place: VmPath) -> None:
    """Remove the note, and the directory if nothing else is in it."""
    directory = Path(place.path)
    publish.remove(directory / _NOTE)
    with contextlib.suppress(OSError):
        directory.rmdir()
