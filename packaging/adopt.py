"""Let onestor have a system datastore: `python3 - REMOTES DATASTORE [--dry-run] < adopt.py`.

install.sh feeds it to the drivers' interpreter on stdin, as the drivers' user: it works with what
is installed, with that user's credentials for oned and its ssh keys for the hosts, and that user
may not be able to read the checkout.
"""

from __future__ import annotations

import sys
from typing import NoReturn

_ALL_LINES = (7, 0)  # people see what oned is told from that version on


def main(remotes: str, datastore: str, *options: str) -> NoReturn:
    """Exit with status 1 when there was a reason not to change the datastore."""
    sys.dont_write_bytecode = True  # what appears in there is copied to every host
    sys.path[0] = remotes
    from onestor_lib.frontend import boundary, openssh
    from onestor_lib.frontend.services import adopting

    openssh.find_agent()
    problems = []

    def work(request: boundary.Request) -> str:
        request.log.version = _ALL_LINES
        report = adopting.Adoption(request, datastore).run("--dry-run" in options)
        problems.append(report.problems)
        return "\n".join(report.lines)

    status = boundary.run("tm", "adopt", [], work)
    if sum(problems) and not status:
        count = f"{sum(problems)} problem{'s' if sum(problems) > 1 else ''}"
        sys.stderr.write(
            f"install.sh: adopt: datastore {datastore}: {count}, nothing was changed\n"
        )
        status = 1
    boundary.leave(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
