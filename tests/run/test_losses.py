"""What a run does about lost workers and failed shards, with a pool that follows a script."""

import signal
from collections.abc import Callable

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import InterruptedRunError, StereoJobsError
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.output import progress
from stereo_jobs.output.plan import load_job
from stereo_jobs.run import driver
from stereo_jobs.workers.task import Outcome, ShardTask, WorkerLost
from stereo_jobs.workers.worker import ShardWorker
from tests import standin
from tests.datasets import verdict

NOT_YET = WorkerLost("not yet", "none")


class Script:
    """A pool of one task at a time.

    `answer` says how a dispatch ends. NOT_YET keeps it in flight. None makes the shard.
    """

    def __init__(self, spec, answer: Callable[[ShardTask, int], WorkerLost | BaseException | None]) -> None:
        self.dispatched: list[ShardTask] = []
        self._answer = answer
        self._worker = ShardWorker(spec, resolve_recipe(spec.recipe), standin.load)
        self._task: ShardTask | None = None

    def free(self) -> int:
        return 0 if self._task else 1

    def busy(self) -> int:
        return 1 - self.free()

    def workers(self) -> int:
        return 1

    def takes(self, task: ShardTask) -> bool:
        return True

    def submit(self, task: ShardTask) -> None:
        self._task = task
        self.dispatched.append(task)

    def wait(self, timeout_s: float) -> list[Outcome]:
        task, self._task = self._task, None
        answer = self._answer(task, sum(other.key == task.key for other in self.dispatched))
        if answer is NOT_YET:
            self._task = task
            return []
        if answer is None:
            return [Outcome(task, self._worker.run(task))]
        kind = "lost" if isinstance(answer, WorkerLost) else "error"
        return [Outcome(task, **{kind: answer}, wasted_s=1.5)]

    def stop(self) -> float:
        return 0.25

    def close(self) -> None:
        pass


@pytest.fixture
def play(make_spec, monkeypatch):
    """Runs a job of three shards by a script; returns its final status and the dispatches of shard 1."""

    def run(answer, **runtime):
        spec = make_spec(max_failure_ratio=0.5, **runtime)
        pools = []

        def opened(spec, *args, **kwargs):
            pools.append(Script(spec, answer))
            return pools[0]

        monkeypatch.setattr(driver, "open_pool", opened)
        status = driver.run(spec, load=standin.load)
        assert verdict(spec).ok
        return status, [task for task in pools[0].dispatched if task.key == (0, 1)]

    return run


def died(*places: str, batch=(1,), scope="batch", only_place=False):
    """Shard 1 is lost at these places, one after the other."""

    def answer(task, time):
        if task.key == (0, 1) and time <= len(places):
            return WorkerLost("its process died", scope, batch, places[time - 1], only_place)
        return None

    return answer


def test_a_row_that_kills_at_two_places_is_quarantined(play):
    status, dispatches = play(died("a", "b"))
    assert status.failed == 1
    assert [task.one_by_one for task in dispatches] == [False, True, True]
    assert dispatches[1].avoid == {"a"}
    assert dispatches[2].quarantined == {1}


def test_two_deaths_on_one_gpu_quarantine_no_row(play):
    status, _ = play(died("a", "a"))
    assert status.failed == 0


def test_without_another_place_the_second_death_counts(play):
    status, _ = play(died("a", "a", only_place=True))
    assert status.failed == 1


def test_the_third_death_at_one_place_quarantines_the_row(play):
    status, _ = play(died("a", "a", "a"))
    assert status.failed == 1


def test_a_batch_of_several_rows_is_retried_one_by_one(play):
    status, dispatches = play(died("a", "b", batch=(0, 1)))
    assert status.failed == 0
    assert dispatches[1].one_by_one


def test_lost_machines_count_against_no_shard(play):
    status, dispatches = play(died(*"abcdefghijklmno", scope="none"), shard_attempts=1)
    assert status.failed == 0
    assert not any(task.one_by_one or task.quarantined for task in dispatches)
    assert status.wasted_seconds == pytest.approx(15 * 1.5)


def test_a_shard_that_takes_too_long_is_retried(play):
    assert play(died("a", "b", scope="shard"), shard_attempts=3)[0].complete


def test_a_shard_that_always_takes_too_long_ends_the_run(play):
    with pytest.raises(StereoJobsError, match="failed 2 times, last: its process died"):
        play(died("a", "b", scope="shard"), shard_attempts=2)


def wasted_seconds(folder) -> float:
    """As the next run, or `status`, finds it."""
    storage = open_storage(str(folder / "out"))
    return progress.totals(storage, load_job(storage)).wasted_seconds


def test_worker_time_lost_while_draining_is_counted(play, tmp_path):
    asked = []

    def answer(task, time):
        asked.append(task)
        if len(asked) == 1:
            signal.raise_signal(signal.SIGTERM)
            return NOT_YET
        return WorkerLost("its process died", "batch", (1,), "a")

    with pytest.raises(InterruptedRunError, match="run again to go on"):
        play(answer)
    assert wasted_seconds(tmp_path) == pytest.approx(1.5 + 0.25)


def test_wasted_worker_time_is_kept_when_a_run_fails(play, tmp_path):
    with pytest.raises(StereoJobsError, match="failed 2 times"):
        play(died("a", "b", scope="shard"), shard_attempts=2)
    assert wasted_seconds(tmp_path) == pytest.approx(2 * 1.5 + 0.25)


def test_no_password_of_an_error_is_logged(play, caplog):
    def answer(task, time):
        return RuntimeError("http://me:hush@proxy: refused") if time == 1 else None

    assert play(answer)[0].complete
    assert "***@proxy: refused" in caplog.text
    assert "hush" not in caplog.text
