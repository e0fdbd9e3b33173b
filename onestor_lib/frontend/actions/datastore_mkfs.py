"""datastore mkfs: an empty image, with a file system if one is wanted (contract section 1.3)."""

from __future__ import annotations

from typing import Any, NamedTuple

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.frontend import arguments, boundary
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.message import Message
from onestor_lib.frontend.services import filesystems, images
from onestor_lib.frontend.services.datastore import Datastore, new_name, require_wanted
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "read the message"
_SAVE_AS = "save_as"  # disk-saveas: cpds will bring the content


class _Wanted(NamedTuple):
    """What kind of image: the format may be "save_as", the file system ""."""

    format: str
    filesystem: str


def run(request: Request) -> str:
    """Answers ``SOURCE`` and nothing more: all of the line becomes the path (trap 3)."""
    message = request.message()
    settings = images.settings(message, request.settings)
    hosts = Hosts(request.settings, request.log)
    datastore = Datastore(message, settings, hosts)
    image_id, name = datastore.image_id, new_name(datastore.image_id)
    source = f"{datastore.given}/{name}"
    wanted = _wanted(message)
    if wanted.format == _SAVE_AS:
        return source
    default = settings.text("UNSUPPORTED_FS_DEFAULT", "[a-z0-9]*", "the name of a file system")
    filesystem = filesystems.choose(
        wanted.filesystem, boundary.remotes_directory(), request.log, default=default
    )

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        require_wanted(hosts, image_id)
        return {}

    with datastore.agent() as store:
        store.call(
            "image.make",
            on_ask=answer,
            base=datastore.base,
            name=name,
            size=_megabytes(message),
            image_format=wanted.format,
            filesystem=filesystem.name,
            options=filesystem.options,
            sparse=settings.yes("SPARSE"),
            check_space=settings.yes("CHECK_FREE_SPACE"),
            timeout=settings.seconds("CONVERT_TIMEOUT"),
            require_mount=settings.yes("REQUIRE_MOUNT"),
        )
    request.log.info(f"image {image_id}: {wanted.format}, {filesystem.name or 'no file system'}")
    return source


def _wanted(message: Message) -> _Wanted:
    """FORMAT and FS; OpenNebula 5.12, and the manual, have one word for both: FSTYPE."""
    filesystem = message.text("IMAGE/FS")
    if given := message.text("IMAGE/FORMAT").lower():
        return _by_format(given, filesystem)
    kind = message.text("IMAGE/FSTYPE")
    if kind.lower() in (*FORMATS, _SAVE_AS, filesystems.SWAP):
        return _by_format(kind.lower(), filesystem)
    driver = message.text("IMAGE/TEMPLATE/DRIVER") or message.text("DATASTORE/TEMPLATE/DRIVER")
    return _by_format(driver.lower() or "raw", kind or filesystem)


def _by_format(image_format: str, filesystem: str) -> _Wanted:
    if image_format == filesystems.SWAP:
        return _Wanted("raw", filesystems.SWAP)
    if image_format not in (*FORMATS, _SAVE_AS):
        raise InvalidInput(_STEP, f"FORMAT is {image_format!r}, not raw, qcow2, swap or save_as")
    return _Wanted(image_format, filesystem)


def _megabytes(message: Message) -> int:
    size = arguments.number(message.required("IMAGE/SIZE"), "IMAGE/SIZE")
    if not size:
        raise InvalidInput(_STEP, "IMAGE/SIZE is 0")
    return size
