"""The retry policy as a table: what is known of a shard, how its dispatch ended -> what happens to it."""

from dataclasses import replace

import pytest

from stereo_jobs.errors import DeviceLostError, InterruptedRunError, StereoJobsError, StorageUnavailableError
from stereo_jobs.output.plan import Plan
from stereo_jobs.run import retry
from stereo_jobs.run.retry import GiveUp, Requeue, RetryLater, ShardHistory, decide
from stereo_jobs.workers.task import ShardTask, WorkerLost

TASK = ShardTask(Plan.model_construct(generation=0), 1)
AFTER_A = replace(TASK, one_by_one=True, avoid=frozenset("a"))
"""The task after a worker has died at place a."""
NEW = ShardHistory()


def died(place: str, *rows: int, only_place: bool = False) -> WorkerLost:
    """A worker died while it generated these rows."""
    return WorkerLost("its process died", "batch", rows, place, only_place)


def after(*lost: WorkerLost) -> ShardHistory:
    return ShardHistory(lost_in_batches=lost)


@pytest.mark.parametrize(
    ("history", "event", "quarantined"),
    [
        pytest.param(NEW, died("a", 1), set(), id="one death proves nothing"),
        pytest.param(NEW, died("a", 1, only_place=True), set(), id="one death at the only place neither"),
        pytest.param(after(died("a", 1)), died("b", 1), {1}, id="a second death at another place"),
        pytest.param(after(died("a", 1)), died("a", 1), set(), id="a second death at the same place"),
        pytest.param(after(died("a", 1)), died("a", 1, only_place=True), {1}, id="there is no other place"),
        pytest.param(after(died("a", 1), died("a", 1)), died("a", 1), {1}, id="a third death at the same place"),
        pytest.param(after(died("a", 0, 1)), died("b", 1), {1}, id="it was in the batch of the first death"),
        pytest.param(after(died("a", 0, 1)), died("b", 0, 1), set(), id="which of the two rows is not known"),
        pytest.param(after(died("a", 0)), died("b", 1), set(), id="the first death was of another row"),
        pytest.param(after(died("a", 0), died("b", 2, 3)), died("c", 1), set(), id="both deaths were of other rows"),
    ],
)
def test_death_in_a_batch(history, event, quarantined):
    decision, known = decide(history, AFTER_A, event, shard_attempts=1)
    avoid = frozenset({"a", event.place})
    task = replace(AFTER_A, quarantined=frozenset(quarantined), avoid=avoid)
    assert decision == Requeue(task, f"its process died at rows {list(event.batch)}")
    assert known == replace(history, lost_in_batches=(*history.lost_in_batches, event))


def test_the_first_death_in_a_batch_leads_to_one_row_a_batch():
    decision, _ = decide(NEW, TASK, died("a", 0, 1), shard_attempts=1)
    assert decision == Requeue(AFTER_A, "its process died at rows [0, 1]")


def test_rows_in_quarantine_stay_there():
    before = replace(AFTER_A, quarantined=frozenset({7}))
    decision, _ = decide(after(died("a", 1)), before, died("b", 1), shard_attempts=1)
    assert decision.task.quarantined == {1, 7}


def test_deaths_between_batches_are_limited():
    history, task = NEW, TASK
    for count in range(1, retry.MAX_LOST_BETWEEN_BATCHES):
        decision, history = decide(history, task, died(f"{count}"), shard_attempts=1)
        assert decision == Requeue(replace(task, avoid=task.avoid | {f"{count}"}), "its process died")
        task = decision.task
        assert not task.one_by_one, "no row is suspected"
    decision, history = decide(history, task, died("a"), shard_attempts=1)
    assert isinstance(decision, GiveUp)
    message = "shard 0000-0000001 lost 10 workers that were not generating any row"
    assert type(decision.error) is StereoJobsError and str(decision.error).startswith(message)


def test_a_death_between_batches_says_nothing_about_a_row():
    _, history = decide(NEW, TASK, died("a"), shard_attempts=1)
    decision, _ = decide(history, TASK, died("b", 1), shard_attempts=1)
    assert not decision.task.quarantined


BUSY = ShardHistory(failures=5, lost_between_batches=9, lost_in_batches=(died("a", 1),) * 3)


@pytest.mark.parametrize("history", [NEW, BUSY])
@pytest.mark.parametrize("task", [TASK, replace(AFTER_A, quarantined=frozenset({3}))])
def test_a_lost_machine_counts_against_no_shard(history, task):
    lost = WorkerLost("its node is gone", "none", (1,), "a")
    assert decide(history, task, lost, shard_attempts=1) == (Requeue(task, "its node is gone"), history)


SLOW = WorkerLost("the shard took more than 2 s", "shard", (1,), "a")
AWAY = StorageUnavailableError("s3://x: SlowDown")
BUG = RuntimeError("http://me:hush@proxy: refused")


@pytest.mark.parametrize(
    ("event", "reason", "final_error"),
    [
        pytest.param(SLOW, "the shard took more than 2 s", StereoJobsError, id="too long as a whole"),
        pytest.param(AWAY, "s3://x: SlowDown", InterruptedRunError, id="the store is away"),
        pytest.param(BUG, "http://***@proxy: refused", StereoJobsError, id="an unknown error"),
    ],
)
def test_a_shard_that_fails_itself_is_retried_later_up_to_its_attempts(event, reason, final_error):
    history = NEW
    for failures in (1, 2):
        decision, history = decide(history, AFTER_A, event, shard_attempts=3)
        assert (decision, history.failures) == (RetryLater(AFTER_A, reason), failures)
    decision, history = decide(history, AFTER_A, event, shard_attempts=3)
    assert isinstance(decision, GiveUp)
    assert type(decision.error) is final_error
    assert str(decision.error) == f"shard 0000-0000001 failed 3 times, last: {reason}"


def test_failures_of_all_kinds_count_together():
    history = NEW
    for event in (SLOW, AWAY):
        _, history = decide(history, TASK, event, shard_attempts=3)
    decision, _ = decide(history, TASK, BUG, shard_attempts=3)
    assert isinstance(decision, GiveUp)


@pytest.mark.parametrize("error", [StereoJobsError("the output is full"), DeviceLostError("the GPU fails for good")])
def test_an_error_that_no_retry_can_cure_ends_the_run(error):
    decision, history = decide(NEW, TASK, error, shard_attempts=100)
    assert (decision, history) == (GiveUp(error), NEW)
