"""The run: publish a plan if there is none, find what is done, dispatch the rest, mark the end.

All state that a run needs is in the output. A run that is killed at any point is resumed by the next run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from stereo_jobs import interrupts, logs
from stereo_jobs.data import card
from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import (
    InterruptedRunError,
    OutputGoneError,
    OutputHeldError,
    StereoJobsError,
    StorageUnavailableError,
    TooManyFailuresError,
)
from stereo_jobs.output import audit, layout, plan, progress
from stereo_jobs.output.commits import repair
from stereo_jobs.output.guard import PlanGuard
from stereo_jobs.output.layout import ShardKey, shard_name
from stereo_jobs.output.lease import Lease
from stereo_jobs.output.plan import Job
from stereo_jobs.run.prepare import open_output, plan_retry, prepare, refuse_missing_gpu
from stereo_jobs.run.queue import ShardQueue
from stereo_jobs.run.retry import GiveUp, Requeue, ShardHistory, decide
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.version import __version__
from stereo_jobs.workers.local_pool import LocalPool
from stereo_jobs.workers.patience import STORE_PATIENCE_S
from stereo_jobs.workers.prometheus import JobMetrics
from stereo_jobs.workers.ray.pool import RayPool
from stereo_jobs.workers.task import Outcome, Pool, ShardTask, WorkerLost
from stereo_jobs.workers.worker import GeneratorFactory, load_generator

log = logging.getLogger(__name__)

SAVE_TOTALS_EVERY_S = 10.0
"""Most seconds between two writes of the totals, which show that the run is alive and how fast it is."""
SAVE_TOTALS_AFTER = 8
"""Committed shards after which the totals are written sooner: a look from outside reads the records of newer ones."""
SAVE_TOTALS_AT_MOST_EVERY_S = 1.0
"""Least seconds between two writes of the totals."""
LOOK_EVERY_S = 5.0
"""Seconds between two looks whether the plans of the output are still there."""
MIN_ROWS_FOR_RATIO = 100
"""Rows to make before the share of failed ones can stop a run early."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, for the live display.

    Attributes:
        planned: pairs of the whole job.
        done: pairs committed, by this run and earlier ones.
        failed: rows whose latest state is failed.
        made: rows that this run has made, failed or not.
        left: rows that this run has still to make.
        seconds: time since the workers were ready; while the first of them start, time since that began.
        workers: workers that take shards.
        running: shards in flight.
        queued: shards that wait for a worker.
        starting: what the first workers are waiting for, in words; empty once shards are dispatched.
    """

    planned: int
    done: int
    failed: int
    made: int
    left: int
    seconds: float
    workers: int
    running: int = 0
    queued: int = 0
    starting: str = ""

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second of this run so far."""
        return self.made / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at this rate; None before the first row is made."""
        return self.left / self.pairs_per_s if self.made else None


ProgressCallback = Callable[[RunProgress], None]


def run(
    spec: JobSpec,
    *,
    local: bool = False,
    extend: bool = False,
    retry: bool = False,
    max_hours: float | None = None,
    load: GeneratorFactory = load_generator,
    watch: ProgressCallback = lambda state: None,
) -> progress.Status:
    """Run a job to its end, or resume it.

    Args:
        spec: the job.
        local: use this process instead of Ray. The dataset is the same.
        extend: also plan manifest files that no plan lists yet.
        retry: also plan the failed rows once more.
        max_hours: the run ends within this time. It stops dispatching `drain_timeout_s` before the limit, or at half
            of the limit if that is later.
        load: loads the generator. Tests and benchmarks pass another one than the real models.
        watch: called about twice a second with the progress of the run.

    Returns:
        The final status of the job.

    Raises:
        StereoJobsError: see `errors` for the kinds and their exit codes.
    """
    started = time.monotonic()
    refuse_missing_gpu(spec, local=local)
    storage = open_output(spec)
    spec = spec.model_copy(update={"output": storage.uri})  # workers may have other current folders
    limit_s = None if max_hours is None else max_hours * 3600
    if limit_s is not None:
        spec = _with_drain_within(spec, limit_s)
    logs.name_job(storage.uri)
    ttl_s = spec.runtime.lease_ttl_s
    stopped = threading.Event()
    with (
        interrupts.handled(),
        Lease(open_storage(storage.uri, spec.runtime.storage, max(1.0, ttl_s / 8)), ttl_s, STORE_PATIENCE_S) as lease,
        _time_limit(stopped, started, limit_s, spec.runtime.drain_timeout_s),
    ):

        def ended() -> bool:
            return stopped.is_set() or lease.lost() is not None

        _, job, recipe = prepare(spec, storage, extend=extend, ended=ended)
        storage.hold()
        found = repair(storage, job.plans)
        if retry:
            job = plan_retry(spec, storage, job, found.objects)
        totals = audit.checked_totals(storage, job, found)
        queue = ShardQueue(job, found.objects)
        plan.refuse_changed_files(job, spec.runtime.storage, queue.generations, ended)
        current = _Run(
            spec, storage, job, queue=queue, totals=totals, metrics=JobMetrics(storage.uri, on_ray=not local)
        )
        if queue:
            with interrupts.draining(stopped):
                tell = partial(current.tell_start, watch)
                pool = open_pool(spec, recipe, load, local=local, shards=queue.shards, ended=ended, tell=tell)
                try:
                    current.dispatch_all(pool, lease, stopped, watch)
                except OutputGoneError:
                    raise
                except StereoJobsError:
                    current.add_wasted(pool.stop())
                    if not lease.taken:
                        current.save_totals()
                    raise
                finally:
                    pool.close()
        return current.finish(recipe)


def open_pool(
    spec: JobSpec,
    recipe: Recipe,
    load: GeneratorFactory,
    *,
    local: bool,
    shards: int,
    ended: Callable[[], bool],
    tell: Callable[[str], None],
) -> Pool:
    """Open workers in this process or on Ray, their models loaded. See the two classes for the arguments."""
    if local:
        return LocalPool(spec, recipe, load, tell)
    return RayPool(spec, recipe, load, shards=shards, ended=ended, tell=tell)


def _with_drain_within(spec: JobSpec, limit_s: float) -> JobSpec:
    """The spec with a drain of at most half of the run's time."""
    drain_s = min(spec.runtime.drain_timeout_s, limit_s / 2)
    return spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"drain_timeout_s": drain_s})})


class _Run:
    """One run: what it counts, and its work from the first dispatch to the markers of a finished job.

    Nothing in it outlives the process: whatever the next run needs is in the output.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        job: Job,
        *,
        queue: ShardQueue,
        totals: progress.Totals,
        metrics: JobMetrics,
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._job = job
        self._queue = queue
        self._metrics = metrics
        self._totals = totals
        self._guard = PlanGuard(storage)
        self._looked = 0.0
        """When the plans were last looked for."""
        self._pairs = queue.pairs
        self._histories: dict[ShardKey, ShardHistory] = {}
        """How shards have failed, for those that have."""
        self._started = time.monotonic()
        self._made = 0
        self._failed = 0
        self._saved = 0.0
        """When the totals were last written."""
        self._unsaved = 0
        """Committed shards that were not in them."""

    def tell_start(self, watch: ProgressCallback, starting: str) -> None:
        """Report what the first workers are waiting for; see `RunProgress.starting`."""
        watch(self._progress(None, starting))

    def dispatch_all(self, pool: Pool, lease: Lease, stopped: threading.Event, watch: ProgressCallback) -> None:
        """Dispatch shards until all are committed.

        Raises:
            InterruptedRunError: the run was told to stop, or could not renew its lease.
            OutputGoneError: the output was removed or replaced.
            OutputHeldError: another run has taken over the lease.
            StereoJobsError: the retry policy gave up a shard, or too many rows failed.
        """
        self._started = time.monotonic()  # the time to load models does not count
        while self._queue or pool.busy():
            self._stop_if_told(pool, lease, stopped)
            # Without a fresh lease another run may have begun: shards in flight may end, and no other is dispatched.
            holding = lease.fresh()
            while holding and pool.free() and (task := self._queue.pop(pool.takes)):
                pool.submit(task)
            for outcome in pool.wait(0.5):
                self._settle(outcome)
            state = self._progress(pool)
            wait_s = SAVE_TOTALS_EVERY_S if self._unsaved < SAVE_TOTALS_AFTER else SAVE_TOTALS_AT_MOST_EVERY_S
            if holding and time.monotonic() - self._saved >= wait_s:
                self.save_totals(progress.Throughput.now(state.pairs_per_s, state.eta_s, state.workers))
            self._metrics.run(state.planned, state.left, state.queued, state.running, state.workers)
            watch(state)

    def finish(self, recipe: Recipe) -> progress.Status:
        """Write the totals, the dataset card and the success markers of a job whose shards are all committed.

        Raises:
            TooManyFailuresError: more rows failed than `runtime.max_failure_ratio` allows.
        """
        status = progress.status(self._job, self._totals)
        self.save_totals()
        self._storage.replace(
            layout.CARD,
            card.render(
                recipe,
                planned=status.planned,
                made=status.succeeded,
                failed=status.failed,
                rejected=status.rejected,
                version=__version__,
            ),
        )
        ratio = self._spec.runtime.max_failure_ratio
        if status.failed > ratio * status.planned:
            raise TooManyFailuresError(
                f"{status.failed} of {status.planned} rows failed, more than runtime.max_failure_ratio = {ratio:g}; "
                f"`stereo-jobs errors {self._storage.uri}` lists them; mend what they name, then run `stereo-jobs "
                "retry-failed`"
            )
        for p in self._job.plans:
            content = f'{{"generation": {p.generation}, "pairs": {p.pairs}, "fingerprint": "{p.fingerprint}"}}\n'
            self._storage.replace(layout.success(p.generation), content.encode())
        return status

    def add_wasted(self, seconds: float) -> None:
        """Count worker time that had no result."""
        self._totals.wasted_seconds += seconds

    def save_totals(self, throughput: progress.Throughput | None = None) -> None:
        """Write the totals. If that fails, readers read more records instead. Raises OutputGoneError."""
        self._stop_if_gone()
        self._saved, self._unsaved = time.monotonic(), 0
        try:
            progress.save(self._storage, self._totals, throughput)
        except StorageUnavailableError as error:
            log.warning("%s could not be written: %s", layout.PROGRESS, error)

    def _stop_if_gone(self) -> None:
        """Raise OutputGoneError if a plan that is worked on is gone. A store that does not answer says nothing."""
        self._looked = time.monotonic()
        try:
            for generation in {*self._queue.generations, len(self._job.plans) - 1}:
                self._guard.check(self._job.plans[generation])
        except StorageUnavailableError as error:
            log.warning("%s", error)

    def _stop_if_told(self, pool: Pool, lease: Lease, stopped: threading.Event) -> None:
        lost = lease.lost()
        if lost or time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._stop_if_gone()
        if lost:
            self._drain(pool)
            kind = OutputHeldError if lease.taken else InterruptedRunError
            raise kind(f"{self._storage.uri}: {lost}; this run stops, its committed shards are kept")
        if stopped.is_set():
            self._drain(pool)
            raise InterruptedRunError(f"{self._storage.uri}: interrupted; run again to go on")

    def _drain(self, pool: Pool) -> None:
        """Let the shards in flight end for a while, then abandon the rest. An unfinished shard leaves no object."""
        timeout_s = self._spec.runtime.drain_timeout_s
        log.warning("stopping: waiting up to %g s for the shards in flight", timeout_s)
        deadline = time.monotonic() + timeout_s
        while pool.busy() and time.monotonic() < deadline:
            for outcome in pool.wait(0.2):
                self._count(outcome)

    def _settle(self, outcome: Outcome) -> None:
        """Count how a dispatch ended; then requeue the shard, retry it later, or stop the run."""
        self._count(outcome)
        event = outcome.error if outcome.lost is None else outcome.lost
        if event is None:
            self._stop_if_too_many_failed()
        else:
            self._retry(outcome.task, event)

    def _count(self, outcome: Outcome) -> None:
        self.add_wasted(outcome.wasted_s)
        record = outcome.record
        if record is None:
            return
        progress.add(self._totals, self._job, [record])
        self._unsaved += 1
        self._metrics.shard(record)
        self._made += record.succeeded + record.failed + record.rejected
        if outcome.task.plan.kind == "manifest":  # a retried row that fails again was counted before
            self._failed += record.failed

    def _retry(self, task: ShardTask, event: WorkerLost | BaseException) -> None:
        """Carry out what the retry policy decides."""
        history = self._histories.get(task.key, ShardHistory())
        attempts = self._spec.runtime.shard_attempts
        decision, self._histories[task.key] = decide(history, task, event, shard_attempts=attempts)
        if isinstance(decision, GiveUp):
            raise decision.error
        name = shard_name(task.key)
        if isinstance(decision, Requeue):
            log.warning("shard %s: %s; requeueing it", name, decision.reason, extra={"shard": name})
            self._queue.requeue(decision.task)
        else:
            log.warning("shard %s failed, retrying it later: %s", name, decision.reason, extra={"shard": name})
            self._queue.retry_later(decision.task)

    def _stop_if_too_many_failed(self) -> None:
        ratio = self._spec.runtime.max_failure_ratio
        certain = self._failed > ratio * self._job.pairs
        likely = self._made >= MIN_ROWS_FOR_RATIO and self._failed > ratio * self._made
        if certain or likely:
            raise TooManyFailuresError(
                f"{self._failed} of {self._made} rows failed so far, of {self._job.pairs} planned: more than "
                f"runtime.max_failure_ratio = {ratio:g}; `stereo-jobs errors {self._storage.uri}` lists them; "
                "successful pairs are kept; mend the cause and run again, or raise this limit to go on without them"
            )

    def _progress(self, pool: Pool | None, starting: str = "") -> RunProgress:
        """How far the run is; without a pool, its workers are starting."""
        running = pool.busy() if pool else 0
        return RunProgress(
            planned=self._job.pairs,
            done=self._totals.succeeded,
            failed=self._totals.failing,
            made=self._made,
            left=self._pairs - self._made,
            seconds=time.monotonic() - self._started,
            workers=pool.workers() if pool else 0,
            running=running,
            queued=sum(p.shards for p in self._job.plans) - len(self._totals.shards) - running,
            starting=starting,
        )


@contextmanager
def _time_limit(stopped: threading.Event, started: float, limit_s: float | None, drain_s: float) -> Iterator[None]:
    """Set `stopped` early enough that the run, its drain included, ends within `limit_s` seconds after `started`."""
    if limit_s is None:
        yield
        return
    left_s = limit_s - drain_s - (time.monotonic() - started)
    timer = threading.Timer(max(0.0, left_s), stopped.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
