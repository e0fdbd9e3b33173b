"""What the message of a datastore action says of an image and its snapshots, and changing them."""

from __future__ import annotations

import time

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.message import Message
from onestor_lib.frontend.services import images
from onestor_lib.frontend.services.datastore import Datastore
from onestor_lib.frontend.services.hosts import Hosts

_STEP = "read the message"


def change(request: Request, operation: str) -> None:
    """Run ``operation`` on the snapshot that the message names, where the datastore is."""
    begin = time.monotonic()
    message = request.message()
    settings = images.settings(message, request.settings)
    datastore = Datastore(message, settings, Hosts(request.settings, request.log))
    source = arguments.checked_path(message.required("IMAGE/SOURCE"))
    snapshot = target(message)
    with datastore.agent() as store:
        store.call(
            operation,
            path=source,
            base=datastore.base,
            snapshot=snapshot,
            image_format=images.recorded_format(message),
            timeout=settings.seconds("CONVERT_TIMEOUT"),
        )
    seconds = time.monotonic() - begin
    request.log.info(f"snapshot {snapshot} of {source}: done in {seconds:.2f} s")


def target(message: Message) -> int:
    """TARGET_SNAPSHOT; oned puts it into the image, the manual has it beside that."""
    word = message.text("IMAGE/TARGET_SNAPSHOT") or message.text("TARGET_SNAPSHOT")
    if not word or word == "-1":
        raise InvalidInput(_STEP, "there is no TARGET_SNAPSHOT")
    return arguments.number(word, "TARGET_SNAPSHOT")
