"""The retry policy: what happens to a shard whose dispatch did not commit it.

Pure: no queue, no log, no I/O. `decide` maps what is known of a shard, and how its dispatch ended, to a decision. The
driver carries the decision out.

A worker that dies during a batch may have been killed by one of its rows. The shard is then retried with one row per
batch. A row that is alone in its batch when a second worker dies is quarantined: it is recorded as an error
(`KilledWorker`), and the rest of the shard is made. Two deaths at one place may be the fault of its GPU, so the second
one counts only at another place, or if there is no other place, or if it is in fact the third.
"""

from dataclasses import dataclass, replace

from stereo_jobs.errors import InterruptedRunError, StereoJobsError, StorageUnavailableError, hide_passwords
from stereo_jobs.output.layout import shard_name
from stereo_jobs.workers.task import ShardTask, WorkerLost

MAX_LOST_BETWEEN_BATCHES = 10
"""Workers that one shard may lose while no row was being generated, before the run ends."""


@dataclass(frozen=True)
class ShardHistory:
    """How the earlier dispatches of one shard ended in this run.

    Attributes:
        failures: dispatches that failed through the shard itself: by an error, or by taking too long.
        lost_between_batches: workers lost while no row was being generated.
        lost_in_batches: the workers lost during a batch.
    """

    failures: int = 0
    lost_between_batches: int = 0
    lost_in_batches: tuple[WorkerLost, ...] = ()


@dataclass(frozen=True)
class Requeue:
    """Dispatch the task next.

    Attributes:
        task: what to dispatch; it may differ from what was dispatched before.
        reason: why, for the log.
    """

    task: ShardTask
    reason: str


@dataclass(frozen=True)
class RetryLater:
    """Dispatch the task after all others: what went wrong may pass meanwhile.

    Attributes:
        task: what to dispatch.
        reason: why, for the log.
    """

    task: ShardTask
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """End the run.

    Attributes:
        error: what the run raises.
    """

    error: StereoJobsError


Decision = Requeue | RetryLater | GiveUp


def decide(
    history: ShardHistory, task: ShardTask, event: WorkerLost | BaseException, *, shard_attempts: int
) -> tuple[Decision, ShardHistory]:
    """Decide what follows a dispatch that did not commit its shard.

    Args:
        history: how earlier dispatches of the same shard ended.
        task: what was dispatched.
        event: how the dispatch ended: its worker was lost, or raised an error.
        shard_attempts: how often a shard may fail through itself (`runtime.shard_attempts`).

    Returns:
        The decision, and the history with this dispatch in it.
    """
    if isinstance(event, WorkerLost):
        if event.scope == "none":
            return Requeue(task, event.reason), history
        if event.scope == "batch":
            return _after_a_death(history, task, event)
        return _after_a_failure(history, task, event.reason, shard_attempts, StereoJobsError)
    if isinstance(event, StorageUnavailableError):
        return _after_a_failure(history, task, str(event), shard_attempts, InterruptedRunError)
    if isinstance(event, StereoJobsError):
        return GiveUp(event), history
    return _after_a_failure(history, task, hide_passwords(str(event)), shard_attempts, StereoJobsError)


def _after_a_failure(
    history: ShardHistory, task: ShardTask, reason: str, shard_attempts: int, final_error: type[StereoJobsError]
) -> tuple[Decision, ShardHistory]:
    """Retry a shard that failed through itself, up to `shard_attempts` dispatches."""
    history = replace(history, failures=history.failures + 1)
    if history.failures < shard_attempts:
        return RetryLater(task, reason), history
    message = f"shard {shard_name(task.key)} failed {history.failures} times, last: {reason}"
    return GiveUp(final_error(message)), history


def _after_a_death(history: ShardHistory, task: ShardTask, lost: WorkerLost) -> tuple[Decision, ShardHistory]:
    """Requeue a shard that may have killed its worker: elsewhere, and without a row that is known to kill."""
    if not lost.batch:
        history = replace(history, lost_between_batches=history.lost_between_batches + 1)
        if history.lost_between_batches >= MAX_LOST_BETWEEN_BATCHES:
            return GiveUp(_lost_too_many(task)), history
        return Requeue(replace(task, avoid=task.avoid | {lost.place}), lost.reason), history
    killers = frozenset(lost.batch) if _is_killer(lost, history.lost_in_batches) else frozenset()
    again = replace(task, one_by_one=True, quarantined=task.quarantined | killers, avoid=task.avoid | {lost.place})
    history = replace(history, lost_in_batches=(*history.lost_in_batches, lost))
    return Requeue(again, f"{lost.reason} at rows {list(lost.batch)}"), history


def _is_killer(lost: WorkerLost, earlier: tuple[WorkerLost, ...]) -> bool:
    """Whether the only row of a batch killed its worker: workers died on it before, and not through their place."""
    if len(lost.batch) > 1:
        return False
    before = [other for other in earlier if set(lost.batch) <= set(other.batch)]
    elsewhere = any(other.place != lost.place for other in before)
    return bool(before) and (elsewhere or lost.only_place or len(before) > 1)


def _lost_too_many(task: ShardTask) -> StereoJobsError:
    return StereoJobsError(
        f"shard {shard_name(task.key)} lost {MAX_LOST_BETWEEN_BATCHES} workers that were not generating any row; "
        "the host may have too little memory for the shards in flight: use hosts with more memory, fewer actors per "
        "host, or a smaller runtime.shard_rows for a new output"
    )
