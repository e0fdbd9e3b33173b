"""Register onestor in OpenNebula's oned.conf and vmm_execrc, or take it out again.

Every edit of both files is planned before the first is written; what cannot be recognised changes
nothing, and the message says what to enter by hand (see ``onestor_lib.frontend.registration``).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onestor_lib.frontend.registration import (
    DRIVER,
    LIVE_SNAPSHOTS,
    Configuration,
    Finding,
    Item,
    apply_edits,
    check,
    load,
    paths,
)

# -- files ------------------------------------------------------------------------------------


def publish(path: Path, text: str) -> Path:
    """Replace a file under its name, owner and mode kept; returns the backup of the old one."""
    path = path.resolve()  # a link into a configuration repository stays a link
    status = path.stat()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    backup = path.with_name(f"{path.name}.onestor-{stamp}")
    count = 0
    while backup.exists():
        count += 1
        backup = path.with_name(f"{path.name}.onestor-{stamp}.{count}")
    write(backup, path.read_bytes(), status)
    temporary = path.with_name(f".{path.name}.onestor-tmp")
    try:
        write(temporary, text.encode("utf-8", "surrogateescape"), status)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return backup


def write(path: Path, data: bytes, like: os.stat_result) -> None:
    # Created for the owner alone: oned.conf may hold the database's password. And not through a
    # link that waits under this name, where the directory is another user's.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream:
        mine = os.fstat(handle)
        if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
            os.fchown(handle, like.st_uid, like.st_gid)
        os.fchmod(handle, stat.S_IMODE(like.st_mode))
        stream.write(data)
        stream.flush()
        os.fsync(handle)


# -- commands ---------------------------------------------------------------------------------


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    sys.stderr.write(f"install.sh: {text}\n")


def change(etc: Path, configuration: Configuration, remove: bool, dry_run: bool) -> int:
    items = configuration.items(remove)
    # Where the name does not even occur there is nothing to take out, whatever the file looks like.
    unknown = [
        item
        for item in items
        if item.unrecognised and not (remove and DRIVER not in configuration.texts[item.file])
    ]
    if unknown:
        for item in unknown:
            path = paths(etc)[item.file]
            complain(f"configure: {path}: {item.what}: {item.unrecognised}; nothing was changed")
        by_hand = removal_text(etc) if remove else paste_text(etc, items, {})
        complain(f"configure: {'remove' if remove else 'enter'} by hand:\n{by_hand}")
        return 1
    for item in items:
        for warning in item.warnings:
            complain(f"warning: {warning}; left as it is")
    for name, path in paths(etc).items():
        old = configuration.texts[name]
        new = apply_edits(old, [edit for item in items if item.file == name for edit in item.edits])
        if new == old:
            say(f"{path}: nothing to change")
        elif dry_run:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), str(path), f"{path} (new)", lineterm=""
            )
            say("\n".join(lines))
        else:
            say(f"{path}: changed; the old one is {publish(path, new)}")
    return 0


def paste_text(etc: Path, items: list[Item], unreadable: dict[str, str]) -> str:
    lines = []
    for name, path in paths(etc).items():
        lines.append(f"  {path}:" + (f" ({unreadable[name]})" if name in unreadable else ""))
        for item in items:
            if item.file != name:
                continue
            text = f"{item.what}: already there" if item.present else item.paste
            lines.extend("    " + line for line in text.splitlines())
    return "\n".join(lines)


def removal_text(etc: Path) -> str:
    oned, execrc = paths(etc).values()
    return "\n".join(
        (
            f"  {oned}: {DRIVER} from TM_MAD -d and from DATASTORE_MAD -d and -s,",
            f'    the sections TM_MAD_CONF and DS_MAD_CONF with NAME = "{DRIVER}"',
            f"  {execrc}: {' '.join(LIVE_SNAPSHOTS)} from LIVE_DISK_SNAPSHOTS",
        )
    )


def report(findings: Iterator[Finding]) -> int:
    bad = 0
    for each in findings:
        where = f"{each.path}: {each.what}" if each.what else str(each.path)
        bad |= bool(each.problem)
        say(
            f"problem: {where}: {each.problem}; mend: {each.mend}"
            if each.problem
            else f"ok: {where}"
        )
    return int(bad)


def show(etc: Path, configuration: Configuration) -> int:
    say(paste_text(etc, configuration.items(), configuration.unreadable))
    return 0


def parse_version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("show", "show-removal", "check", "apply", "remove"))
    parser.add_argument("--etc", type=Path, required=True)
    parser.add_argument("--one-version", type=parse_version, default=())
    parser.add_argument("--mend", default="install.sh --configure")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    if args.command == "show-removal":
        say(removal_text(args.etc))
        return 0
    configuration = load(args.etc, args.one_version)
    if configuration.unreadable and args.command in ("apply", "remove"):
        name, reason = next(iter(configuration.unreadable.items()))
        complain(f"configure: {paths(args.etc)[name]}: {reason}; nothing was changed")
        return 1
    try:
        if args.command == "show":
            return show(args.etc, configuration)
        if args.command == "check":
            return report(check(args.etc, configuration, args.mend))
        return change(args.etc, configuration, args.command == "remove", args.dry_run)
    except OSError as err:
        complain(f"configure: {err.filename}: {err.strerror}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
