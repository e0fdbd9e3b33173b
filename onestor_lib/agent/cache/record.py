"""What is written down about an image: its version and the digests of its chunks.

One file: a line of JSON, then the manifest. A hit needs the line only. What is empty, cut or
garbage counts as nothing, and nothing never equals anything (known failure A9).
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from onestor_lib.agent import publish
from onestor_lib.agent.chunks import Manifest
from onestor_lib.agent.version import Version

_LONGEST_LINE = 1 << 12  # bytes

# What reading garbage may raise; an endless nesting and an endless number are JSON, too.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)


class Record(NamedTuple):
    """``version`` of the origin; ``local`` of the file beside the record, where that is a copy.

    Times are seconds since the epoch; ``source`` is the host the content came from.
    """

    version: Version
    digest: str
    local: Version
    source: str
    filled: int
    verified: int

    @classmethod
    def now(cls, version: Version, digest: str, local: Version, source: str = "") -> Record:
        """Of content that has just been digested."""
        return cls(version, digest, local, source, int(time.time()), int(time.time()))

    def write(self, path: Path, manifest: Manifest) -> None:
        """Replace the record ``path``, whole and durable."""
        line = json.dumps(
            {
                "version": self.version.to_json(),
                "digest": self.digest,
                "local": self.local.to_json(),
                "source": self.source,
                "filled": self.filled,
                "verified": self.verified,
            }
        )
        publish.write_file(path, line.encode("ascii") + b"\n" + manifest.to_bytes())

    def describes(self, file: Path) -> bool:
        """Whether ``file`` is, by its looks, what was recorded."""
        with contextlib.suppress(OSError):
            return Version.of(file.lstat()) == self.local
        return False


def read(path: Path) -> Record | None:
    """What the record says; None when there is none to be trusted."""
    with contextlib.suppress(*_DAMAGE):
        with path.open("rb") as file:
            line = file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            return None
        facts = json.loads(line)
        return Record(
            Version.from_json(facts["version"]),
            str(facts["digest"]),
            Version.from_json(facts["local"]),
            str(facts["source"]),
            int(facts["filled"]),
            int(facts["verified"]),
        )
    return None


def read_manifest(path: Path, record: Record) -> Manifest | None:
    """The manifest behind the record's line; None when it is not the one the line speaks of."""
    with contextlib.suppress(OSError, ValueError):
        with path.open("rb") as file:
            file.readline(_LONGEST_LINE)
            manifest = Manifest(record.version.size, file.read())
        if manifest.digest() == record.digest:
            return manifest
    return None
