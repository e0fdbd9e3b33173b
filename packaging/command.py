"""The command ``onestor`` and the timer of its recovery copies, outside of OpenNebula's remotes.

Each file says in its second line who has made it; one that does not is somebody else's and stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

MARK = "# Made by onestor's install.sh."
SERVICE, TIMER = "onestor-recovery.service", "onestor-recovery.timer"

SCRIPT = """\
#!{starter}
{mark}
import os
import pwd
import sys

if os.geteuid() == 0:  # what is loaded below belongs to that user: none of it may run as root
    user = pwd.getpwnam({user!r})
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir
    for name in ("SSH_AUTH_SOCK", "ONE_AUTH"):  # root's own are of no use to it
        if name in os.environ and not os.access(os.environ[name], os.R_OK):
            del os.environ[name]
if os.environ.pop("ONESTOR_INTERPRETER", "") != {interpreter!r}:
    os.environ["ONESTOR_INTERPRETER"] = {interpreter!r}  # which may be a script that starts another
    os.execv({interpreter!r}, [{interpreter!r}, *sys.argv])
sys.dont_write_bytecode = True  # what appears in there is copied to every host
sys.path[0] = {remotes!r}

from onestor_lib.frontend.commands import onestor

onestor.main()
"""

UNITS = {
    SERVICE: """\
[Unit]
{mark}
Description=Recovery copies of the disks of VMs (onestor)
After=network-online.target

[Service]
Type=oneshot
User={user}
EnvironmentFile=-/var/run/one/ssh-agent.env
ExecStart={command} recovery run
""",
    TIMER: """\
[Unit]
{mark}
Description=Recovery copies of the disks of VMs, every minute (onestor)

[Timer]
OnBootSec=2min
OnUnitInactiveSec=1min
AccuracySec=5s

[Install]
WantedBy=timers.target
""",
}


def files(options: argparse.Namespace) -> dict[Path, tuple[bytes, int]]:
    """What belongs where: content and mode."""
    command = Path(options.bin, "onestor")
    user = options.user.partition(":")[0]
    text = SCRIPT.format(
        # Root starts it: not with an interpreter that another user can change.
        starter=options.worker if options.interpreter else "/usr/bin/env python3",
        interpreter=options.interpreter,
        mark=MARK,
        remotes=options.remotes,
        user=user,
    )
    found = {command: (text.encode(), 0o755)}
    if options.units:
        for name, unit in UNITS.items():
            content = unit.format(mark=MARK, user=user, command=command)
            found[Path(options.units, name)] = (content.encode(), 0o644)
    return found


def is_ours(path: Path) -> bool:
    """Whether we have made a file, or there is none."""
    try:
        return MARK.encode() in path.read_bytes().splitlines()[:2]
    except FileNotFoundError:
        return True


def install(options: argparse.Namespace) -> int:
    """Write what is missing or different."""
    for path, (content, mode) in files(options).items():
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
                continue
        if not is_ours(path):
            sys.stderr.write(f"install.sh: warning: {path}: not onestor's, left alone\n")
            continue
        say(options, "installed", path)
        if not options.dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.onestor-tmp")
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
            temporary.replace(path)
    return 0


def check(options: argparse.Namespace) -> int:
    """Tell of each whether it is as it should be; 1 if one is not."""
    bad = 0
    for path, (content, mode) in files(options).items():
        try:
            # The first line is about who has installed it.
            same = path.read_bytes().partition(b"\n")[2] == content.partition(b"\n")[2]
            right = same and path.stat().st_mode & 0o777 == mode
        except OSError:
            right = False
        bad |= not right
        text = f"ok: {path}" if right else f"problem: {path}: not as installed"
        sys.stdout.write(f"{text}{'' if right else f'; mend: {options.mend}'}\n")
    return int(bad)


def remove(options: argparse.Namespace) -> int:
    """Remove what is ours."""
    for path in files(options):
        if path.exists() and is_ours(path):
            say(options, "removed", path)
            if not options.dry_run:
                path.unlink()
    return 0


def say(options: argparse.Namespace, what: str, path: Path) -> None:
    sys.stdout.write(f"{'would be ' if options.dry_run else ''}{what}: {path}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("install", "check", "remove"))
    for name in ("--bin", "--remotes", "--user"):
        parser.add_argument(name, required=True)
    for name in ("--units", "--interpreter", "--worker", "--mend"):
        parser.add_argument(name, default="")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.units and not os.path.isdir(options.units):
        options.units = ""  # no systemd here
    elif options.units and options.work == "install" and not os.access(options.units, os.W_OK):
        cause = "only root can install the timer of the recovery copies there"
        sys.stderr.write(f"install.sh: warning: {options.units}: {cause}\n")
        options.units = ""
    try:
        return {"install": install, "check": check, "remove": remove}[options.work](options)
    except OSError as error:
        sys.stderr.write(f"install.sh: command: {error.filename}: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
