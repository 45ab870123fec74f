"""Workers as Ray actors: as many as are asked for and fit, pinned to their GPUs, replaced when they are lost.

Ray restarts no actor by itself. If an actor is killed, its node dies or does not answer, or it exceeds a time limit,
the pool discards the actor, reports its shards as lost with the suspected cause, and starts another one. That one waits
for room; a cluster that scales on demand then grows.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from stereo_jobs.errors import (
    ClusterError,
    InterruptedRunError,
    ModelError,
    SpecError,
    StereoJobsError,
    StorageUnavailableError,
)
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.spec import ActorRange, JobSpec, Recipe
from stereo_jobs.workers.local_pool import IDLE_S
from stereo_jobs.workers.ray.actor_state import Actor, ActorState
from stereo_jobs.workers.ray.actors import ActorWorker
from stereo_jobs.workers.ray.blocklist import Blocklist
from stereo_jobs.workers.ray.cluster import (
    RayCluster,
    actor_lost_errors,
    actor_needs,
    needs_by_name,
    refuse_missing_gpus,
    room_for_actors,
)
from stereo_jobs.workers.ray.heartbeats import HeartbeatsClient, HeartbeatSummary
from stereo_jobs.workers.task import IN_FLIGHT, FaultScope, Outcome, Pool, ShardTask, WorkerLost
from stereo_jobs.workers.worker import GeneratorFactory

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 1.0
"""Seconds between two checks of nodes, time limits and the number of actors."""


class RayPool(Pool):
    """Actors to which the driver dispatches shards.

    Opening the pool returns once enough actors are ready. The others join as they become ready.

    Args:
        spec: the job; `runtime` says how many actors, and where.
        recipe: the resolved recipe.
        load: loads the generator in each actor.
        shards: how many shards there are to make. No more actors than that are started.
        ended: whether the run is to stop, so that waiting for actors ends.
        tell: called about twice a second with what the first actors are waiting for, in words.

    Raises:
        InterruptedRunError: the cluster had no room for any actor within `runtime.start_timeout_s`.
        SpecError: fewer actors than needed were ready by then, or GPUs are asked for and none will come.
        StereoJobsError: what keeps the actors from loading their models.
    """

    def __init__(
        self,
        spec: JobSpec,
        recipe: Recipe,
        load: GeneratorFactory,
        *,
        shards: int,
        ended: Callable[[], bool],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        tell("starting Ray, or joining its cluster")
        self._cluster = RayCluster(spec)
        self._ray = self._cluster.ray
        self._lost_errors = actor_lost_errors()
        self._runtime = spec.runtime
        self._arguments = (spec, recipe, load)
        self._models = recipe.models.names
        self._fits = True
        """Whether some node is large enough for an actor."""
        self._shards = shards
        self._actors: list[Actor] = []
        self._started = 0
        """Actors started so far."""
        self._abandoned = 0
        """Actors that are not replaced: their models could not be loaded in as many attempts as a shard has."""
        self._blocklist = Blocklist()
        self._tasks: dict[Any, tuple[ShardTask, Actor]] = {}
        self._lost: list[Outcome] = []
        """Shards of discarded actors that `wait` has not returned yet."""
        self._reconciled = 0.0
        self._opened = False
        """Whether enough actors have been ready, so that shards are dispatched."""
        self._needed = self._needed_to_open()
        """Actors that must be ready. Without them the pool can only wait."""
        self._enough = time.monotonic()
        """When so many were last ready."""
        self._furthest = ActorState.WAITING
        """The furthest state, up to READY, that any actor has ever reached."""
        # An actor that replaces another one needs the same resources, whatever the cluster has then.
        self._needs = actor_needs(self._runtime)
        self._heartbeats = HeartbeatsClient(self._ray)
        try:
            refuse_missing_gpus(self._runtime)
            self._reconcile()
            while self.workers() < self._needed and not ended():
                self._reconcile()
                tell(self._starting())
                self._poll_startups(0.5)
                self._refuse_to_wait()
        except BaseException:
            self.close()
            raise
        self._opened, self._needed = True, 1

    # --- What the driver calls ---

    @override
    def free(self) -> int:
        self._reconcile()
        self._refuse_to_wait()
        return sum(actor.room for actor in self._serving())

    @override
    def busy(self) -> int:
        return len(self._tasks) + len(self._lost)

    @override
    def workers(self) -> int:
        return len(self._serving())

    @override
    def takes(self, task: ShardTask) -> bool:
        elsewhere = [actor for actor in self._serving() if actor.label not in task.avoid]
        return not elsewhere or any(actor.room for actor in elsewhere)

    @override
    def submit(self, task: ShardTask) -> None:
        # The least busy actor takes it; if possible, at a place where this shard has not failed.
        free = [actor for actor in self._serving() if actor.room]
        actor = min(free, key=lambda a: (a.label in task.avoid, -a.room))
        ref = actor.handle.run.remote(task.key, task.plan.fingerprint, task.one_by_one, task.quarantined)
        actor.in_flight.add(ref)
        self._tasks[ref] = (task, actor)

    @override
    def wait(self, timeout_s: float) -> list[Outcome]:
        self._reconcile()
        if not self._tasks and not self._lost:
            time.sleep(min(timeout_s, IDLE_S))
            return []
        outcomes = []
        for ref in self._done(self._tasks, 0 if self._lost else timeout_s):
            if ref in self._tasks:  # else its actor was discarded because of another task in this loop
                outcomes += self._outcome(ref)
        lost, self._lost = self._lost, []
        return outcomes + lost

    @override
    def stop(self) -> float:
        # Actors need not be told: nothing of a shard is visible before it is complete.
        in_flight_s = sum(actor.in_flight.seconds() for actor in self._actors)
        return in_flight_s + sum(outcome.wasted_s for outcome in self._lost)

    @override
    def close(self) -> None:
        if self._cluster.lost:
            return  # no call to Ray would return; the actors end with their job
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._heartbeats.kill()
        self._cluster.leave()

    # --- How many actors ---

    def _needed_to_open(self) -> int:
        """How many actors must be ready before shards are dispatched."""
        wanted = self._runtime.actors
        return min(wanted.min if isinstance(wanted, ActorRange) else wanted or 1, self._shards)

    def _starting(self) -> str:
        """What the first actors are waiting for, in words."""
        states = [actor.state for actor in self._actors]
        parts = [f"{self.workers()} of {self._needed} workers ready"]
        if loading := states.count(ActorState.LOADING):
            parts.append(f"{loading} loading models: {self._models}")
        if waiting := states.count(ActorState.WAITING):
            each = ", ".join(f"{name} {need:g}" for name, need in needs_by_name(self._needs).items())
            on = "" if self._fits else ", which no node has yet"
            parts.append(f"{waiting} waiting for room{f' ({each} each)' if each else ''}{on}")
        return ", ".join(parts)

    def _wanted(self) -> int:
        """How many actors there should be now, those that are draining not counted."""
        wanted = self._runtime.actors
        if isinstance(wanted, ActorRange):
            count = wanted.max
        elif wanted is not None:
            count = wanted
        else:
            draining = sum(actor.state is ActorState.DRAINING for actor in self._actors)
            rooms = (room_for_actors(resources, self._needs) for resources in self._cluster.nodes().values())
            count = max(1, sum(rooms) - draining)
        return min(count, self._shards) - self._abandoned

    def _start(self, load_attempts: int = 1) -> None:
        """Start one more actor. It waits for room, then loads its models."""
        number, self._started = self._started, self._started + 1
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": IN_FLIGHT + 1}
        actor = self._ray.remote(ActorWorker).options(**self._needs, **options)
        handle = actor.remote(*self._arguments, self._heartbeats.actor, number)
        self._actors.append(Actor(number, handle, handle.place.remote(), handle.load.remote(), load_attempts))

    def _refuse_to_wait(self) -> None:
        """Raise if too few actors have been ready for `runtime.start_timeout_s`."""
        if self.workers() >= self._needed or time.monotonic() <= self._enough + self._runtime.start_timeout_s:
            return
        problem = (
            f"runtime.actors: {self.workers()} of {self._needed} actors ready after "
            f"{self._runtime.start_timeout_s:g} s; the cluster has {self._ray.cluster_resources()}"
        )
        if self._opened or self._furthest is ActorState.WAITING:
            raise InterruptedRunError(f"{problem}; run again when it has room")
        raise SpecError(f"{problem}; ask for fewer, or raise runtime.start_timeout_s")

    # --- Keeping the actors as they should be ---

    def _serving(self) -> list[Actor]:
        """The actors that take tasks."""
        return [actor for actor in self._actors if actor.state is ActorState.READY]

    def _reconcile(self) -> None:
        """Discard actors that are lost or late, drain those about to go, start the missing ones."""
        now = time.monotonic()
        if now < self._reconciled + RECONCILE_EVERY_S:
            return
        self._reconciled = now
        if not self._cluster.answers():
            return
        if self._heartbeats.lost:
            self._replace_heartbeats()
        self._poll_startups(0)
        if self.workers() >= self._needed:
            self._enough = now
        nodes, draining, heartbeats = self._cluster.nodes(), self._cluster.draining(), HeartbeatSummary([], [])
        self._fits = any(room_for_actors(resources, self._needs) for resources in nodes.values())
        if self._serving():  # before, the heartbeats actor may not have started yet
            heartbeats = self._heartbeats.summary(self._runtime.batch_timeout_s)
        self._discard_lost_and_late(set(nodes), heartbeats.late)
        self._replace_slow_to_load()
        self._drain_leaving(draining, heartbeats.preempted)
        missing = self._wanted() - sum(actor.state is not ActorState.DRAINING for actor in self._actors)
        for _ in range(missing):
            self._start()

    def _replace_heartbeats(self) -> None:
        self._heartbeats.start()
        for actor in self._actors:
            actor.handle.use_heartbeats.remote(self._heartbeats.actor)

    def _discard_lost_and_late(self, alive: set[str], late: list[int]) -> None:
        """Discard actors whose node is gone, whose batch takes too long, or whose shard does."""
        runtime = self._runtime
        for actor in list(self._actors):
            if actor.place and actor.place.node not in alive:
                self._discard(actor, "its node is gone", "none")
            elif actor.number in late:
                self._discard(actor, f"a batch or a row took more than {runtime.batch_timeout_s:g} s", "batch")
            elif actor.in_flight.seconds() > runtime.shard_timeout_s:
                self._discard(actor, f"the shard took more than {runtime.shard_timeout_s:g} s", "shard")

    def _replace_slow_to_load(self) -> None:
        """Replace actors that have a process and do not load their models in time."""
        limit_s = self._runtime.start_timeout_s
        for actor in list(self._actors):
            if actor.loads_for_longer_than(limit_s):
                problem = f"an actor took more than runtime.start_timeout_s = {limit_s:g} to load its models"
                self._replace_failed_to_load(actor, ClusterError(f"{actor.label}: {problem}"))

    def _drain_leaving(self, draining: set[str], preempted: list[int]) -> None:
        """Drain actors whose node Ray was told to drain, or whose machine has announced its end."""
        for actor in self._actors:
            if actor.number in preempted or (actor.place and actor.place.node in draining):
                actor.drain("its machine is about to go")

    def _discard(self, actor: Actor, reason: str, scope: FaultScope) -> None:
        """End an actor and report its shards as lost. `_reconcile` starts another one."""
        log.warning("actor %s is discarded: %s", actor.label, reason)
        self._end(actor)
        working = self._heartbeats.take_batch(actor.number, self._runtime.batch_timeout_s)
        key, rows = working if actor.in_flight.tasks else (None, [])
        if key and scope != "none":
            self._record_failure(actor, key)
        places = {other.label for other in self._serving()} | {actor.label}
        for position, ref in enumerate(list(actor.in_flight.tasks)):
            task = self._tasks[ref][0]
            batch = tuple(rows) if task.key == key else ()
            # Only one shard of an actor can be the cause: the one with the batch, else the oldest.
            is_cause = position == 0 if scope == "shard" or not key else task.key == key
            lost = WorkerLost(reason, scope if is_cause else "none", batch, actor.label, only_place=len(places) == 1)
            self._lost.append(Outcome(task, lost=lost, wasted_s=self._forget(ref)))

    def _end(self, actor: Actor) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor.handle)

    # --- Loading the models ---

    def _poll_startups(self, timeout_s: float) -> None:
        """Note which actors have got a place, and which have loaded their models, since the last call."""
        placing = {actor.placing: actor for actor in self._actors if actor.placing is not None}
        loading = {actor.loading: actor for actor in self._actors if actor.loading is not None}
        done = self._done([*placing, *loading], timeout_s)
        for ref in done:
            if ref in placing:
                with contextlib.suppress(*self._lost_errors):  # the reference to its loading raises the same
                    placing[ref].placed(self._ray.get(ref))
                    self._furthest = max(self._furthest, ActorState.LOADING)
        for ref in done:
            if ref in loading:
                self._end_of_loading(loading[ref])

    def _end_of_loading(self, actor: Actor) -> None:
        """Take in that an actor has loaded its models, or failed to."""
        try:
            self._ray.get(actor.loading)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, StereoJobsError):
                cause = ClusterError(f"{actor.label}: an actor could not load its models: {cause!r}")
            self._replace_failed_to_load(actor, cause)
        except self._lost_errors as error:
            if getattr(error, "actor_init_failed", False):
                self._replace_failed_to_load(actor, ClusterError(f"an actor could not start:\n{error}"))
            elif self._died_alone(actor, error):
                problem = f"an actor died while it loaded its models; is the host's memory enough? ({error})"
                self._replace_failed_to_load(actor, ClusterError(f"{actor.label}: {problem}"))
            else:  # its node was lost, or its end was announced: `_reconcile` starts another one
                self._end(actor)
        else:
            if actor.place is None:
                return  # the answer with its place is still on its way; both are looked at again
            actor.loaded()
            self._furthest = ActorState.READY
            if actor.label in self._blocklist:
                actor.drain("its place is excluded")

    def _replace_failed_to_load(self, actor: Actor, cause: StereoJobsError) -> None:
        """Replace an actor that could not load its models, go on without it, or raise the cause.

        A store that is away is waited for, however often. A fault of the models or the spec that shows before any
        actor has loaded them is the same everywhere, and ends the run. Anything else may be the fault of one machine.
        """
        self._end(actor)
        away = isinstance(cause, StorageUnavailableError)
        if self._furthest < ActorState.READY and (away or isinstance(cause, (ModelError, SpecError))):
            raise cause
        if away or actor.load_attempts < self._runtime.shard_attempts:
            log.warning("starting another actor: %s", cause)
            self._start(actor.load_attempts + (not away))
            return
        self._abandoned += 1
        log.warning("going on without an actor: %s", cause)
        if self._wanted() < self._needed:
            raise cause

    # --- How tasks end ---

    def _outcome(self, ref: Any) -> list[Outcome]:
        """How a task ended; nothing if its actor was lost, which `_discard` reports."""
        task, actor = self._tasks[ref]
        try:
            record = self._ray.get(ref)
        except self._lost_errors as error:
            if self._died_alone(actor, error):
                self._discard(actor, "its process died", "batch")
            else:
                self._discard(actor, "its node is gone or out of reach", "none")
            return []
        except self._ray.exceptions.RayTaskError as error:
            wasted_s = self._forget(ref)
            cause = error.cause
            if isinstance(cause, StereoJobsError):
                return [Outcome(task, error=cause, wasted_s=wasted_s)]
            self._record_failure(actor, task.key)
            return [Outcome(task, error=error, wasted_s=wasted_s)]
        self._forget(ref)
        if record.failed == record.planned and record.seconds > 0.1:
            # All rows were generated and failed: a faulty GPU that turns everything into NaN raises nothing.
            self._record_failure(actor, task.key)
        else:
            self._blocklist.succeeded(actor.label)
        return [Outcome(task, record)]

    def _died_alone(self, actor: Actor, error: Exception) -> bool:
        """Whether only the actor's process ended, on a node that lives. An actor out of reach has not ended."""
        kinds = self._ray.exceptions
        died = isinstance(error, kinds.OutOfMemoryError) or (
            isinstance(error, kinds.ActorDiedError) and not error.preempted
        )
        return died and actor.place is not None and actor.place.node in self._cluster.nodes()

    def _record_failure(self, actor: Actor, key: ShardKey) -> None:
        """Record that a shard failed at an actor's place, and drain the actors of places that are now excluded."""
        self._blocklist.failed(actor.label, key, [other.label for other in self._serving()])
        for other in self._actors:
            if other.label in self._blocklist:
                other.drain("its place is excluded")

    def _forget(self, ref: Any) -> float:
        """Forget a task and return the seconds that its actor spent on it."""
        _, actor = self._tasks.pop(ref)
        return actor.in_flight.remove(ref)

    def _done(self, refs: Any, timeout_s: float) -> list[Any]:
        """Return the references that have ended. Waits at most `timeout_s` seconds for the first."""
        if not refs or not self._ray.wait(list(refs), num_returns=1, timeout=timeout_s)[0]:
            return []
        done: list[Any] = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)[0]
        return done
