"""datastore clone: make a new image of an existing one (contract section 1.3)."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from onestor_lib.agent.chunks import CHUNK
from onestor_lib.agent.client import AgentClient
from onestor_lib.agent.errors import NotAllowed
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, boundary, oned
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.log import opennebula_version
from onestor_lib.frontend.message import Message
from onestor_lib.frontend.services import bridges, images
from onestor_lib.frontend.services.datastore import Datastore, NewImage
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "clone image"

Sender = contextlib.AbstractContextManager[AgentClient]


def run(request: Request) -> str:
    """Answers ``SOURCE FORMAT``; before 6.6 ``SOURCE``, which oned takes the whole line for.

    There, and where the version is not known, nothing can be converted either: oned would not
    get to know.
    """
    begin = time.monotonic()
    message = request.message()
    settings = images.settings(message, request.settings)
    hosts = Hosts(settings, request.log)
    datastore = Datastore(message, settings, hosts)
    image = NewImage(datastore, hosts, step=_STEP)
    path = arguments.checked_path(message.required("IMAGE/PATH"))
    remotes = boundary.remotes_directory()
    tells_format = opennebula_version(remotes, unknown=(0, 0)) >= (6, 6)
    is_disk = images.is_disk_image(message)
    sender, content = _sender(message, datastore, hosts, path)
    made = image.make(
        sender,
        content,
        asked={
            "digests": {},
            "decompress": False,
            "inspect": False,  # its format is on record
            "step": _STEP,
            "stall": settings.seconds("STALL_TIMEOUT"),
        },
        inspect=is_disk,
        known_format=images.recorded_format(message),
        wanted_format=images.wanted_format(message, settings) if tells_format else "",
        display=path,
    )
    request.log.info(
        f"image {datastore.image_id} from {path}: {made['format']}, {made['size'] / MB:.0f} MB,"
        f" {made['sent'] / MB:.1f} MB sent, {time.monotonic() - begin:.2f} s"
    )
    return f"{image.source} {made['format']}" if tells_format else image.source


def _sender(
    message: Message, datastore: Datastore, hosts: Hosts, path: str
) -> tuple[Sender, dict[str, Any]]:
    """Who opens the source image, and what: see :meth:`NewImage.make`.

    A bridge host sends to another one itself, so that nothing passes the front-end (known failure
    H18); what comes to the front-end is fetched, as hosts need not be able to reach it.
    """
    base = _source_base(datastore, path)
    file = {"kind": "file", "path": path, "rules": None, "base": base, "block": CHUNK}
    source_bridges = _source_bridges(message, base)
    if not source_bridges:
        return hosts.local_agent(), file
    if datastore.is_on_bridges:
        return bridges.first_answering(hosts, source_bridges, sends=True), file
    with bridges.first_answering(hosts, source_bridges) as agent:
        host = agent.host
    if hosts.is_here(host):
        return hosts.local_agent(), file
    argv = hosts.bulk_argv(host, is_from_here=True)
    return hosts.local_agent(), {**file, "kind": "ssh", "host": host, "argv": argv}


def _source_base(datastore: Datastore, path: str) -> str:
    """The directory of the source's datastore, which is a sibling of ours or ours itself.

    What was registered with a path of its own choice is no image of a datastore of ours.
    """
    base = os.path.dirname(path)
    is_ours = base == datastore.base
    is_sibling = os.path.dirname(base) == os.path.dirname(datastore.base)
    if not is_ours and not (is_sibling and os.path.basename(base).isdecimal()):
        raise NotAllowed(_STEP, "not in an image datastore", path=path)
    return base


def _source_bridges(message: Message, base: str) -> list[str]:
    """The bridge hosts of the source's datastore: told from 7.4 on, before that oned knows."""
    if message.root.has("SOURCE_BRIDGE_LIST"):
        return bridges.parse(message.text("SOURCE_BRIDGE_LIST"))
    own = message.text("DATASTORE/ID") or os.path.basename(
        arguments.checked_path(message.base_path)
    )
    source = os.path.basename(base)
    if source == own:
        return bridges.parse(message.text("DATASTORE/TEMPLATE/BRIDGE_LIST"))
    return bridges.parse(oned.Client().datastore(int(source)).text("TEMPLATE/BRIDGE_LIST"))
