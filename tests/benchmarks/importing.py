"""Benchmarks of taking images into the image datastore, on the front-end's own disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.measure import Figure, Yardstick, against, within
from tests.testbed import DATASTORES, Testbed

SIZE = 256  # MiB
RAW, XZ = "/var/tmp/local.img", "/var/tmp/local.img.xz"
COPY = "/var/tmp/copy"


def cp_local(bed: Testbed) -> Iterator[Figure]:
    """A raw file full of data, against cp --sparse=always and sha256sum of the copy.

    Ours is flushed to the disk besides.
    """
    make_data(bed)
    by_hand = f"cp --sparse=always {RAW} {COPY} && sha256sum {COPY}"
    yield from against(
        "cp-local",
        importer(bed, RAW),
        Yardstick("cp --sparse=always, sha256sum", shell(bed, by_hand), 1.2),
        reset=lambda: reset(bed),
    )


def cp_xz(bed: Testbed) -> Iterator[Figure]:
    """An .xz, half of it noise, against xz -dc into a file."""
    make_xz(bed)
    yardstick = Yardstick("xz -dc", shell(bed, f"xz -dc {XZ} >{COPY}"), 1.1)
    yield from against("cp-xz", importer(bed, XZ), yardstick, reset=lambda: reset(bed))


def stat(bed: Testbed) -> Iterator[Figure]:
    """The size of a compressed image, which its index tells."""
    make_xz(bed)
    yield within("stat", lambda: bed.oned._size(XZ, bed.images), 2.0)


def make_data(bed: Testbed) -> None:
    """Noise and text by turns, so that it compresses to about a half; made once on a cluster."""
    if bed.frontend.exists(RAW):
        return
    script = f"""
import random
noise = random.Random(3).randbytes(1 << 20)
with open({RAW!r}, "wb") as file:
    for number in range({SIZE}):
        text = b"%07d\\n" % number * (1 << 17)
        file.write(noise[number:] + noise[:number] if number % 2 else text)
"""
    bed.frontend.run(["/usr/bin/python3", "-c", script], timeout=300)


def make_xz(bed: Testbed) -> None:
    make_data(bed)
    if not bed.frontend.exists(XZ):
        bed.frontend.run(["/bin/sh", "-c", f"xz -0 -k -c {RAW} >{XZ}"], timeout=600)


def importer(bed: Testbed, path: str) -> Callable[[], None]:
    def run() -> None:
        image = bed.cloud.add_image(bed.images, path=path, size=SIZE)
        answer = bed.oned.image_action("cp", image)
        assert answer.success, answer.error

    return run


def shell(bed: Testbed, script: str) -> Callable[[], object]:
    return lambda: bed.frontend.run(["/bin/sh", "-c", script], timeout=600)


def reset(bed: Testbed) -> None:
    """Nothing of the last run is there, and nothing is left to be written."""
    bed.frontend.run(["find", f"{DATASTORES}/101", COPY, "-type", "f", "-delete"], check=False)
    bed.frontend.run(["sync"])
