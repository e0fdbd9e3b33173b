"""What the last run of install.sh has installed, as it is recorded beside the library.

For deploy.py, and as a program for install.sh, which asks before anything else:
`manifest.py REMOTES FIELD...` tells a field in each line, empty when nothing is installed. Little
is imported here, because each run waits for that.
"""

from __future__ import annotations

import json
import os
import sys

from failure import Failure, status_of

MANIFEST = "onestor_lib/INSTALLED"


class Manifest:
    """`files` are digests by paths, relative to the remotes directory."""

    def __init__(
        self,
        version: str = "",
        interpreter: str = "",
        venv: str = "",
        files: dict[str, str] | None = None,
    ) -> None:
        self.version, self.interpreter, self.venv = version, interpreter, venv
        self.files = {} if files is None else files

    @classmethod
    def read(cls, remotes: str | os.PathLike[str]) -> Manifest:
        path = os.path.join(remotes, MANIFEST)
        try:
            with open(path, "rb") as stream:
                raw = json.load(stream)
            return cls(raw["version"], raw["interpreter"], raw["venv"], dict(raw["files"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as err:
            raise Failure(
                "manifest", path, f"damaged ({err!r}); remove it and install again"
            ) from err

    def text(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True) + "\n"


def main(remotes: str, *fields: str) -> int:
    manifest = Manifest.read(remotes)
    sys.stdout.write("".join(f"{getattr(manifest, name)}\n" for name in fields))
    return 0


if __name__ == "__main__":
    sys.exit(status_of("recorded", lambda: main(*sys.argv[1:])))
