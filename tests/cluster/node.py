"""One Ray node: `python -m tests.cluster.node ADDRESS CPUS GPUS IP`; ADDRESS `head` begins a cluster.

`ray start` refuses several nodes on loopback; this is what it and Ray's own tests do beneath. Prints the address
of the cluster, and ends with its standard input, so that nothing outlives the tests.
"""

import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    address, cpus, gpus, ip = sys.argv[1:]
    head = address == "head"
    params = RayParams(
        node_ip_address=ip,
        gcs_address=None if head else address,
        redis_address=None if head else address,
        num_cpus=int(cpus),
        num_gpus=int(gpus),
        object_store_memory=80_000_000,
        include_dashboard=False,
        include_log_monitor=False,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
        dashboard_agent_listen_port=None,
    )
    node = Node(params, head=head, shutdown_at_exit=True, spawn_reaper=False)
    print(node.gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
