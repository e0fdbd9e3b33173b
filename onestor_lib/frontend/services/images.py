"""What the message of a datastore action asks for: settings, formats, digests."""

from __future__ import annotations

import re
from typing import Any

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.image_format import FORMATS
from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.message import Message

_STEP = "read the message"
_FILE_DATASTORE = "2"
_CDROM = "1"
_DIGESTS = {"MD5": 32, "SHA1": 40, "SHA256": 64, "SHA512": 128}  # attribute: hexadecimal digits


def settings(message: Message, configured: Settings) -> Settings:
    """The datastore's template over the configuration file."""
    return configured.over(
        "image",
        lambda name: message.text(f"DATASTORE/TEMPLATE/{name}"),
        f"datastore {message.text('DATASTORE/ID')}",
    )


def is_disk_image(message: Message) -> bool:
    """Whether the file is a disk with a format; CDROM images and files are bytes as they are."""
    return not _is_file(message) and message.text("IMAGE/TYPE") != _CDROM


def decompresses(message: Message, configured: Settings) -> bool:
    """Whether a compressed file is stored uncompressed; never in a file datastore."""
    return not _is_file(message) and not configured.yes("NO_DECOMPRESS")


def wanted_format(message: Message, configured: Settings) -> str:
    """The datastore's DRIVER, unless CONVERT=NO; "" for the format the file has."""
    driver = message.text("DATASTORE/TEMPLATE/DRIVER").lower()
    if driver and driver not in FORMATS:
        raise InvalidInput(_STEP, f"DRIVER of the datastore is {driver!r}, not raw or qcow2")
    return driver if configured.yes("CONVERT") else ""


def recorded_format(message: Message) -> str:
    """The format oned has on record; what the file itself says does not count (trap 35)."""
    found = message.text("IMAGE/FORMAT") or message.text("IMAGE/TEMPLATE/DRIVER") or "raw"
    if found.lower() not in FORMATS:
        raise InvalidInput(_STEP, f"FORMAT of the image is {found!r}, not raw or qcow2")
    return found.lower()


def told_size(message: Message) -> int:
    """The SIZE that a user has given, in bytes; 0 for none."""
    value = message.text("IMAGE/TEMPLATE/SIZE") or message.text("IMAGE/SIZE", "0")
    return arguments.number(value, "SIZE of the image") * MB


def asked(
    message: Message, configured: Settings, *, digests: dict[str, str], step: str
) -> dict[str, Any]:
    """What is asked of content that comes in, see ``onestor_lib.agent.intake.Asked``."""
    return {
        "digests": digests,
        "decompress": decompresses(message, configured),
        "inspect": is_disk_image(message),
        "step": step,
        "stall": configured.seconds("STALL_TIMEOUT"),
    }


def digests(message: Message) -> dict[str, str]:
    """Every digest attribute of the image, by algorithm; raises for what is no digest (J2)."""
    found = {}
    for attribute, length in _DIGESTS.items():
        value = message.text(f"IMAGE/TEMPLATE/{attribute}").lower()
        if not value:
            continue
        if not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
            raise InvalidInput(
                _STEP, f"{attribute} of the image is not {length} hexadecimal digits"
            )
        found[attribute.lower()] = value
    return found


def _is_file(message: Message) -> bool:
    return message.text("DATASTORE/TYPE") == _FILE_DATASTORE
