"""Several hosts and a front-end on one machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Callable

from tests import measuring
from tests.cluster import disk, lab, report
from tests.cluster.node import Node
from tests.cluster.pidfd import ProcessHandle
from tests.cluster.plan import FRONTEND, PATH, NodePlan, addresses
from tests.cluster.supervisor import PYTHON

PROJECT = Path(__file__).resolve().parents[2]
ONED_PATH = f"/usr/lib/one/sh/override:{PATH}"
START_TIMEOUT = 30.0
END_TIMEOUT = 30.0
NAMESPACES = ["--net", "--mount", "--mount-proc", "--uts", "--ipc", "--pid"]


class Cluster:
    """A front-end and hosts, each in namespaces of its own; needs root.

    Nothing of the machine it runs on is changed, and all of it ends with the process that brought
    it up: see the supervisor. Clusters do not see each other.

    hosts: how many hosts besides the front-end.
    binds: more directories of the real machine, read-only in every node, by their path there;
        the project is always at /src.
    fe_path: PATH of what runs on the front-end; as oned has it unless given.
    sshd_options: sshd_config of every node, beyond or instead of the usual.
    host_daemons: commands run in order, as root, on every host before its sshd starts, such as
        daemons that put themselves into the background; a failing one fails the start.
    """

    def __init__(
        self,
        hosts: int = 3,
        *,
        binds: Mapping[str, str | os.PathLike[str]] | None = None,
        fe_path: str = ONED_PATH,
        sshd_options: Mapping[str, str] | None = None,
        host_daemons: Sequence[Sequence[str]] = (),
    ) -> None:
        self._addresses = addresses(hosts)
        self._binds = {"/src": str(PROJECT)}
        self._binds.update({target: os.fspath(source) for target, source in (binds or {}).items()})
        self._fe_path = fe_path
        self._sshd_options = dict(sshd_options or {})
        self._host_daemons = [list(command) for command in host_daemons]
        self._running: _Running | None = None

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> None:
        """Bring the cluster up; return when every node answers on ssh."""
        if self._running is not None:
            raise RuntimeError("the cluster is up already")
        if os.geteuid() != 0:
            raise PermissionError("a test cluster needs root")
        lab.sweep()
        self._running = _Running.begin(self._plans)
        try:
            self._running.start_nodes(self._path_of)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End the cluster and remove all that was of it; nothing happens when it is down."""
        if self._running is not None:
            running, self._running = self._running, None
            running.end()

    @staticmethod
    def sweep() -> list[Path]:
        """Remove what clusters left whose supervisor was killed; return their lab directories."""
        return lab.sweep()

    @property
    def nodes(self) -> list[Node]:
        """The front-end, then the hosts."""
        return self._up.nodes

    @property
    def frontend(self) -> Node:
        return self.node(FRONTEND)

    @property
    def hosts(self) -> list[Node]:
        return [node for node in self.nodes if node.name != FRONTEND]

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise LookupError(f"no node {name} in the cluster")

    @property
    def lab(self) -> Path:
        """Directory of the real machine with everything the cluster stores."""
        return self._up.directory

    @property
    def supervisor_pid(self) -> int:
        """The process everything of the cluster lives below, as the real machine numbers it."""
        return self._up.supervisor.pid

    def fill_known_hosts(self) -> None:
        """Let oneadmin know every node's host key on every node, before the first connection."""
        known = disk.known_hosts([node.plan for node in self.nodes])
        for node in self.nodes:
            node.write("/var/lib/one/.ssh/known_hosts", known, mode=0o600)

    @property
    def _up(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the cluster is down")
        return self._running

    def _plans(self, directory: Path) -> list[NodePlan]:
        return [
            NodePlan(
                address=address,
                peers=self._addresses,
                directory=str(directory / address.name),
                binds=self._binds,
                daemons=[] if address.name == FRONTEND else self._host_daemons,
                sshd_options=self._sshd_options,
                measured=measuring.directory(),
            )
            for address in self._addresses
        ]

    def _path_of(self, plan: NodePlan) -> str:
        return self._fe_path if plan.is_frontend else PATH


class _Running:
    """A cluster from the start of its supervisor to its end."""

    def __init__(
        self, directory: Path, process: subprocess.Popen[bytes], control: socket.socket
    ) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self._process = process
        self._control = control
        self._supervisor: ProcessHandle | None = None

    @staticmethod
    def begin(plans_in: Callable[[Path], Sequence[NodePlan]]) -> _Running:
        """Start the supervisor of a fresh lab that holds the plans of the nodes."""
        directory, lock = lab.create()
        user = os.pidfd_open(os.getpid())
        control, theirs = report.channel()
        try:
            for plan in plans_in(directory):
                plan.save()
            inherited = [theirs.fileno(), user, lock]
            supervisor = [PYTHON, "-m", "tests.cluster.supervisor", str(directory)]
            with (directory / "console").open("wb") as console:
                process = subprocess.Popen(
                    [
                        *("/usr/bin/unshare", *NAMESPACES, "--fork", "--kill-child"),
                        *(*supervisor, *(str(fd) for fd in inherited)),
                    ],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    cwd=PROJECT,
                    env={"PATH": PATH, "LANG": "C.UTF-8"},
                    start_new_session=True,
                )
        except BaseException:
            control.close()
            lab.remove(directory)
            raise
        finally:
            theirs.close()
            os.close(user)
            os.close(lock)
        return _Running(directory, process, control)

    @property
    def supervisor(self) -> ProcessHandle:
        if self._supervisor is None:
            raise RuntimeError("the supervisor is not ready")
        return self._supervisor

    def start_nodes(self, path_of: Callable[[NodePlan], str]) -> None:
        """Start all nodes at the same time."""
        try:
            self._supervisor = report.receive(self._control, START_TIMEOUT)
        except report.StartError as error:
            raise report.StartError(f"supervisor: {error}\n{self._console()}") from None
        for directory in lab.nodes(self.directory):
            plan = NodePlan.load(directory)
            self.nodes.append(Node(plan, self._supervisor, self._control, path_of(plan)))
        with contextlib.ExitStack() as stack:
            started = [(node, stack.enter_context(node.request_start())) for node in self.nodes]
            for node, waiting in started:
                node.wait_started(waiting)

    def end(self) -> None:
        """Let the supervisor tear everything down; sweep the lab if it was killed instead."""
        for node in self.nodes:
            node.release()
        self._control.close()
        self._process.wait(END_TIMEOUT)
        if self._supervisor is not None:
            self._supervisor.close()
        if self.directory.exists():
            lab.sweep()

    def _console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "console").read_text(errors="replace")
        return ""
