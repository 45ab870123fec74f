"""The run: make the plan if there is none, see what is done, deal the rest, mark the end.

Everything a run knows is in the output: killed at any moment, the next run goes on from there.
"""

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stereo_jobs import logs
from stereo_jobs.data import card
from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import (
    InterruptedRunError,
    OutputHeldError,
    StereoJobsError,
    StorageUnavailableError,
    TooManyFailuresError,
    hide_passwords,
)
from stereo_jobs.output import layout, plan, progress
from stereo_jobs.output.commits import repair
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.lease import Lease
from stereo_jobs.output.plan import Job
from stereo_jobs.run.prepare import open_output, plan_retry, prepare
from stereo_jobs.run.queue import ShardQueue
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.version import __version__
from stereo_jobs.workers.local_pool import LocalPool
from stereo_jobs.workers.prometheus import Metrics
from stereo_jobs.workers.ray.pool import RayPool
from stereo_jobs.workers.task import Outcome, Pool, ShardTask, WorkerLost
from stereo_jobs.workers.worker import STORE_PATIENCE_S, GeneratorFactory, load_generator

log = logging.getLogger(__name__)

ROLL_UP_EVERY_S = 10.0
MAX_DEATHS = 10
"""Workers that one shard may lose while none of its rows can be blamed."""
SURE_AFTER = 100
"""Rows after which the share of failures is believed before all rows are done."""


@dataclass(frozen=True)
class RunProgress:
    """What the live display shows."""

    planned: int
    done: int
    failed: int
    made: int
    left: int
    seconds: float
    workers: int
    running: int = 0
    queued: int = 0
    """Shards under way, and shards that wait."""

    @property
    def pairs_per_s(self) -> float:
        """Of this run."""
        return self.made / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at this rate."""
        return self.left / self.pairs_per_s if self.made else None


Watch = Callable[[RunProgress], None]


@dataclass
class _Run:
    """The state of one run; all of it can be lost."""

    spec: JobSpec
    storage: Storage
    job: Job
    sums: progress.Totals
    queue: ShardQueue
    pairs: int
    metrics: Metrics
    started: float = field(default_factory=time.monotonic)
    made: int = 0
    failed: int = 0
    tries: dict[ShardKey, int] = field(default_factory=dict)
    deaths: dict[ShardKey, int] = field(default_factory=dict)
    suspects: dict[ShardKey, list[WorkerLost]] = field(default_factory=dict)
    rolled_up: float = 0.0


def run(
    spec: JobSpec,
    *,
    local: bool = False,
    extend: bool = False,
    retry: bool = False,
    max_hours: float | None = None,
    load: GeneratorFactory = load_generator,
    watch: Watch = lambda tick: None,
) -> progress.Status:
    """Run a job to its end, or on from where it stopped.

    Args:
        spec: the job.
        local: in this process instead of on Ray; the same dataset.
        extend: also plan manifest files that are new.
        retry: also plan the failed rows again.
        max_hours: the run has ended by then: it stops dealing `drain_timeout_s` before, or at half of the time.
        load: loads the generator; another one than the real models is for tests and benchmarks.
        watch: told how far it is, about twice a second.

    Raises:
        StereoJobsError: see `errors` for kinds and exit codes.
    """
    started = time.monotonic()
    storage = open_output(spec)
    spec = spec.model_copy(update={"output": storage.uri})  # workers may be in other folders
    limit_s = None if max_hours is None else max_hours * 3600
    if limit_s is not None:  # of which the drain is a part
        drain_s = min(spec.runtime.drain_timeout_s, limit_s / 2)
        runtime = spec.runtime.model_copy(update={"drain_timeout_s": drain_s})
        spec = spec.model_copy(update={"runtime": runtime})
    logs.name_job(storage.uri)
    ttl_s = spec.runtime.lease_ttl_s
    with (
        Lease(open_storage(storage.uri, spec.runtime.storage, max(1.0, ttl_s / 8)), ttl_s, STORE_PATIENCE_S) as lease,
        _signals() as stopped,
        _time_limit(stopped, started, limit_s, spec.runtime.drain_timeout_s),
    ):

        def ended() -> bool:
            return stopped.is_set() or lease.lost() is not None

        _, job, recipe = prepare(spec, storage, extend=extend)
        if retry:
            job = plan_retry(spec, storage, job)
        done = repair(storage, job.plans)
        queue = ShardQueue(job, done)
        plan.refuse_changed_files(job, spec.runtime.storage, queue.generations)
        state = _Run(
            spec=spec,
            storage=storage,
            job=job,
            sums=progress.totals(storage, job),
            queue=queue,
            pairs=queue.pairs,
            metrics=Metrics(storage.uri, on_ray=not local),
        )
        if queue:
            pool = open_pool(spec, recipe, load, local=local, shards=queue.shards, ended=ended)
            try:
                _deal(state, pool, lease, stopped, watch)
            except StereoJobsError:
                state.sums.wasted_seconds += pool.stop()
                if not lease.taken:
                    _save(state)
                raise
            finally:
                pool.close()
        return _finish(state, recipe)


def open_pool(
    spec: JobSpec, recipe: Recipe, load: GeneratorFactory, *, local: bool, shards: int, ended: Callable[[], bool]
) -> Pool:
    """Workers with their models loaded, in this process or on Ray. See the classes for the arguments."""
    return LocalPool(spec, recipe, load) if local else RayPool(spec, recipe, load, shards=shards, ended=ended)


def _deal(state: _Run, pool: Pool, lease: Lease, stopped: threading.Event, watch: Watch) -> None:
    """Hand out shards until none is left."""
    state.started = time.monotonic()  # loading models does not count as speed
    while state.queue or pool.busy():
        if lost := lease.lost():
            _drain(state, pool)
            kind = OutputHeldError if lease.taken else InterruptedRunError
            raise kind(f"{state.storage.uri}: {lost}; this run stops, what it made stays valid")
        if stopped.is_set():
            _drain(state, pool)
            raise InterruptedRunError(f"{state.storage.uri}: interrupted; run again to go on")
        # Without a fresh lease another run may be at work: what is under way may end, nothing else begins.
        holding = lease.fresh()
        while holding and state.queue and pool.free():
            pool.submit(state.queue.pop())
        for outcome in pool.wait(0.5):
            _account(state, outcome)
        tick = _tick(state, pool)
        if holding:
            _roll_up(state, tick)
        state.metrics.run(tick.planned, tick.left, tick.queued, tick.running, tick.workers)
        watch(tick)


def _count(state: _Run, outcome: Outcome) -> None:
    """Take how one deal ended into the sums."""
    state.sums.wasted_seconds += outcome.wasted_s
    if outcome.record is None:
        return
    progress.add(state.sums, state.job, [outcome.record])
    state.metrics.shard(outcome.record)
    state.made += outcome.record.succeeded + outcome.record.failed + outcome.record.rejected
    if outcome.task.plan.kind == "manifest":  # rows that fail again when retried are no news
        state.failed += outcome.record.failed


def _account(state: _Run, outcome: Outcome) -> None:
    """Take in how one deal ended: count it, deal it again, or stop the run."""
    _count(state, outcome)
    task, error = outcome.task, outcome.error
    if outcome.loss is not None:
        _requeue(state, task, outcome.loss)
    elif isinstance(error, StorageUnavailableError):
        _count_try(state, task, str(error), passing=True)
    elif isinstance(error, StereoJobsError):
        raise error
    elif error is not None:
        _count_try(state, task, hide_passwords(str(error)))
    else:
        _stop_if_too_many_failed(state)


def _requeue(state: _Run, task: ShardTask, loss: WorkerLost) -> None:
    """A worker was lost under a shard: whether the shard or one of its rows is at fault, and what follows."""
    if loss.blame == "shard":
        _count_try(state, task, loss.reason)
        return
    if loss.blame == "nobody":
        log.warning("shard %s: %s; dealing it again", task.key, loss.reason)
        state.queue.again(task)
        return
    if not loss.batch:
        state.deaths[task.key] = state.deaths.get(task.key, 0) + 1
        if state.deaths[task.key] >= MAX_DEATHS:
            raise StereoJobsError(
                f"shard {task.key} lost {MAX_DEATHS} workers that were not generating any row; look at their "
                "memory: is the host's enough for one shard of runtime.shard_rows?"
            )
    seen = state.suspects.setdefault(task.key, [])
    guilty = frozenset(loss.batch) if _is_guilty(loss, seen) else frozenset()
    seen.append(loss)
    log.warning("shard %s: %s at rows %s; dealing it again", task.key, loss.reason, list(loss.batch))
    state.queue.again(
        dataclasses.replace(
            task,
            one_by_one=task.one_by_one or bool(loss.batch),
            quarantined=task.quarantined | guilty,
            avoid=task.avoid | {loss.place},
        )
    )


def _is_guilty(loss: WorkerLost, seen: list[WorkerLost]) -> bool:
    """Whether a lone row is to blame: it was named before, at another place unless there is only this one."""
    before = [other for other in seen if set(loss.batch) <= set(other.batch)]
    elsewhere = any(other.place != loss.place for other in before)
    return len(loss.batch) == 1 and bool(before) and (elsewhere or loss.alone or len(before) > 1)


def _count_try(state: _Run, task: ShardTask, reason: str, passing: bool = False) -> None:
    """Deal a shard again that failed by itself, unless it has had its tries."""
    tries = state.tries[task.key] = state.tries.get(task.key, 0) + 1
    if tries >= state.spec.runtime.shard_attempts:
        kind = InterruptedRunError if passing else StereoJobsError
        raise kind(f"shard {task.key} failed {tries} times, last: {reason}")
    log.warning("shard %s failed, dealing it again: %s", task.key, reason)
    state.queue.later(task)


def _stop_if_too_many_failed(state: _Run) -> None:
    ratio = state.spec.runtime.max_failure_ratio
    certain = state.failed > ratio * state.job.pairs
    likely = state.made >= SURE_AFTER and state.failed > ratio * state.made
    if certain or likely:
        raise TooManyFailuresError(
            f"{state.failed} of {state.made} rows failed so far, of {state.job.pairs} planned: more than "
            f"runtime.max_failure_ratio = {ratio:g}; "
            "their errors are in _job/errors/, what succeeded is kept"
        )


def _drain(state: _Run, pool: Pool) -> None:
    """Let running shards finish for a while, then leave them; nothing half made is visible either way."""
    log.warning("stopping: waiting up to %g s for running shards", state.spec.runtime.drain_timeout_s)
    deadline = time.monotonic() + state.spec.runtime.drain_timeout_s
    while pool.busy() and time.monotonic() < deadline:
        for outcome in pool.wait(0.2):
            _count(state, outcome)


def _finish(state: _Run, recipe: Recipe) -> progress.Status:
    """All shards are committed: the verdict, the card, the markers."""
    spec, storage = state.spec, state.storage
    status = progress.status(state.job, state.sums)
    _save(state)
    storage.replace(
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
    if status.failed > spec.runtime.max_failure_ratio * status.planned:
        raise TooManyFailuresError(
            f"{status.failed} of {status.planned} rows failed, more than runtime.max_failure_ratio = "
            f"{spec.runtime.max_failure_ratio:g}; look into _job/errors/, then `stereo-jobs retry-failed`"
        )
    for p in state.job.plans:
        content = f'{{"generation": {p.generation}, "pairs": {p.pairs}, "fingerprint": "{p.fingerprint}"}}\n'
        storage.replace(layout.success(p.generation), content.encode())
    return status


def _roll_up(state: _Run, tick: RunProgress) -> None:
    now = time.monotonic()
    if now - state.rolled_up >= ROLL_UP_EVERY_S:
        state.rolled_up = now
        _save(state, progress.Throughput.now(tick.pairs_per_s, tick.eta_s, tick.workers))


def _save(state: _Run, pace: progress.Throughput | None = None) -> None:
    """Write the roll-up; without it, readers look at more records."""
    try:
        progress.save(state.storage, state.sums, pace)
    except StorageUnavailableError as error:
        log.warning("the roll-up could not be written: %s", error)


def _tick(state: _Run, pool: Pool) -> RunProgress:
    return RunProgress(
        planned=state.job.pairs,
        done=state.sums.succeeded,
        failed=state.sums.failing,
        made=state.made,
        left=state.pairs - state.made,
        seconds=time.monotonic() - state.started,
        workers=pool.workers(),
        running=pool.busy(),
        queued=sum(p.shards for p in state.job.plans) - len(state.sums.shards) - pool.busy(),
    )


@contextmanager
def _time_limit(stopped: threading.Event, started: float, limit_s: float | None, drain_s: float) -> Iterator[None]:
    """Set `stopped` early enough for a run that was `started` then to end, its drain included, within `limit_s`."""
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


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second SIGINT ends the process at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: object) -> None:
        if stopped.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
