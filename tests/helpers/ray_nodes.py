"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Whether the node still answers is asked every second; one that was killed is given up after five.
os.environ["RAY_health_check_period_ms"] = "1000"  # noqa: SIM112

OBJECT_STORE_BYTES = 80 * 2**20
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Yields the cluster, which this process is connected to; each node has one core. The first one is the head.

    Its processes import from where this one does.
    """
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    cluster = Cluster(initialize_head=True, head_node_args=_node())
    try:
        cluster.add_node(**_node())
        ray.init(cluster.address, logging_level="WARNING")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_second_node(cluster: Any) -> None:
    """Ends the node that is not the head at once, with all its processes."""
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)


def add_node(cluster: Any) -> Any:
    """From the main thread alone: a node sets a handler for signals."""
    return cluster.add_node(**_node())


def _node() -> dict[str, Any]:
    # Of ports that are given, a node does not wait to be told, which it gives up after 15 s on a busy machine.
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    sizes = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    return {**sizes, **ports, "include_dashboard": False}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
