"""Where a host gets an image from: the cluster's replica, or else the origin.

Answers the questions that ``disk.place`` on the host, and the replica's cache behind it, ask while
they work. Any failure of a replica costs one warning and the way to the origin, never the VM.
"""

from __future__ import annotations

import os
import re
from typing import Any

from onestor_lib.agent import crashpoints
from onestor_lib.agent.errors import NotAllowed, OnestorError, TransferFailed
from onestor_lib.agent.publish import is_temporary
from onestor_lib.frontend import arguments, oned, xml
from onestor_lib.frontend.arguments import VmPath
from onestor_lib.frontend.config import Settings
from onestor_lib.frontend.services import transfer
from onestor_lib.frontend.services.hosts import Hosts
from onestor_lib.frontend.services.origin import Origin

_IMAGE, _DISK = "image", "disk"  # what is asked for: for the cache, or for the disk itself


class Supply:
    """The content of one image for one host.

    ``facts`` is the origin's description of the image; ``purpose`` is what others are told who
    wait for a lock.
    """

    def __init__(
        self,
        hosts: Hosts,
        client: oned.Client,
        origin: Origin,
        target: VmPath,
        facts: dict[str, Any],
        *,
        purpose: str,
        use_replica: bool,
    ) -> None:
        self.sent = 0  # bytes that crossed any link
        self.way: list[str] = []  # the hosts that sent
        self._hosts, self._client, self._origin = hosts, client, origin
        self._target, self._facts, self._purpose = target, facts, purpose
        self._host = target.host
        self._asked = ""  # the replica that is asked just now
        names = [*hosts.settings.words("REPLICA_HOST"), *hosts.settings.words("CACHE_UPSTREAMS")]
        configured = [arguments.host(name) for name in dict.fromkeys(names)]
        self.is_replica = self._host in configured  # the host itself is the one that others ask
        ours = [] if self.is_replica or not use_replica else configured
        self._replicas = [name for name in ours if not self._is_origin(name)]
        if self._replicas:
            limits(hosts.settings, "REPLICA")  # a bad value is an error, not a replica's failure

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Do what an agent asks for: bring ``content``, or tell which images are ``gone``.

        What a host asks is not trusted: it can have nothing but this image, and only where this
        action has something to do.
        """
        if question["ask"] == "gone":
            names = [str(name) for name in question["names"]]
            return {"names": self._origin.missing(os.path.dirname(self._origin.path), names)}
        target = {name: question[name] for name in ("temporary", "manifest", "reuse")}
        item, host = str(question["item"]), str(question.get("host", self._host))
        self._require_allowed(item, host, str(target["temporary"]), str(target["manifest"]))
        found = None
        if host == self._host and item in (_IMAGE, _DISK):
            found = self._from_replica(target)
        if found is None:
            found = self._from_origin(item, host, target)
        self.sent += int(found["sent"])
        return {
            "digest": found["digest"],
            "source": self.way[-1],
            "written": found["written"],
        }

    def cached(self) -> dict[str, Any]:
        """What the host's cache is asked to have."""
        return self._wanted("REPLICA" if self.is_replica else "HOST_CACHE", self.is_replica)

    def _from_replica(self, target: dict[str, Any]) -> dict[str, Any] | None:
        """Let the host fetch the image from the first replica that works; None without any."""
        for replica in self._replicas:
            self._asked = replica
            try:
                found = transfer.pull(
                    self._hosts,
                    replica,
                    self._storage_address(replica),
                    host=self._host,
                    image=self._wanted("REPLICA", True),
                    answer=self.answer,
                    **target,
                )
                require_content(self._facts["digest"], found, replica)
            except OnestorError as error:
                self._hosts.log.warn(f"replica {replica} is not used: {error}")
                target["reuse"] = True
                continue
            finally:
                self._asked = ""
            self.way.append(replica)
            return found
        return None

    def _require_allowed(self, item: str, host: str, temporary: str, manifest: str) -> None:
        """Raise :class:`NotAllowed` unless the content may go there."""
        directory, name = os.path.split(temporary)
        if item == _IMAGE:
            right = goes_beside(self._origin.path, temporary, manifest)
            right = right and host in (self._host, self._asked)
        else:
            if item != _DISK:  # a snapshot comes into a directory that is temporary itself
                directory, snapshots = os.path.split(directory)
                if not is_temporary(snapshots) or item not in self._facts["snapshots"]:
                    directory = ""
            right = directory == os.path.dirname(self._target.path) and is_temporary(name)
            right = right and not manifest and host == self._host
        if not right:
            cause = "the host asks for what it must not have"
            raise NotAllowed("bring content", cause, host=host, path=temporary)

    def _from_origin(self, item: str, host: str, target: dict[str, Any]) -> dict[str, Any]:
        is_image = item in (_IMAGE, _DISK)
        path = self._origin.path if is_image else f"{self._origin.path}.snap/{item}"
        version = self._facts["version"] if is_image else None
        agent = self._origin.agent()
        found = transfer.bring(self._hosts, agent, path, host=host, version=version, **target)
        self.way.append(self._origin.host)
        crashpoints.reach("frontend.sent")
        return found

    def _wanted(self, prefix: str, is_replica: bool) -> dict[str, Any]:
        return wanted(
            self._hosts, self._origin.path, self._facts, is_replica, prefix, self._purpose
        )

    def _is_origin(self, host: str) -> bool:
        return host == self._origin.host or (self._hosts.is_here(host) and self._origin.is_here)

    def _storage_address(self, replica: str) -> str:
        """Where hosts reach the replica: REPLICA_STORAGE_IP of its template, else by its name."""
        try:
            known = self._client.hosts().all("HOST")
        except OnestorError as error:
            self._hosts.log.line("DEBUG", f"REPLICA_STORAGE_IP is not known: {error}")
            return replica
        for host in known:
            if host.text("NAME") == replica:
                return storage_address(host)
        return replica


def storage_address(host: xml.Element) -> str:
    """Where other hosts reach this one for images: REPLICA_STORAGE_IP of its template, or its name.

    Raises :class:`InvalidInput`.
    """
    return arguments.host(host.text("TEMPLATE/REPLICA_STORAGE_IP") or host.text("NAME"))


def wanted(
    hosts: Hosts, path: str, facts: dict[str, Any], is_replica: bool, prefix: str, purpose: str
) -> dict[str, Any]:
    """See :class:`onestor_lib.agent.cache.fill.Wanted`; ``prefix`` is that of its limits."""
    return {
        "path": path,
        "version": facts["version"],
        "needed": facts["allocated"],
        "is_replica": is_replica,
        "limits": limits(hosts.settings, prefix),
        "lock_timeout": hosts.settings.seconds("REPLICA_COPY_LOCK_TIMEOUT"),
        "purpose": purpose,
        "bulk": hosts.bulk_priority(),
    }


def require_content(digest: str, found: dict[str, Any], host: str) -> None:
    """Raise :class:`TransferFailed` when ``host`` has sent other content than ``digest``, if any.

    Whoever receives compares with what the sender says of itself, which is not enough.
    """
    if digest not in ("", found["digest"]):
        raise TransferFailed("compare the content", "it is not that of the image", host=host)


def goes_beside(image: str, temporary: str, manifest: str) -> bool:
    """Whether what a cache asks to be filled is a part of the entry of the image at ``image``."""
    directory, name = os.path.split(temporary)
    image_directory, image_name = os.path.split(image)
    is_part = re.fullmatch(rf"\.{re.escape(image_name)}\.[0-9a-f]{{16}}\.part", name)
    beside = bool(is_part) and directory == image_directory
    return beside and manifest == f"{temporary}.chunks"


def limits(settings: Settings, prefix: str) -> dict[str, Any]:
    """The limits of a cache, "REPLICA" or "HOST_CACHE"; sizes in bytes, times in seconds."""
    most = settings.megabytes(f"{prefix}_MAX_SIZE_MB")
    if most is None and prefix != "REPLICA":
        most = settings.megabytes("CACHE_MAX_SIZE")
    return {
        "max_bytes": most,
        "max_used_percent": settings.number(f"{prefix}_MAX_USED_PERC", 1, 100),
        "min_age": settings.seconds("CACHE_MIN_AGE", least=0),
        "orphan_age": settings.seconds("CACHE_ORPHAN_AGE"),
        "counted": str(settings.path("REPLICA_RECOVERY_SNAPS_DIR")) if prefix == "REPLICA" else "",
    }
