"""The test cluster by hand: `python3 -m tests.cluster up|sweep`."""

from __future__ import annotations

import argparse
import signal

from tests.cluster.cluster import Cluster


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run a cluster until Ctrl-C")
    up.add_argument("--hosts", type=int, default=3)
    commands.add_parser("sweep", help="remove what killed clusters have left")
    arguments = parser.parse_args()
    if arguments.command == "up":
        _run_cluster(arguments.hosts)
    else:
        for lab in Cluster.sweep():
            print(f"removed {lab}")


def _run_cluster(hosts: int) -> None:
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with Cluster(hosts) as cluster:
        print(f"Files in {cluster.lab}. Enter a node with")
        for node in cluster.nodes:
            enter = " ".join(node.enter_argv("oneadmin", "/var/lib/one"))
            print(f"  env -i HOME=/var/lib/one TERM=$TERM {enter} bash -l  # {node.name}")
        print("Ctrl-C ends the cluster.", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
