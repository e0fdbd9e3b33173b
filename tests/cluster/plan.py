"""What a node is: all that its init needs to know to boot it, as a file beside its disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

FRONTEND = "fe"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ONEADMIN_ID = 9869
DATASTORES = "/var/lib/one/datastores"
DATASTORES_IMAGE = "/disks/datastores.img"
"""File system image that, when it exists, is mounted over the datastores directory."""

SSH_AGENT_SOCKET = "/var/run/one/ssh-agent.sock"
ONEADMIN_KEY = "/var/lib/one/.ssh/id_ed25519"


@dataclasses.dataclass(frozen=True)
class Address:
    """A node's place in the network. The MAC address is fixed: neighbours know it for good."""

    name: str
    ip: str
    mac: str


@dataclasses.dataclass(frozen=True)
class NodePlan:
    address: Address
    peers: list[Address]  # every node of the cluster, this one included
    directory: str  # of this node in the lab
    binds: dict[str, str]  # path in the node: directory of the real machine
    daemons: list[list[str]]  # commands run before sshd starts
    sshd_options: dict[str, str]
    measured: str  # directory of the real machine for coverage data; "" for none

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def is_frontend(self) -> bool:
        return self.name == FRONTEND

    @property
    def lab(self) -> Path:
        return Path(self.directory).parent

    @property
    def root(self) -> Path:
        """The node's disk: what it sees as / (with /usr and /etc as overlays, see init)."""
        return Path(self.directory) / "root"

    @property
    def console(self) -> Path:
        """Output of the node's init, daemons and sshd."""
        return Path(self.directory) / "console"

    def overlay(self, name: str, part: str) -> Path:
        """A part ("upper" or "work") of the overlay on the directory `name` of the root."""
        return Path(self.directory) / "overlay" / name / part

    def save(self) -> None:
        Path(self.directory).mkdir()
        _file(self.directory).write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def load(directory: str) -> NodePlan:
        fields = json.loads(_file(directory).read_text())
        fields["address"] = Address(**fields["address"])
        fields["peers"] = [Address(**peer) for peer in fields["peers"]]
        return NodePlan(**fields)


def addresses(hosts: int) -> list[Address]:
    """The front-end and `hosts` hosts; every cluster has the same, in a network of its own."""
    numbers = [(FRONTEND, 1)] + [(f"host{n:02d}", 10 + n) for n in range(1, hosts + 1)]
    return [Address(name, f"10.99.0.{n}", f"02:00:0a:63:00:{n:02x}") for name, n in numbers]


def _file(directory: str) -> Path:
    return Path(directory) / "plan.json"
