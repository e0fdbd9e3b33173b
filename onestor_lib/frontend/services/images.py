"""What the message of a datastore action asks for: settings, rules, formats, digests."""

from __future__ import annotations

import re

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.agent.image_format import FORMATS
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


def rules(configured: Settings) -> dict[str, list[str]]:
    """Which directories images may come from."""
    return {
        "restricted": configured.words("RESTRICTED_DIRS"),
        "safe": configured.words("SAFE_DIRS"),
    }


def is_disk_image(message: Message) -> bool:
    """Whether the file is a disk with a format; CDROM images and files are bytes as they are."""
    return (
        message.text("DATASTORE/TYPE") != _FILE_DATASTORE and message.text("IMAGE/TYPE") != _CDROM
    )


def wanted_format(message: Message, configured: Settings) -> str:
    """The datastore's DRIVER, unless CONVERT=NO; "" for the format the file has."""
    driver = message.text("DATASTORE/TEMPLATE/DRIVER").lower()
    if driver and driver not in FORMATS:
        raise InvalidInput(_STEP, f"DRIVER of the datastore is {driver!r}, not raw or qcow2")
    return driver if configured.yes("CONVERT") else ""


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


def local_path(path: str, step: str) -> str:
    """``path`` when it is one on this machine; a URL is refused by its scheme (J10)."""
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", path):
        raise InvalidInput(step, f"sources of type {scheme[1]}: are not supported")
    return arguments.checked_path(path)


def require_no_bridge(message: Message) -> None:
    """Refuse a datastore on bridge hosts rather than work on the wrong machine's files."""
    if bridges := message.text("DATASTORE/TEMPLATE/BRIDGE_LIST"):
        raise InvalidInput(_STEP, f"BRIDGE_LIST={bridges} is not supported yet")
