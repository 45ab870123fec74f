"""What the driver asks of its workers, and the one worker of a run in this process (`--local`).

The driver hands out tasks and collects outcomes; images pass neither through it nor through Ray's object
store, only task numbers and records do.
"""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures
from typing import Literal, NamedTuple, Protocol

from stereo_jobs.job.worker import Load, ShardTask, ShardWorker
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe

IN_FLIGHT = 2
"""Shards per worker: one generates while the other reads or uploads."""


Blame = Literal["nobody", "rows", "shard"]


class Loss(NamedTuple):
    """A worker that was lost while a shard was under way.

    Attributes:
        reason: for people.
        blame: `nobody`, where a machine went away or another shard of the worker is the cause; `rows`, those of the
            batch that it was generating; `shard`, which took too long as a whole.
        batch: positions of these rows; none if the worker died while reading or writing.
        place: node and GPU of the worker.
        alone: there was no other place where the shard could have been.
    """

    reason: str
    blame: Blame
    batch: tuple[int, ...] = ()
    place: str = ""
    alone: bool = False


class Outcome(NamedTuple):
    """How one deal ended: with one of record, error and loss.

    Attributes:
        task: what was dealt.
        record: of the committed shard, if all went well.
        error: what the worker raised.
        loss: how the worker was lost.
        wasted_s: worker time that came to nothing.
    """

    task: ShardTask
    record: ShardRecord | None = None
    error: BaseException | None = None
    loss: Loss | None = None
    wasted_s: float = 0.0


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
