"""Workers as Ray actors: as many as are asked for and fit, pinned to their GPUs, replaced when they are lost.

Ray restarts nothing by itself: whatever becomes of an actor (killed, on a node that died or answers no more, over
a deadline), the pool gives it up, returns its shards and starts another, which waits for room and, on a cluster
that grows on demand, makes it grow.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from stereo_jobs.workers.ray.actors import ActorWorker, Heartbeats, News, Place
from stereo_jobs.workers.ray.blocklist import Blocklist
from stereo_jobs.workers.ray.cluster import RayCluster, actor_needs, deaths
from stereo_jobs.workers.task import IN_FLIGHT, FaultScope, InFlight, Outcome, ShardTask, WorkerLost
from stereo_jobs.workers.worker import GeneratorFactory

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 1.0
"""Between two looks at nodes, deadlines and the number of actors."""
ANSWER_WITHIN_S = 10.0
"""For the board, which does nothing but remember."""


@dataclass(eq=False)
class _Actor:
    number: int
    handle: Any
    placing: Any
    """Ends once it has a process."""
    loading: Any
    """Ends once the models are loaded."""
    loads: int = 1
    """Tries to load them, those of the actors before it in this role included."""
    place: Place | None = None
    """None while it waits for room."""
    placed: float = 0.0
    """When it came to have one."""
    ready: bool = False
    retired: bool = False
    """Nothing more is dealt to it. It lives on, so that no other actor is put onto its GPU."""
    in_flight: InFlight = field(default_factory=InFlight)

    @property
    def label(self) -> str:
        return self.place.label if self.place else f"number {self.number}"


class RayPool:
    """Explicit actors fed by the driver; work begins when enough are ready, the others join as they are.

    Args:
        spec: `runtime` says how many and where.
        recipe: resolved.
        load: loads the generator in each actor.
        shards: how many there are to make; no more actors than that are started.
        ended: whether to give up waiting for actors, since the run is to stop.

    Raises:
        InterruptedRunError: the cluster had no room for any actor within `start_timeout_s`.
        SpecError: too few actors were ready by then.
        StereoJobsError: what keeps the actors from loading their models.
    """

    def __init__(
        self, spec: JobSpec, recipe: Recipe, load: GeneratorFactory, *, shards: int, ended: Callable[[], bool]
    ) -> None:
        self._cluster = RayCluster(spec)
        self._ray = self._cluster.ray
        self._deaths = deaths()
        self._runtime = spec.runtime
        self._arguments = (spec, recipe, load)
        self._shards = shards
        self._actors: list[_Actor] = []
        self._started = 0
        self._given_up = 0
        """Actors that could not load, for as many tries as a shard has."""
        self._blocklist = Blocklist()
        self._tasks: dict[Any, tuple[ShardTask, _Actor]] = {}
        self._lost: list[Outcome] = []
        self._reconciled = 0.0
        self._needed = self._gate()
        """Actors without which there is nothing but to wait for more."""
        self._enough = time.monotonic()
        """When so many were last ready."""
        self._begun = self._had_place = self._had_models = False
        """Whether work has begun, and whether any actor ever had a process, and loaded models."""
        # An actor that replaces another needs what that one had.
        self._needs = actor_needs(self._runtime)
        self._start_heartbeats()
        try:
            self._reconcile()
            while self.workers() < self._needed and not ended():
                self._reconcile()
                self._poll_startups(0.5)
                self._refuse_to_wait()
        except BaseException:
            self.close()
            raise
        self._begun, self._needed = True, 1

    # --- See Pool ---

    def free(self) -> int:
        """See Pool."""
        self._reconcile()
        self._refuse_to_wait()
        return sum(IN_FLIGHT - len(actor.in_flight.tasks) for actor in self._serving())

    def busy(self) -> int:
        """See Pool."""
        return len(self._tasks) + len(self._lost)

    def workers(self) -> int:
        """See Pool."""
        return len(self._serving())

    def submit(self, task: ShardTask) -> None:
        """See Pool. The least busy actor takes it, at another place than where it failed if there is one free."""
        free = [actor for actor in self._serving() if len(actor.in_flight.tasks) < IN_FLIGHT]
        actor = min(free, key=lambda a: (a.label in task.avoid, len(a.in_flight.tasks)))
        ref = actor.handle.run.remote(task.key, task.one_by_one, task.quarantined)
        actor.in_flight.put(ref)
        self._tasks[ref] = (task, actor)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        self._reconcile()
        if not self._tasks and not self._lost:
            time.sleep(min(timeout_s, IDLE_S))
            return []
        outcomes = []
        for ref in self._done(self._tasks, 0 if self._lost else timeout_s):
            if ref in self._tasks:  # else its actor was lost under another task
                outcomes += self._outcome(ref)
        lost, self._lost = self._lost, []
        return outcomes + lost

    def stop(self) -> float:
        """See Pool. An actor's shard is simply left: nothing of it is visible before it is whole."""
        return sum(actor.in_flight.seconds() for actor in self._actors) + sum(
            outcome.wasted_s for outcome in self._lost
        )

    def close(self) -> None:
        """See Pool."""
        if self._cluster.lost:
            return  # there is nobody to tell; actors end with their job
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._ray.kill(self._heartbeats)
        self._cluster.leave()

    # --- How many actors ---

    def _gate(self) -> int:
        """How many actors must be ready before work begins."""
        wanted = self._runtime.actors
        return min(wanted.min if isinstance(wanted, ActorRange) else wanted or 1, self._shards)

    def _wanted(self) -> int:
        """How many actors there should be now, retired ones left out."""
        wanted = self._runtime.actors
        if isinstance(wanted, ActorRange):
            count = wanted.max
        elif wanted is not None:
            count = wanted
        else:
            retired = sum(actor.retired for actor in self._actors)
            count = max(1, sum(map(self._room, self._cluster.nodes().values())) - retired)
        return min(count, self._shards) - self._given_up

    def _room(self, resources: dict[str, float]) -> int:
        """How many actors fit onto one node."""
        needs = [("GPU", self._needs["num_gpus"]), ("CPU", self._needs["num_cpus"])]
        return min((int(resources.get(name, 0) / need + 1e-9) for name, need in needs if need), default=1)

    def _start(self, loads: int = 1) -> None:
        number, self._started = self._started, self._started + 1
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": IN_FLIGHT + 1}
        actor = self._ray.remote(ActorWorker).options(**self._needs, **options)
        handle = actor.remote(*self._arguments, self._heartbeats, number)
        self._actors.append(_Actor(number, handle, handle.place.remote(), handle.load.remote(), loads))

    def _refuse_to_wait(self) -> None:
        """Raise if there were too few actors for too long."""
        if self.workers() >= self._needed or time.monotonic() <= self._enough + self._runtime.start_timeout_s:
            return
        problem = (
            f"runtime.actors: {self.workers()} of {self._needed} actors ready after "
            f"{self._runtime.start_timeout_s:g} s; the cluster has {self._ray.cluster_resources()}"
        )
        if self._begun or not self._had_place:
            raise InterruptedRunError(f"{problem}; run again when it has room")
        raise SpecError(f"{problem}; ask for fewer, or raise runtime.start_timeout_s")

    # --- Watching over them ---

    def _serving(self) -> list[_Actor]:
        return [actor for actor in self._actors if actor.ready and not actor.retired]

    def _reconcile(self) -> None:
        """Give up actors that are lost or late, retire those about to go, start what is missing."""
        now = time.monotonic()
        if now < self._reconciled + RECONCILE_EVERY_S:
            return
        self._reconciled = now
        if not self._cluster.answers():
            return
        if self._heartbeats_lost:
            self._start_heartbeats()
        self._poll_startups(0)
        if self.workers() >= self._needed:
            self._enough = now
        alive, draining, news = self._cluster.nodes(), self._cluster.draining(), self._news()
        runtime = self._runtime
        for actor in list(self._actors):
            if actor.place and actor.place.node not in alive:
                self._give_up(actor, "its node is gone", "nobody")
            elif actor.place and not actor.ready and now > actor.placed + runtime.start_timeout_s:
                problem = (
                    f"an actor took more than runtime.start_timeout_s = {runtime.start_timeout_s:g} to load its models"
                )
                self._load_again(actor, ClusterError(f"{actor.label}: {problem}"))
            elif actor.number in news.late:
                self._give_up(actor, f"a batch took more than {runtime.batch_timeout_s:g} s", "rows")
            elif actor.in_flight.seconds() > runtime.shard_timeout_s:
                self._give_up(actor, f"the shard took more than {runtime.shard_timeout_s:g} s", "shard")
            elif actor.place and (actor.number in news.leaving or actor.place.node in draining):
                if not actor.retired:
                    log.warning("actor %s: its machine is about to go; nothing more is dealt to it", actor.label)
                actor.retired = True
        missing = self._wanted() - sum(not actor.retired for actor in self._actors)
        for _ in range(missing):
            self._start()

    def _start_heartbeats(self) -> None:
        """On this node. Ray does not restart it: what it does, its memory monitor would end before a hungry actor."""
        own_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        board = self._ray.remote(Heartbeats).options(num_cpus=0, max_restarts=0, scheduling_strategy=own_node)
        self._heartbeats, self._heartbeats_lost = board.remote(), False
        for actor in self._actors:
            actor.handle.report_to.remote(self._heartbeats)

    def _news(self) -> News:
        if not self._serving():
            return News([], [])  # and the board may still be on its way
        news: News | None = self._ask_heartbeats(self._heartbeats.news.remote(self._runtime.batch_timeout_s))
        return news or News([], [])

    def _poll_startups(self, timeout_s: float) -> None:
        """Note which actors have got a process, and which have loaded their models, since the last call."""
        placing = {actor.placing: actor for actor in self._actors if not actor.place}
        loading = {actor.loading: actor for actor in self._actors if not actor.ready}
        done = self._done([*placing, *loading], timeout_s)
        for ref in done:
            if ref in placing:
                with contextlib.suppress(*self._deaths):  # of which loading tells, too
                    placing[ref].place, placing[ref].placed = self._ray.get(ref), time.monotonic()
                    self._had_place = True
        for ref in done:
            if ref in loading:
                self._loaded(loading[ref])

    def _loaded(self, actor: _Actor) -> None:
        """An actor has loaded its models, or failed to."""
        try:
            self._ray.get(actor.loading)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, StereoJobsError):
                cause = ClusterError(f"{actor.label}: an actor could not load its models: {cause!r}")
            self._load_again(actor, cause)
        except self._deaths as error:
            if getattr(error, "actor_init_failed", False):
                self._load_again(actor, ClusterError(f"an actor could not start:\n{error}"))
            elif self._died_alone(actor, error):
                problem = f"an actor died while it loaded its models; is the host's memory enough? ({error})"
                self._load_again(actor, ClusterError(f"{actor.label}: {problem}"))
            else:  # its node was lost, or its end was announced
                self._end(actor)
        else:
            if actor.place:  # else it is on its way
                actor.ready = self._had_models = True
                actor.retired = actor.retired or actor.label in self._blocklist
                log.info("actor %s is ready", actor.label)

    def _load_again(self, actor: _Actor, cause: StereoJobsError) -> None:
        """An actor could not load its models: everybody's trouble, this machine's, or the store's, that will pass."""
        self._end(actor)
        away = isinstance(cause, StorageUnavailableError)
        if not self._had_models and (away or isinstance(cause, (ModelError, SpecError))):
            raise cause
        if away or actor.loads < self._runtime.shard_attempts:
            log.warning("starting another actor: %s", cause)
            self._start(actor.loads + (not away))
            return
        self._given_up += 1
        log.warning("going on without an actor: %s", cause)
        if self._wanted() < self._needed:
            raise cause

    def _outcome(self, ref: Any) -> list[Outcome]:
        task, actor = self._tasks[ref]
        try:
            record = self._ray.get(ref)
        except self._deaths as error:
            if self._died_alone(actor, error):
                self._give_up(actor, "its process died", "rows")
            else:
                self._give_up(actor, "its node is gone or out of reach", "nobody")
            return []
        except self._ray.exceptions.RayTaskError as error:
            wasted_s = self._take_off(ref)
            cause = error.cause
            if isinstance(cause, StereoJobsError):
                return [Outcome(task, error=cause, wasted_s=wasted_s)]
            self._failed(actor, task.key)
            return [Outcome(task, error=error, wasted_s=wasted_s)]
        self._take_off(ref)
        if record.failed == record.planned and record.seconds > 0.1:
            # Generated, and all in vain: a GPU that makes NaN of everything raises nothing.
            self._failed(actor, task.key)
        else:
            self._blocklist.succeeded(actor.label)
        return [Outcome(task, record)]

    def _died_alone(self, actor: _Actor, error: Exception) -> bool:
        """Whether only a process ended. What is out of reach is not dead, but of no use either."""
        kinds = self._ray.exceptions
        died = isinstance(error, kinds.OutOfMemoryError) or (
            isinstance(error, kinds.ActorDiedError) and not error.preempted
        )
        return died and actor.place is not None and actor.place.node in self._cluster.nodes()

    def _take_off(self, ref: Any) -> float:
        """Forget a task; returns for how long its actor was at it."""
        _, actor = self._tasks.pop(ref)
        return actor.in_flight.take(ref)

    def _end(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor.handle)

    def _give_up(self, actor: _Actor, reason: str, blame: FaultScope) -> None:
        """End an actor; its shards come back as losses, and another actor will take its place."""
        log.warning("actor %s is given up: %s", actor.label, reason)
        self._end(actor)
        key, rows = self._last_batch(actor)
        if key and blame != "nobody":
            self._failed(actor, key)
        places = {other.label for other in self._serving()} | {actor.label}
        for at, ref in enumerate(list(actor.in_flight.tasks)):
            task = self._tasks[ref][0]
            batch = tuple(rows) if task.key == key else ()
            # Of the shards that an actor has, one is to blame; the other cannot help it.
            at_fault = at == 0 if blame == "shard" or not key else task.key == key
            loss = WorkerLost(reason, blame if at_fault else "nobody", batch, actor.label, alone=len(places) == 1)
            self._lost.append(Outcome(task, loss=loss, wasted_s=self._take_off(ref)))

    def _last_batch(self, actor: _Actor) -> tuple[ShardKey | None, list[int]]:
        asked = actor.in_flight.tasks and self._ask_heartbeats(self._heartbeats.take.remote(actor.number))
        return asked or (None, [])

    def _ask_heartbeats(self, answer: Any) -> Any:
        """What the board answers; None where it was lost, and another one will begin empty."""
        try:
            return self._ray.get(answer, timeout=ANSWER_WITHIN_S)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except self._deaths:
            self._heartbeats_lost = True
            return None

    def _failed(self, actor: _Actor, key: ShardKey) -> None:
        """A shard failed on an actor: enough of them, and its place is left alone."""
        self._blocklist.failed(actor.label, key, [other.label for other in self._serving()])
        for other in self._actors:
            other.retired = other.retired or other.label in self._blocklist

    def _done(self, refs: Any, timeout_s: float) -> list[Any]:
        """Those that have ended; waits for the first."""
        if not refs or not self._ray.wait(list(refs), num_returns=1, timeout=timeout_s)[0]:
            return []
        done: list[Any] = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)[0]
        return done
