"""The message of a datastore action (contract sections 0, 1.1 and 1.2)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import BinaryIO

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments, xml

MAX_SIZE = 16 << 20  # bytes in base64; oned's largest known are below 4 MiB

_STEP = "read the message"


class Message:
    """The decoded message: the image, its datastore, and the id the answer belongs to."""

    def __init__(self, root: xml.Element, request_id: int) -> None:
        if root.tag != "DS_DRIVER_ACTION_DATA":
            raise InvalidInput(_STEP, f"it is a {root.tag}, not a DS_DRIVER_ACTION_DATA")
        self.root = root
        self.request_id = request_id

    def text(self, path: str, default: str = "") -> str:
        """Optional text, such as "DATASTORE/TEMPLATE/SPARSE"."""
        return self.root.text(path, default)

    def required(self, path: str) -> str:
        """Text that must be there; raises :class:`InvalidInput` naming the element."""
        value = self.root.text(path)
        if not value:
            raise InvalidInput(_STEP, f"{path} is missing")
        return value

    @property
    def base_path(self) -> str:
        """The datastore's directory as oned writes it, with its two slashes."""
        given = self.required("DATASTORE/BASE_PATH")
        arguments.checked_path(given)
        return given


def read(argv: Sequence[str], stdin: BinaryIO) -> Message:
    """The message from the first argument (up to 6.6) or from stdin (from 6.8).

    Which one is told by the number of arguments (contract section 0). Raises
    :class:`InvalidInput`.
    """
    if len(argv) == 2:
        encoded, word = argv[0].encode("utf-8", "surrogateescape"), argv[1]
    elif len(argv) == 1:
        encoded, word = stdin.read(MAX_SIZE + 1), argv[0]
    else:
        raise InvalidInput("read the arguments", f"expected [message] id, got {len(argv)} words")
    request_id = arguments.number(word, "the id")
    if not encoded:
        raise InvalidInput(_STEP, "it is empty")
    if len(encoded) > MAX_SIZE:
        raise InvalidInput(_STEP, f"it is larger than {MAX_SIZE >> 20} MiB")
    try:
        text = base64.b64decode(re.sub(rb"\s+", b"", encoded), validate=True)
    except binascii.Error:
        raise InvalidInput(_STEP, "it is not base64") from None
    return Message(xml.parse(text, "the message"), request_id)
