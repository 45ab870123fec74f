"""The Ray cluster of a run: a private one, or an existing one; its head, its nodes, and what an actor needs."""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from types import ModuleType
from typing import Any

from stereo_jobs.errors import ClusterError, InterruptedRunError, SpecError
from stereo_jobs.models.device import NO_GPU_REMEDY
from stereo_jobs.spec import ActorRange, JobSpec, Runtime
from stereo_jobs.workers.timed_threads import usable_cores

log = logging.getLogger(__name__)

HEAD_PATIENCE_S = 30.0
"""Seconds that the head of the cluster may not answer before the run ends."""
STARTS = 3
"""How often a private cluster is started. On a busy machine Ray gives up on its own processes after 15 s."""


def named_cluster(runtime: Runtime) -> str | None:
    """Return the address of the Ray cluster that `runtime` or the environment's RAY_ADDRESS names; None for neither."""
    return runtime.ray_address or os.environ.get("RAY_ADDRESS")


def start_ray(spec: JobSpec, gpus: int | None = None) -> tuple[ModuleType, bool]:
    """Import Ray and connect it: to an existing cluster if one is named, else to a private one on loopback.

    Args:
        spec: the job. `runtime.ray_address` (or the environment's RAY_ADDRESS) names an existing cluster; without
            it, a private one gets room for `runtime.actors`.
        gpus: how many GPUs a private cluster has; None counts those of this machine.

    Returns:
        Ray's module, and whether this call connected it.

    Raises:
        ClusterError: the cluster does not answer, or the private one does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = named_cluster(spec.runtime)
    if not address:
        # Without this Ray's servers listen on the host's external address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A token for this run only. Without one, Ray runs open to anybody or leaves a token in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        return ray, False
    if not address:
        # Ray reads this setting when it is imported, which other code in this process may have done before.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise ClusterError(
                f"{address}: no Ray cluster answers ({error}); check the address, and that its head runs"
            ) from None
    else:
        runtime = spec.runtime
        wanted = runtime.actors.max if isinstance(runtime.actors, ActorRange) else runtime.actors or 1
        cpus = max(os.cpu_count() or 1, round(wanted * runtime.cpus_per_actor + 0.5))
        room = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 100 * 1024**2}
        _start_private(ray, room | quiet)
    if threading.current_thread() is threading.main_thread():
        # Ray has replaced the handler of SIGTERM, on which draining depends.
        signal.signal(signal.SIGTERM, on_sigterm)
    return ray, True


def _start_private(ray: ModuleType, settings: dict[str, Any]) -> None:
    """Start a private cluster on loopback, again if it does not come up."""
    for attempt in range(1, STARTS + 1):
        try:
            # "local" is needed: without an address Ray would connect to any cluster that runs on this machine.
            ray.init(address="local", include_dashboard=False, **settings)
            return
        except Exception as error:  # Ray has no type of its own for this
            problem = f"a private Ray cluster did not start ({error})"
            if attempt == STARTS:
                raise ClusterError(
                    f"{problem}, in {STARTS} attempts; is this machine short of memory, disk or free cores? "
                    "--local runs without Ray"
                ) from error
            log.warning("%s; trying again", problem)


def actor_needs(runtime: Runtime) -> dict[str, float]:
    """Return the resources that Ray must have for one actor.

    GPUs are among them if `runtime.device` asks for one, or is `auto` and the cluster has any now.
    """
    import ray

    automatic = runtime.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    gpus = runtime.gpus_per_actor if automatic or runtime.device == "cuda" else 0.0
    return {"num_cpus": runtime.cpus_per_actor, "num_gpus": gpus}


def needs_by_name(needs: dict[str, float]) -> dict[str, float]:
    """Return what one actor needs as Ray names the resources of a node, without those that it does not need."""
    return {name: need for name, need in (("GPU", needs["num_gpus"]), ("CPU", needs["num_cpus"])) if need}


def room_for_actors(resources: dict[str, float], needs: dict[str, float]) -> int:
    """Return how many actors fit onto one node.

    Args:
        resources: what the node has, as Ray names it.
        needs: what one actor needs, see `actor_needs`.
    """
    each = needs_by_name(needs).items()
    return min((int(resources.get(name, 0) / need + 1e-9) for name, need in each), default=1)


def cores_of_actor(runtime: Runtime) -> int:
    """Return how many processor cores of its node each actor may use, if the node is as full of actors as it can be.

    At least 1. Call it in an actor.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return max(1, usable_cores() // max(1, room_for_actors(resources, actor_needs(runtime))))


def refuse_missing_gpus(runtime: Runtime) -> None:
    """Refuse, or warn of, a connected cluster without any GPU where `runtime.device` is cuda.

    A number of actors may be waited for: nodes with GPUs may join, or an autoscaler may add them. Without one there are
    as many actors as the present nodes have GPUs, so that nothing is worth waiting for.

    Raises:
        SpecError: no GPU will come.
    """
    import ray

    if runtime.device != "cuda" or ray.cluster_resources().get("GPU", 0) > 0:
        return
    named = named_cluster(runtime)
    if not named or runtime.actors is None:
        where = f"no node of the cluster {named} has a GPU" if named else f"Ray finds no GPU here; {NO_GPU_REMEDY}"
        remedy = (
            "; set it to auto or cpu, start nodes with GPUs first, or set runtime.actors to a number or to {min, max}: "
            "then they are waited for, and an autoscaling cluster adds them"
        )
        raise SpecError(f"runtime.device: cuda is asked for, and {where}" + (remedy if named else ""))
    log.warning(
        "runtime.device: cuda is asked for, and no node of the cluster %s has a GPU yet; waiting up to "
        "runtime.start_timeout_s = %g s for nodes that join or that an autoscaler adds",
        *(named, runtime.start_timeout_s),
    )


def actor_lost_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a call to an actor that is dead or out of reach.

    The end of an actor by Ray's memory monitor is no RayActorError, so there are two.
    """
    from ray import exceptions

    return exceptions.RayActorError, exceptions.OutOfMemoryError


class RayCluster:
    """The cluster as a pool sees it.

    Args:
        spec: the job; see `start_ray`.

    Attributes:
        ray: Ray's module, connected.
        lost: the head has not answered for `HEAD_PATIENCE_S`; no call to Ray will return.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.ray, self._owned = start_ray(spec)
        self.lost = False
        context = self.ray.get_runtime_context()
        self._head: str = context.gcs_address
        self._own_node: str = context.get_node_id()
        self._head_seen = time.monotonic()

    def answers(self) -> bool:
        """Whether the head of the cluster answers.

        Ask this before any call to Ray: without the head such calls hang, and after a minute they end this process.

        Raises:
            InterruptedRunError: the head has not answered for `HEAD_PATIENCE_S`.
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
                    f"{self._head}: the head of the cluster has not answered for {HEAD_PATIENCE_S:g} s; committed "
                    "shards are kept: run again when it is back, or on another cluster"
                ) from None
            return False

    def nodes(self) -> dict[str, dict[str, float]]:
        """Return the resources of each node that is alive, by node id.

        Raises:
            InterruptedRunError: the node of this process is not, and nothing that it asks for will come.
        """
        alive = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        if self._own_node not in alive:
            raise InterruptedRunError(
                "Ray has ended on the machine of this run, perhaps for want of memory; committed shards are kept: "
                "run again"
            )
        return alive

    def draining(self) -> set[str]:
        """Return the ids of the nodes that are being drained (`ray drain-node`)."""
        try:
            return set(self.ray._private.state.state.get_draining_nodes())
        except AttributeError:  # this is not a public part of Ray, and may go
            return set()

    def leave(self) -> None:
        """Disconnect from the cluster, if this object connected to it."""
        if self._owned and not self.lost:
            self.ray.shutdown()
