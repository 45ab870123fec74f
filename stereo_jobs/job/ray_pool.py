"""Workers as Ray actors: as many as are asked for and fit, pinned to their GPUs, replaced when they are lost.

Ray restarts nothing by itself: whatever becomes of an actor (killed, on a node that died or answers no more, over
a deadline), the pool gives it up, returns its shards and starts another, which waits for room and, on a cluster
that grows on demand, makes it grow.
"""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from stereo_jobs.errors import (
    ClusterError,
    InterruptedRunError,
    ModelError,
    SpecError,
    StereoJobsError,
)
from stereo_jobs.job.actors import ActorWorker, Board, News, Place
from stereo_jobs.job.layout import ShardKey
from stereo_jobs.job.pool import IN_FLIGHT, Blame, Loss, Outcome
from stereo_jobs.job.worker import Load, ShardTask
from stereo_jobs.spec import ActorRange, JobSpec, Recipe

log = logging.getLogger(__name__)

TEND_EVERY_S = 1.0
"""Between two looks at nodes, deadlines and the number of actors."""
BENCHED_AFTER = 3
"""Shards in a row that fail on one GPU, while others do well, before nothing is dealt to it any more."""
HEAD_PATIENCE_S = 30.0
"""How long the head may be away."""
ANSWER_WITHIN_S = 10.0
"""For the board, which does nothing but remember."""


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


@dataclass
class _Actor:
    number: int
    handle: Any
    loading: Any
    """Ends once the models are loaded."""
    loads: int = 1
    """Tries to load them, those of the actors before it in this role included."""
    place: Place | None = None
    """None while it waits for room or loads."""
    retired: bool = False
    """Nothing more is dealt to it. It lives on, so that no other actor is put onto its GPU."""
    tasks: list[Any] = field(default_factory=list)
    """Under way, oldest first; only the oldest one is being generated."""
    since: float = 0.0
    """When the oldest task came to be the oldest."""


class RayPool:
    """Explicit actors fed by the driver; work begins when enough are ready, the others join as they are.

    Args:
        spec: `runtime` says how many and where.
        recipe: resolved.
        load: loads the generator in each actor.
        shards: how many there are to make; no more actors than that are started.
        ended: whether to give up waiting for actors, since the run is to stop.

    Raises:
        SpecError: too few actors were ready for `start_timeout_s`.
        ModelError: an actor cannot load its models.
    """

    def __init__(self, spec: JobSpec, recipe: Recipe, load: Load, *, shards: int, ended: Callable[[], bool]) -> None:
        self._ray, self._owned = start_ray(spec)
        self._runtime = spec.runtime
        self._arguments = (spec, recipe, load)
        self._shards = shards
        self._actors: list[_Actor] = []
        self._started = 0
        self._given_up = 0
        """Actors that could not load, for as many tries as a shard has."""
        self._failed: dict[str, set[ShardKey]] = {}
        """By place: shards that failed there since the last that did not."""
        self._benched: set[str] = set()
        self._tasks: dict[Any, tuple[ShardTask, _Actor]] = {}
        self._lost: list[Outcome] = []
        self._tended = 0.0
        self._head: str = self._ray.get_runtime_context().gcs_address
        self._head_seen = time.monotonic()
        self._head_lost = False
        self._was_ready = False
        self._begun = False
        self._last_seen = time.monotonic()
        self._gpus = self._gpus_per_actor()
        own_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        board = self._ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=own_node)
        self._board = board.remote()
        try:
            gate = self._gate()
            self._tend()
            while self.workers() < gate and not ended():
                self._tend()
                self._greet(0.5)
                self._refuse_to_wait(gate)
        except BaseException:
            self.close()
            raise
        self._begun = True

    # --- See Pool ---

    def free(self) -> int:
        """See Pool."""
        self._tend()
        self._greet(0)
        if self.workers():
            self._last_seen = time.monotonic()
        self._refuse_to_wait(1)
        return sum(IN_FLIGHT - len(actor.tasks) for actor in self._serving())

    def busy(self) -> int:
        """See Pool."""
        return len(self._tasks) + len(self._lost)

    def workers(self) -> int:
        """See Pool."""
        return sum(1 for _ in self._serving())

    def submit(self, task: ShardTask) -> None:
        """See Pool. The least busy actor takes it, at another place than where it failed if there is one free."""
        free = [actor for actor in self._serving() if len(actor.tasks) < IN_FLIGHT]
        actor = min(free, key=lambda a: (_label(a) in task.avoid, len(a.tasks)))
        ref = actor.handle.run.remote(task.key, task.one_by_one, task.quarantined)
        if not actor.tasks:
            actor.since = time.monotonic()
        actor.tasks.append(ref)
        self._tasks[ref] = (task, actor)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        self._tend()
        if not self._tasks and not self._lost:
            time.sleep(min(timeout_s, 0.1))
            return []
        outcomes = []
        for ref in self._done(self._tasks, 0 if self._lost else timeout_s):
            if ref in self._tasks:  # else its actor was lost under another task
                outcomes += self._outcome(ref)
        lost, self._lost = self._lost, []
        return outcomes + lost

    def stop(self) -> None:
        """See Pool. An actor's shard is simply left: nothing of it is visible before it is whole."""

    def close(self) -> None:
        """See Pool."""
        if self._head_lost:
            return  # there is nobody to tell; actors end with their job
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._ray.kill(self._board)
        if self._owned:
            self._ray.shutdown()

    # --- How many actors ---

    def _gate(self) -> int:
        """How many actors must be ready before work begins."""
        wanted = self._runtime.actors
        return min(wanted.min if isinstance(wanted, ActorRange) else wanted or 1, self._shards)

    def _wanted(self, nodes: list[dict[str, Any]]) -> int:
        """How many actors there should be now, retired ones left out."""
        wanted = self._runtime.actors
        if isinstance(wanted, ActorRange):
            count = wanted.max
        elif wanted is not None:
            count = wanted
        else:
            retired = sum(actor.retired for actor in self._actors)
            count = max(1, sum(self._room(node["Resources"]) for node in nodes) - retired)
        return min(count, self._shards) - self._given_up

    def _room(self, resources: dict[str, float]) -> int:
        """How many actors fit onto one node."""
        needs = [("GPU", self._gpus), ("CPU", self._runtime.cpus_per_actor)]
        return min((int(resources.get(name, 0) / need + 1e-9) for name, need in needs if need), default=1)

    def _gpus_per_actor(self) -> float:
        """As the cluster is at the start: an actor that replaces another needs what that one had."""
        automatic = self._runtime.device == "auto" and self._ray.cluster_resources().get("GPU", 0) > 0
        return self._runtime.gpus_per_actor if automatic or self._runtime.device == "cuda" else 0.0

    def _start(self, loads: int = 1) -> None:
        number, self._started = self._started, self._started + 1
        handle = (
            self._ray.remote(ActorWorker)
            .options(
                num_cpus=self._runtime.cpus_per_actor,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=IN_FLIGHT + 1,
            )
            .remote(*self._arguments, self._board, number)
        )
        self._actors.append(_Actor(number, handle, handle.ready.remote(), loads))

    def _refuse_to_wait(self, wanted: int) -> None:
        """Raise if fewer than `wanted` actors were ready for too long."""
        if self.workers() < wanted and time.monotonic() > self._last_seen + self._runtime.start_timeout_s:
            problem = (
                f"runtime.actors: {self.workers()} of {wanted} actors ready after "
                f"{self._runtime.start_timeout_s:g} s; the cluster has {self._ray.cluster_resources()}"
            )
            if self._begun:
                raise InterruptedRunError(f"{problem}; run again when it has room")
            raise SpecError(f"{problem}; ask for fewer, or raise runtime.start_timeout_s")

    # --- Watching over them ---

    def _serving(self) -> list[_Actor]:
        return [actor for actor in self._actors if actor.place and not actor.retired]

    def _tend(self) -> None:
        """Give up actors that are lost or late, retire those about to go, start what is missing."""
        now = time.monotonic()
        if now < self._tended + TEND_EVERY_S:
            return
        self._tended = now
        if not self._head_answers():
            return
        nodes = self._nodes()
        alive = {node["NodeID"] for node in nodes}
        news, draining = self._news(), self._draining()
        limit = self._runtime.shard_timeout_s
        for actor in list(self._actors):
            if actor.place and actor.place.node not in alive:
                self._give_up(actor, "its node is gone", "nobody")
            elif actor.number in news.late:
                self._give_up(actor, f"a batch took more than {self._runtime.batch_timeout_s:g} s", "rows")
            elif actor.tasks and now > actor.since + limit:
                self._give_up(actor, f"the shard took more than {limit:g} s", "shard")
            elif actor.place and (actor.number in news.leaving or actor.place.node in draining):
                if not actor.retired:
                    log.warning("actor %s: its machine is about to go; nothing more is dealt to it", actor.place.name)
                actor.retired = True
        missing = self._wanted(nodes) - sum(not actor.retired for actor in self._actors)
        for _ in range(missing):
            self._start()

    def _head_answers(self) -> bool:
        """Asked before Ray is: without a head its calls hang, and after a minute it ends this process."""
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            self._head_seen = time.monotonic()
            return True
        except OSError:
            self._head_lost = time.monotonic() > self._head_seen + HEAD_PATIENCE_S
            if self._head_lost:
                raise InterruptedRunError(
                    f"{self._head}: the head of the cluster does not answer for {HEAD_PATIENCE_S:g} s; what was "
                    "made is kept: run again when it is back, or on another cluster"
                ) from None
            return False

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _draining(self) -> set[str]:
        """Nodes that Ray was told will go (`ray drain-node`)."""
        try:
            return set(self._ray._private.state.state.get_draining_nodes())
        except AttributeError:  # not a public part of Ray
            return set()

    def _news(self) -> News:
        if not self._serving():
            return News([], [])  # and the board may still be on its way
        news: News | None = self._ask_board(self._board.news.remote(self._runtime.batch_timeout_s))
        return news or News([], [])

    def _greet(self, timeout_s: float) -> None:
        """Note which actors have loaded their models since the last call."""
        loading = {actor.loading: actor for actor in self._actors if not actor.place}
        for ref in self._done(loading, timeout_s):
            actor = loading[ref]
            try:
                actor.place = self._ray.get(ref)
            except self._ray.exceptions.RayActorError as error:
                self._actors.remove(actor)
                # Otherwise its process or node was lost while loading, which is no fault of the models.
                if error.actor_init_failed:
                    self._load_again(actor, _cause(error))
                continue
            self._was_ready = True
            actor.retired = _label(actor) in self._benched
            log.info("actor %s is ready", _label(actor))

    def _load_again(self, actor: _Actor, cause: StereoJobsError) -> None:
        """An actor could not load its models: everybody's trouble, or this machine's."""
        if not self._was_ready:
            raise cause
        if actor.loads < self._runtime.shard_attempts:
            self._start(actor.loads + 1)
            return
        self._given_up += 1
        log.warning("going on without an actor: %s", cause)
        if not self._actors:
            raise cause

    def _outcome(self, ref: Any) -> list[Outcome]:
        task, actor = self._tasks[ref]
        try:
            record = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            died = isinstance(error, self._ray.exceptions.ActorDiedError) and not error.preempted
            # Out of reach is not dead; but what is out of reach is of no use.
            if died and actor.place and any(node["NodeID"] == actor.place.node for node in self._nodes()):
                self._give_up(actor, "its process died", "rows")
            else:
                self._give_up(actor, "its node is gone or out of reach", "nobody")
            return []
        except self._ray.exceptions.RayTaskError as error:
            wasted_s = self._take_off(ref)
            cause = error.cause
            if isinstance(cause, StereoJobsError):
                return [Outcome(task, error=cause, wasted_s=wasted_s)]
            self._note_failure(actor, task.key)
            return [Outcome(task, error=error, wasted_s=wasted_s)]
        self._take_off(ref)
        if record.failed == record.planned and record.seconds > 0.1:
            # Generated, and all in vain: a GPU that makes NaN of everything raises nothing.
            self._note_failure(actor, task.key)
        else:
            self._failed.pop(_label(actor), None)
        return [Outcome(task, record)]

    def _take_off(self, ref: Any) -> float:
        """Forget a task; returns for how long its actor was at it."""
        _, actor = self._tasks.pop(ref)
        seconds = time.monotonic() - actor.since if actor.tasks[0] is ref else 0.0
        actor.tasks.remove(ref)
        actor.since = time.monotonic()
        return seconds

    def _give_up(self, actor: _Actor, reason: str, blame: Blame) -> None:
        """End an actor; its shards come back as losses, and another actor will take its place."""
        log.warning("actor %s is given up: %s", _label(actor), reason)
        self._actors.remove(actor)
        self._ray.kill(actor.handle)
        key, rows = self._last_batch(actor)
        if key and blame != "nobody":
            self._note_failure(actor, key)
        places = {_label(other) for other in self._serving()} | {_label(actor)}
        for at, ref in enumerate(list(actor.tasks)):
            task = self._tasks[ref][0]
            batch = tuple(rows) if task.key == key else ()
            # Of the shards that an actor has, one is to blame; the other cannot help it.
            at_fault = at == 0 if blame == "shard" or not key else task.key == key
            loss = Loss(reason, blame if at_fault else "nobody", batch, _label(actor), alone=len(places) == 1)
            self._lost.append(Outcome(task, loss=loss, wasted_s=self._take_off(ref)))

    def _last_batch(self, actor: _Actor) -> tuple[ShardKey | None, list[int]]:
        return self._ask_board(self._board.take.remote(actor.number)) or (None, [])

    def _ask_board(self, answer: Any) -> Any:
        """What the board answers; None where it was lost, and is made again empty."""
        try:
            return self._ray.get(answer, timeout=ANSWER_WITHIN_S)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError):
            return None

    def _note_failure(self, actor: _Actor, key: ShardKey) -> None:
        """Bench a place where shard after shard fails, as long as there is one where they do not."""
        place = _label(actor)
        self._failed.setdefault(place, set()).add(key)
        others = any(_label(other) not in self._failed for other in self._serving())
        if len(self._failed[place]) >= BENCHED_AFTER and others and place not in self._benched:
            log.error("%s: %d shards in a row failed there; going on without it", place, len(self._failed[place]))
            self._benched.add(place)
            for other in self._actors:
                other.retired = other.retired or _label(other) == place

    def _done(self, refs: Any, timeout_s: float) -> list[Any]:
        """Those that have ended; waits for the first."""
        if not refs or not self._ray.wait(list(refs), num_returns=1, timeout=timeout_s)[0]:
            return []
        done: list[Any] = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)[0]
        return done


def _label(actor: _Actor) -> str:
    return actor.place.label if actor.place else f"number {actor.number}"


def _cause(error: BaseException) -> StereoJobsError:
    """What stopped an actor from loading, as one of ours; Ray gives it as text."""
    text = str(error)
    for line in text.splitlines():
        if "stereo_jobs.errors." in line:
            return ModelError(line.split("stereo_jobs.errors.", 1)[1].partition(": ")[2])
    return ModelError(f"an actor could not load its models:\n{text}")
