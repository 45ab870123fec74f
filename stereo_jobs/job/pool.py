"""Where workers live: in this process (`--local`) or as Ray actors. Ray is imported here and in `submit` alone.

The driver hands out tasks and collects outcomes; images pass neither through it nor through Ray's object
store, only task numbers and records do.
"""

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from stereo_jobs import logs
from stereo_jobs.errors import DeviceLostError, ModelError, SpecError, StereoJobsError
from stereo_jobs.job.layout import ShardKey
from stereo_jobs.job.metrics import Metrics
from stereo_jobs.job.worker import Load, ShardTask, ShardWorker
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import ActorRange, JobSpec, Recipe

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Shards per worker: one generates while the other reads or uploads."""


class Outcome(NamedTuple):
    """How one deal ended.

    Attributes:
        task: what was dealt.
        record: of the committed shard, if all went well.
        error: what the worker raised.
        died: the worker itself is gone (killed, crashed, or taken off after the deadline).
        batch: positions of the rows it was generating then.
        overdue: it was taken off because the shard took too long.
    """

    task: ShardTask
    record: ShardRecord | None = None
    error: BaseException | None = None
    died: bool = False
    batch: tuple[int, ...] = ()
    overdue: bool = False


class Pool(Protocol):
    """Workers that make shards."""

    def free(self) -> int:
        """How many tasks can be submitted now."""

    def busy(self) -> int:
        """How many tasks are under way."""

    def workers(self) -> int:
        """How many workers are ready."""

    def submit(self, task: ShardTask) -> None:
        """Hand out one task."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes since the last call; waits for the first at most `timeout_s`."""

    def stop(self) -> None:
        """Tell workers to leave their shards at the next batch, where that is possible."""

    def close(self) -> None:
        """End the workers, whatever they are doing."""


class LocalPool:
    """One worker in this process."""

    def __init__(self, spec: JobSpec, recipe: Recipe, load: Load) -> None:
        self._worker = ShardWorker(spec, recipe, load)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard")
        self._tasks: dict[Future[ShardRecord], ShardTask] = {}

    def free(self) -> int:
        """See Pool."""
        return IN_FLIGHT - len(self._tasks)

    def busy(self) -> int:
        """See Pool."""
        return len(self._tasks)

    def workers(self) -> int:
        """See Pool."""
        return 1

    def submit(self, task: ShardTask) -> None:
        """See Pool."""
        self._tasks[self._threads.submit(self._worker.run, task)] = task

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        done, _ = wait_futures(self._tasks, timeout_s, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            task, error = self._tasks.pop(future), future.exception()
            outcomes.append(Outcome(task, error=error) if error else Outcome(task, future.result()))
        return outcomes

    def stop(self) -> None:
        """See Pool."""
        self._worker.stop.set()

    def close(self) -> None:
        """See Pool. Threads cannot be killed: they leave at the next batch."""
        self.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


def open_pool(
    spec: JobSpec, recipe: Recipe, load: Load, *, local: bool, shards: int, ended: Callable[[], bool]
) -> Pool:
    """Workers with their models loaded, in this process or on Ray. See the classes for the arguments."""
    return LocalPool(spec, recipe, load) if local else RayPool(spec, recipe, load, shards=shards, ended=ended)


# --- Ray ---


def start_ray(spec: JobSpec, gpus: int | None = None) -> tuple[ModuleType, bool]:
    """Import and connect Ray: to a cluster if one is named, else to a private one on loopback.

    Args:
        spec: `runtime` names the cluster, or says for how many actors a private one must have room.
        gpus: of a private one; None counts them.

    Returns:
        The module, and whether this call connected it.
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
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        ray.init(address=address, **quiet)
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


class Board:
    """An actor that remembers what every shard's worker was generating, beyond that worker's death."""

    def __init__(self) -> None:
        self._batch: dict[ShardKey, list[int]] = {}

    def report(self, key: ShardKey, rows: list[int]) -> None:
        """Called by a worker before each batch."""
        self._batch[key] = rows

    def take(self, key: ShardKey) -> list[int]:
        """The last batch of a shard; forgotten then."""
        return self._batch.pop(key, [])


class ActorWorker:
    """A ShardWorker as a Ray actor; Ray makes it again, models and all, when its process dies."""

    def __init__(self, spec: JobSpec, recipe: Recipe, load: Load, board_name: str) -> None:
        import ray

        logs.configure(spec.runtime.log_format)
        # By name: an actor whose arguments hold references cannot always be made again after its death.
        board = ray.get_actor(board_name)

        def report(key: ShardKey, rows: list[int]) -> None:
            # Waited for: the report must be out before the batch can kill this process.
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(board.report.remote(key, rows))

        self._worker = ShardWorker(spec, recipe, load, report, Metrics(spec.output, on_ray=True).stage)

    def ready(self) -> str:
        """Answers once the models are loaded."""
        return self._worker.name

    def run(self, task: ShardTask) -> ShardRecord:
        """See ShardWorker.run."""
        try:
            return self._worker.run(task)
        except DeviceLostError:
            log.exception("leaving this process, for Ray to make a new one")
            os._exit(DeviceLostError.exit_code)


@dataclass
class _Actor:
    handle: Any
    ready: bool = False
    tasks: list[Any] = field(default_factory=list)
    """Under way, oldest first; only the oldest one is being generated."""
    since: float = 0.0
    """When the oldest task came to be the oldest."""


class RayPool:
    """Explicit actors, each pinned to its GPUs, fed by the driver; late ones join as they are ready.

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
        count, self._gate, gpus = self._size(shards)
        board_name = f"stereo-jobs-board-{secrets.token_hex(8)}"
        self._board = self._ray.remote(Board).options(num_cpus=0, name=board_name, max_restarts=-1).remote()
        actor_class = self._ray.remote(ActorWorker).options(
            num_cpus=self._runtime.cpus_per_actor,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 1,
        )
        self._actors = [_Actor(actor_class.remote(spec, recipe, load, board_name)) for _ in range(count)]
        self._loading = {actor.handle.ready.remote(): actor for actor in self._actors}
        self._tasks: dict[Any, tuple[ShardTask, _Actor]] = {}
        self._overdue: set[Any] = set()
        self._last_seen = time.monotonic()
        try:
            while self.workers() < self._gate and not ended():
                self._greet(0.5)
                self._refuse_to_wait(self._gate)
        except BaseException:
            self.close()
            raise

    def free(self) -> int:
        """See Pool."""
        self._greet(0)
        if self.workers():
            self._last_seen = time.monotonic()
        self._refuse_to_wait(1)
        return sum(IN_FLIGHT - len(actor.tasks) for actor in self._actors if actor.ready)

    def busy(self) -> int:
        """See Pool."""
        return len(self._tasks)

    def workers(self) -> int:
        """See Pool."""
        return sum(actor.ready for actor in self._actors)

    def submit(self, task: ShardTask) -> None:
        """See Pool. The least busy actor takes it."""
        actor = min((a for a in self._actors if a.ready), key=lambda a: len(a.tasks))
        ref = actor.handle.run.remote(task)
        if not actor.tasks:
            actor.since = time.monotonic()
        actor.tasks.append(ref)
        self._tasks[ref] = (task, actor)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        if not self._tasks:
            time.sleep(min(timeout_s, 0.1))
            return []
        self._take_off_overdue()
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        return [self._outcome(ref) for ref in done]

    def stop(self) -> None:
        """See Pool. An actor's shard is simply left: nothing of it is visible before it is whole."""

    def close(self) -> None:
        """See Pool."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._ray.kill(self._board)
        if self._owned:
            self._ray.shutdown()

    def _size(self, shards: int) -> tuple[int, int, float]:
        """How many actors, how many must be ready before work begins, GPUs for each."""
        runtime, resources = self._runtime, self._ray.cluster_resources()
        gpus = runtime.gpus_per_actor if runtime.device == "cuda" else 0.0
        if runtime.device == "auto" and resources.get("GPU", 0) > 0:
            gpus = runtime.gpus_per_actor
        if isinstance(runtime.actors, ActorRange):
            count, gate = runtime.actors.max, runtime.actors.min
        elif runtime.actors is not None:
            count = gate = runtime.actors
        else:
            room = resources.get("GPU", 0) / gpus if gpus else resources["CPU"] / (runtime.cpus_per_actor or 1)
            count, gate = max(1, int(room)), 1
        return min(count, shards), min(gate, shards), gpus

    def _refuse_to_wait(self, wanted: int) -> None:
        """Raise SpecError if fewer than `wanted` actors were ready for too long."""
        if self.workers() < wanted and time.monotonic() > self._last_seen + self._runtime.start_timeout_s:
            raise SpecError(
                f"runtime.actors: {self.workers()} of {wanted} actors ready after "
                f"{self._runtime.start_timeout_s:g} s; the cluster has {self._ray.cluster_resources()}; ask for "
                "fewer, or raise runtime.start_timeout_s"
            )

    def _greet(self, timeout_s: float) -> None:
        """Note which actors have loaded their models since the last call."""
        if not self._loading:
            return
        ready, _ = self._ray.wait(list(self._loading), num_returns=1, timeout=timeout_s)
        for ref in ready:
            actor = self._loading.pop(ref)
            try:
                log.info("actor %s is ready", self._ray.get(ref))
                actor.ready = True
            except self._ray.exceptions.RayActorError as error:
                if "creation task" in str(error):
                    self._actors.remove(actor)
                    if not self.workers():
                        raise _cause(error) from None
                    log.warning("going on without an actor: %s", _cause(error))
                    continue
                # Its process or node was lost while loading: Ray makes it again.
                self._loading[actor.handle.ready.remote()] = actor

    def _outcome(self, ref: Any) -> Outcome:
        task, actor = self._tasks.pop(ref)
        actor.tasks.remove(ref)
        actor.since = time.monotonic()
        overdue = ref in self._overdue
        self._overdue.discard(ref)
        try:
            return Outcome(task, self._ray.get(ref))
        except self._ray.exceptions.RayActorError as error:
            # The actor's process is gone; Ray is making it again, and it is asked anew whether it is ready.
            if actor.ready:
                actor.ready = False
                self._loading[actor.handle.ready.remote()] = actor
            return Outcome(task, error=error, died=True, batch=self._last_batch(task), overdue=overdue)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            return Outcome(task, error=cause if isinstance(cause, StereoJobsError) else error)

    def _take_off_overdue(self) -> None:
        limit = self._runtime.shard_timeout_s
        for actor in self._actors:
            if actor.tasks and time.monotonic() > actor.since + limit and actor.tasks[0] not in self._overdue:
                log.warning("shard %s took more than %g s", self._tasks[actor.tasks[0]][0].key, limit)
                self._overdue.add(actor.tasks[0])
                self._ray.kill(actor.handle, no_restart=False)

    def _last_batch(self, task: ShardTask) -> tuple[int, ...]:
        try:
            return tuple(self._ray.get(self._board.take.remote(task.key)))
        except self._ray.exceptions.RayActorError:
            return ()  # the board was lost, and is made again empty


def _cause(error: BaseException) -> StereoJobsError:
    """What stopped an actor from loading, as one of ours; Ray gives it as text."""
    text = str(error)
    for line in text.splitlines():
        if "stereo_jobs.errors." in line:
            return ModelError(line.split("stereo_jobs.errors.", 1)[1].partition(": ")[2])
    return ModelError(f"an actor could not load its models:\n{text}")
