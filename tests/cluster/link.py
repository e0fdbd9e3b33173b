"""The link between a node and the switch: cut it, slow it down, count what passes.

Commands run in the network namespace of the switch or of the node; both ends of the link are
made by the node's init. At the switch a link bears the name of its node.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.plan import PATH

SWITCH = "switch"
AT_NODE = "eth0"
RECEIVED, SENT = 0, 8  # columns of /proc/net/dev


def disable_ipv6() -> None:
    """Keep the interfaces that this network namespace will get to IPv4, so links are quiet."""
    setting = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if setting.exists():
        setting.write_text("1")


class Link:
    def __init__(self, switch_pid: int, node_pid: int, name: str) -> None:
        self._switch_pid = switch_pid
        self._node_pid = node_pid
        self._name = name

    def cut(self) -> None:
        """Let packets vanish in both directions; neither side sees its carrier go."""
        self._at_switch(["bridge", "link", "set", "dev", self._name, "state", "disabled"])

    def heal(self) -> None:
        self._at_switch(["bridge", "link", "set", "dev", self._name, "state", "forwarding"])

    def unplug(self) -> None:
        """Remove the link altogether: what the node's kernel still sends reaches nobody."""
        self._at_switch(["ip", "link", "delete", self._name])

    def plugged(self) -> bool:
        return any(line.split(":")[0].strip() == self._name for line in _devices(self._switch_pid))

    def limit(self, mbit_per_s: float) -> None:
        """Bound the rate of each direction, with a queue of at most 100 ms."""
        burst = max(16384, int(mbit_per_s * 1e6 / 8 / 100))
        rate = f"{int(mbit_per_s * 1e6)}bit"
        shape = ["tbf", "rate", rate, "burst", str(burst), "latency", "100ms"]
        self._at_switch(["tc", "qdisc", "replace", "dev", self._name, "root", *shape])
        self._at_node(["tc", "qdisc", "replace", "dev", AT_NODE, "root", *shape])

    def unlimit(self) -> None:
        self._at_switch(["tc", "qdisc", "replace", "dev", self._name, "root", "noqueue"])
        self._at_node(["tc", "qdisc", "replace", "dev", AT_NODE, "root", "noqueue"])

    def received(self) -> int:
        return self._counter(RECEIVED)

    def sent(self) -> int:
        return self._counter(SENT)

    def _counter(self, column: int) -> int:
        for line in _devices(self._node_pid):
            device, _, counters = line.partition(":")
            if device.strip() == AT_NODE:
                return int(counters.split()[column])
        raise LookupError(f"{self._name} has no link")

    def _at_switch(self, argv: Sequence[str]) -> None:
        _run_in_network(self._switch_pid, argv)

    def _at_node(self, argv: Sequence[str]) -> None:
        _run_in_network(self._node_pid, argv)


def _devices(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/net/dev").read_text().splitlines()


def _run_in_network(pid: int, argv: Sequence[str]) -> None:
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    subprocess.run([*enter, *argv], check=True, env={"PATH": PATH})
