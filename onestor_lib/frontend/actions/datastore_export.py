"""datastore export: tell a marketplace where an image is and what it is (contract section 1.7)."""

from __future__ import annotations

from onestor_lib.agent.space import MB
from onestor_lib.frontend import arguments, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import images
from onestor_lib.frontend.services.datastore import Datastore
from onestor_lib.frontend.services.hosts import Hosts


def run(request: Request) -> str:
    """Answers an IMPORT_INFO document; SIZE is what a guest sees, in MB, rounded up (H11)."""
    message = request.message()
    settings = images.settings(message, request.settings)
    datastore = Datastore(message, settings, Hosts(request.settings, request.log))
    source = arguments.checked_path(message.required("IMAGE/SOURCE"))
    image_format = images.recorded_format(message)
    with datastore.agent() as store:
        found = store.call(
            "image.identify", path=source, base=datastore.base, image_format=image_format
        )
    return xml.document(
        "IMPORT_INFO",
        [
            ("IMPORT_SOURCE", f"ssh://{datastore.bridge}:{source}" if datastore.bridge else source),
            ("MD5", found["md5"]),
            ("SIZE", str(-(-found["size"] // MB))),
            ("FORMAT", image_format),
            ("DISPOSE", "NO"),
        ],
    )
