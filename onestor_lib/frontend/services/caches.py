"""The caches of all machines, for people: what is in them, checking, pruning and dropping it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from onestor_lib.agent.errors import InvalidInput, Missing, OnestorError
from onestor_lib.frontend import arguments, parallel, xml
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.services import warming
from onestor_lib.frontend.services.fleet import Fleet, Machine
from onestor_lib.frontend.services.hosts import PATIENCE
from onestor_lib.frontend.services.supply import limits

COMPLETE, DAMAGED, STALE = "complete", "damaged", "old version"
REPAIRED = "repaired"
GONE = "gone"  # it was evicted, or its image removed, while others were read

Row = dict[str, Any]


class Caches:
    """What is in the caches of the machines with these names, of all where there are none."""

    def __init__(self, request: Request, names: tuple[str, ...] = ()) -> None:
        self._request = request
        self.fleet = Fleet(request)
        self.machines = self.fleet.chosen(names)
        self.images = {
            os.path.normpath(image.text("SOURCE")): image
            for image in self.fleet.client.images().all("IMAGE")
            if image.text("SOURCE")
        }

    def rows(self) -> tuple[list[Row], dict[str, OnestorError]]:
        """A row for each entry on each machine, and the machines that do not answer."""
        found, failed = self.fleet.ask(
            self.machines,
            lambda machine: [self._row(machine, entry) for entry in self._entries(machine)],
        )
        return [row for each in self.machines for row in found.get(each.name, ())], failed

    def rows_of(self, image: xml.Element) -> tuple[list[Row], dict[str, OnestorError]]:
        """The rows of one image; those that are not of its present version say so."""
        path = source_of(image)
        rows, failed = self.rows()
        now = warming.describe(self._request, self.fleet, image)["version"]
        mine = [row for row in rows if row["path"] == path]
        for row in mine:
            if row["state"] == COMPLETE and row["version"] != now:
                row["state"] = STALE
        return mine, failed

    def verify(self, rows: list[Row], told: Callable[[int], None]) -> list[Row]:
        """Read entries again, those of all hosts at once; a damaged one is dropped and filled anew.

        The rows with their ``result`` and its ``detail``; ``told`` is how many bytes are done.
        """
        by_host: dict[str, list[Row]] = {}
        for row in rows:
            by_host.setdefault(row["host"], []).append(row)

        def work(host: str) -> list[Row]:
            found = []
            for row in by_host[host]:
                found.append(self._verified(row))
                told(row["bytes"])
            return found

        done, failed = parallel.ask(list(by_host), work)
        for host, error in failed.items():
            done[host] = [_with(row, warming.FAILED, str(error)) for row in by_host[host]]
        return [row for host in by_host for row in done[host]]

    def _verified(self, row: Row) -> Row:
        try:
            with parallel.understood(row["host"]):
                answer = self._verify(row)
                if answer["gone"]:
                    return _with(row, GONE, "")
                if wrong := str(answer["wrong"]):
                    self._repair(row)
                return _with(row, REPAIRED if wrong else "ok", wrong)
        except OnestorError as error:
            return _with(row, warming.FAILED, str(error))

    def _verify(self, row: Row) -> dict[str, Any]:
        """See ``onestor_lib.agent.operations.cache.verify``."""
        machine = self._machine(row["host"])
        timeout = machine.settings.seconds("REPLICA_COPY_LOCK_TIMEOUT")
        answer: dict[str, Any] = self.fleet.call(
            machine,
            "cache.verify",
            patience=timeout + PATIENCE,
            path=row["path"],
            lock_timeout=timeout,
        )
        return answer

    def _repair(self, row: Row) -> None:
        """Fill an entry anew that was dropped; raises :class:`OnestorError`."""
        image = self.images.get(row["path"])
        if image is None:
            raise Missing("repair the cache", "its image is no more", path=row["path"])
        machine = self._machine(row["host"])
        (filled,) = warming.warm(self._request, self.fleet, image, [machine])
        if filled["result"] == warming.FAILED:
            raise OnestorError("repair the cache", filled["error"])

    def prune(self) -> tuple[list[Row], dict[str, OnestorError]]:
        """Remove entries of images that are no more, and what the limits do not allow."""

        def prune(machine: Machine) -> int:
            entries = self._entries(machine)
            for entry in entries:
                if entry["path"] not in self.images:
                    self.fleet.call(machine, "cache.drop", path=entry["path"])
            tier = "REPLICA" if machine.tier == "replica" else "HOST_CACHE"
            timeout = machine.settings.seconds("REPLICA_COPY_LOCK_TIMEOUT")
            for root in self._roots():
                self.fleet.call(
                    machine,
                    "cache.trim",
                    patience=timeout + PATIENCE,
                    root=root,
                    limits=limits(machine.settings, tier),
                    lock_timeout=timeout,
                )
            before = sum(int(each["bytes"]) + int(each["part_bytes"]) for each in entries)
            after = self._entries(machine)
            return before - sum(int(each["bytes"]) + int(each["part_bytes"]) for each in after)

        freed, failed = self.fleet.ask(self.machines, prune)
        return [{"host": host, "freed": size} for host, size in sorted(freed.items())], failed

    def drop(self, image: xml.Element) -> tuple[list[Row], dict[str, OnestorError]]:
        """Remove the entries of an image, but for those in use just now."""
        path = source_of(image)

        def drop(machine: Machine) -> bool:
            return bool(self.fleet.call(machine, "cache.drop", path=path)["dropped"])

        dropped, failed = self.fleet.ask(self.machines, drop)
        return [{"host": host, "dropped": done} for host, done in sorted(dropped.items())], failed

    def image(self, word: str) -> xml.Element:
        """The image of this id or name; raises :class:`Missing` and :class:`InvalidInput`."""
        found = [
            each for each in self.images.values() if word in (each.text("ID"), each.text("NAME"))
        ]
        found = [each for each in found if each.text("ID") == word] or found
        if not found:
            raise Missing("choose the image", f"there is no image {word!r} with a source")
        if len(found) > 1:
            ids = ", ".join(each.text("ID") for each in found)
            raise InvalidInput("choose the image", f"{word!r} is the name of several: {ids}")
        return found[0]

    def _entries(self, machine: Machine) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for root in self._roots():
            found += self.fleet.call(machine, "cache.entries", root=root)
        return found

    def _roots(self) -> list[str]:
        """Where the datastores lie: on all machines in the same directories."""
        paths = [arguments.checked_path(each.text("BASE_PATH")) for each in self.fleet.images]
        return sorted({os.path.dirname(path) for path in paths})

    def _machine(self, name: str) -> Machine:
        return next(each for each in self.machines if each.name == name)

    def _row(self, machine: Machine, entry: dict[str, Any]) -> Row:
        image = self.images.get(str(entry["path"]))
        return {
            "host": machine.name,
            "tier": machine.tier,
            "image": int(image.text("ID")) if image else None,
            "name": image.text("NAME") if image else "",
            "path": str(entry["path"]),
            "state": str(entry["state"]),
            "bytes": int(entry["bytes"]) + int(entry["part_bytes"]),
            "shared": int(entry["shared"]),
            "used": float(entry["used"]),
            "verified": float(entry["verified"]) if entry.get("verified") else None,
            "source": str(entry.get("source", "")),
            "version": entry["version"],
        }


def source_of(image: xml.Element) -> str:
    """The path of an image; raises :class:`InvalidInput` where it is none."""
    return arguments.checked_path(image.text("SOURCE"))


def _with(row: Row, result: str, detail: str) -> Row:
    facts = {name: row[name] for name in ("host", "image", "name", "path")}
    return {**facts, "result": result, "detail": detail}
