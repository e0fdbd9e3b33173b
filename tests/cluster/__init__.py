"""The test cluster: a front-end and hosts on one machine, each in namespaces of its own.

    with Cluster(hosts=3) as cluster:
        cluster.frontend.run(["ssh", "host01", "hostname"])

By hand: `python3 -m tests.cluster up`.
"""

from tests.cluster.cluster import Cluster
from tests.cluster.node import Node
from tests.cluster.process import CommandFailed, NodeProcess
from tests.cluster.report import StartError

__all__ = ["Cluster", "CommandFailed", "Node", "NodeProcess", "StartError"]
