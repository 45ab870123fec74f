"""The Ray cluster of a run: a private one, or one that is named; its head, its nodes, and room for actors on them."""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from types import ModuleType
from typing import Any

from stereo_jobs.errors import ClusterError, InterruptedRunError
from stereo_jobs.spec import ActorRange, JobSpec, Runtime

HEAD_PATIENCE_S = 30.0
"""How long the head may be away."""


def start_ray(spec: JobSpec, gpus: int | None = None) -> tuple[ModuleType, bool]:
    """Import and connect Ray: to a cluster if one is named, else to a private one on loopback.

    Args:
        spec: `runtime` names the cluster, or says for how many actors a private one must have room.
        gpus: of a private one; None counts them.

    Returns:
        The module, and whether this call connected it.

    Raises:
        ClusterError: the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = spec.runtime.ray_address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Without this Ray puts its servers on the host's outside address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A token of this run alone, so that Ray neither runs open nor leaves one in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        return ray, False
    if not address:
        # Ray read that setting when it was imported, which others in this process may have done before.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise ClusterError(f"{address}: no Ray cluster answers there ({error}); is its head up?") from None
    else:
        runtime = spec.runtime
        wanted = runtime.actors.max if isinstance(runtime.actors, ActorRange) else runtime.actors or 1
        cpus = max(os.cpu_count() or 1, round(wanted * runtime.cpus_per_actor + 0.5))
        room = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 100 * 1024**2}
        # Not without an address: Ray would take any cluster that happens to run on this machine.
        ray.init(address="local", include_dashboard=False, **room, **quiet)
    if threading.current_thread() is threading.main_thread():
        # Ray puts a handler of its own in the way of draining.
        signal.signal(signal.SIGTERM, on_sigterm)
    return ray, True


def actor_needs(runtime: Runtime) -> dict[str, float]:
    """What Ray must have for one actor, as the cluster is now: GPUs only if they are asked for, or there are some."""
    import ray

    automatic = runtime.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    gpus = runtime.gpus_per_actor if automatic or runtime.device == "cuda" else 0.0
    return {"num_cpus": runtime.cpus_per_actor, "num_gpus": gpus}


def deaths() -> tuple[type[Exception], ...]:
    """What a call to an actor raises that is dead or out of reach; if memory ran out for it, no RayActorError."""
    from ray import exceptions

    return exceptions.RayActorError, exceptions.OutOfMemoryError


class RayCluster:
    """What a pool asks of its cluster.

    Attributes:
        ray: the module, connected.
        lost: the head is gone for good; there is nobody to tell anything.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.ray, self._owned = start_ray(spec)
        self.lost = False
        self._head: str = self.ray.get_runtime_context().gcs_address
        self._head_seen = time.monotonic()

    def answers(self) -> bool:
        """Whether the head does; asked before Ray is, whose calls hang without it, and after a minute end this process.

        Raises:
            InterruptedRunError: it has not answered for too long.
        """
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            self._head_seen = time.monotonic()
            return True
        except OSError:
            self.lost = time.monotonic() > self._head_seen + HEAD_PATIENCE_S
            if self.lost:
                raise InterruptedRunError(
                    f"{self._head}: the head of the cluster does not answer for {HEAD_PATIENCE_S:g} s; what was "
                    "made is kept: run again when it is back, or on another cluster"
                ) from None
            return False

    def nodes(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that are alive, by their id."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def draining(self) -> set[str]:
        """Nodes that Ray was told will go (`ray drain-node`)."""
        try:
            return set(self.ray._private.state.state.get_draining_nodes())
        except AttributeError:  # not a public part of Ray
            return set()

    def leave(self) -> None:
        """Disconnect, if this object connected."""
        if self._owned and not self.lost:
            self.ray.shutdown()
