"""The steps around a live migration: what oned tells them, and the other drivers they call."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from onestor_lib.agent.errors import InvalidInput, OnestorError
from onestor_lib.agent.vm_directory import DRIVER
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.message import MAX_SIZE
from onestor_lib.frontend.services import scripts

_STEP = "read the VM"
_NOT_CALLED = {"", DRIVER, "ssh"}
_WORDS = "src_host dst_host DIR vmid dsid"


class Step(NamedTuple):
    """What one call of premigrate, postmigrate or failmigrate is about."""

    source_host: str
    target_host: str
    directory: str
    vm_id: int
    is_secondary: bool  # another driver has called, which minds the directory itself
    vm: xml.Element
    text: str  # the VM as oned has sent it
    encoded: bytes  # the same in base64


def read(request: Request) -> Step:
    """Parse ``src_host dst_host DIR vmid dsid [template] [driver]``.

    The VM comes on stdin, or as older manuals have it as a word (contract 2.3 and 2.6); when it
    comes not at all, oned is asked.
    """
    argv = request.argv
    if not 5 <= len(argv) <= 7:
        raise InvalidInput("read the arguments", f"expected {_WORDS}, got {len(argv)} words")
    words, more = argv[:5], argv[5:]
    vm_id = arguments.number(words[3], "the VM's id")
    arguments.number(words[4], "the datastore's id")
    encoded = b""
    if more and _is_vm(more[0]):
        encoded = more.pop(0).encode("ascii")
    else:
        encoded = request.stdin.read(MAX_SIZE + 1).strip()
    if len(more) > 1:
        raise InvalidInput("read the arguments", f"{more[0]!r} is no VM in base64")
    if encoded:
        try:
            text = base64.b64decode(re.sub(rb"\s+", b"", encoded), validate=True)
        except binascii.Error:
            raise InvalidInput(_STEP, "it is not base64") from None
        vm = xml.parse(text, "the VM")
    else:
        vm = oned.Client().vm(vm_id)
        text = vm.to_text().encode("utf-8")
        encoded = base64.b64encode(text)
    return Step(
        arguments.host(words[0]),
        arguments.host(words[1]),
        arguments.checked_path(words[2]),
        vm_id,
        bool(more),
        vm,
        text.decode("utf-8", "surrogateescape"),
        encoded,
    )


def _is_vm(word: str) -> bool:
    """Whether a word is a VM in base64, not the name of a driver."""
    with contextlib.suppress(ValueError):
        return base64.b64decode(word, validate=True).lstrip().startswith((b"<VM>", b"<?xml"))
    return False


def others(request: Request, step: Step) -> list[Callable[[], None]]:
    """The same action of every other driver that the VM's disks have (contract 2.6).

    Each must succeed; the error names the driver (known failure D18). Not that of disks from before
    the datastore was adopted: they are minded with the directory they lie in, and its scripts
    would remove that directory, whoever calls them.
    """
    if step.is_secondary:
        return []
    drivers = {disk.text("TM_MAD") for disk in step.vm.all("TEMPLATE/DISK")} - _NOT_CALLED
    return [functools.partial(_call, request, step, driver) for driver in sorted(drivers)]


def do_all(request: Request, works: Sequence[Callable[[], None]]) -> None:
    """Do each of ``works`` whatever becomes of the others; raises the first error."""
    first: OnestorError | None = None
    for work in works:
        try:
            work()
        except OnestorError as error:
            if first:
                request.log.line("ERROR", str(error))
            first = first or error
    if first:
        raise first


def _call(request: Request, step: Step, driver: str) -> None:
    what = f"{request.action} of the driver {driver}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", driver):
        raise InvalidInput(what, "its name is no name of a driver")
    script = scripts.find(driver, request.action, what)
    timeout = request.settings.seconds("SCRIPT_TIMEOUT")
    scripts.run(script, [*request.argv[:5], DRIVER], step.encoded, what, timeout=timeout)
