"""What the driver asks of its workers, and the one worker of a run in this process (`--local`).

The driver hands out tasks and collects outcomes; images pass neither through it nor through Ray's object
store, only task numbers and records do.
"""

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures
from typing import Any, Literal, NamedTuple, Protocol

from stereo_jobs.job.worker import Load, ShardTask, ShardWorker
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe

IN_FLIGHT = 2
"""Shards per worker: one generates while the other reads or uploads."""
IDLE_S = 0.1
"""How long to sleep where there is nothing to wait for."""

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

    def stop(self) -> float:
        """Leave what is under way, at the next batch where workers can be told; returns the worker time it has cost."""

    def close(self) -> None:
        """End the workers, whatever they are doing."""


class Hand:
    """The tasks that one worker has, oldest first. They share its models, so its time counts once: for the oldest."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self._since = 0.0

    def put(self, task: Any) -> None:
        """It has one more."""
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(task)

    def take(self, task: Any) -> float:
        """It has one less; returns the seconds that this one has cost."""
        seconds = self.seconds() if task == self.tasks[0] else 0.0
        self.tasks.remove(task)
        self._since = time.monotonic()
        return seconds

    def seconds(self) -> float:
        """Since the oldest came to be the oldest, and no other was done."""
        return time.monotonic() - self._since if self.tasks else 0.0


class LocalPool:
    """One worker in this process."""

    def __init__(self, spec: JobSpec, recipe: Recipe, load: Load) -> None:
        self._worker = ShardWorker(spec, recipe, load)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard")
        self._tasks: dict[Future[ShardRecord], ShardTask] = {}
        self._hand = Hand()

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
        future = self._threads.submit(self._worker.run, task)
        self._tasks[future] = task
        self._hand.put(future)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        if not self._tasks:
            time.sleep(min(timeout_s, IDLE_S))
        done, _ = wait_futures(self._tasks, timeout_s, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            task, error, seconds = self._tasks.pop(future), future.exception(), self._hand.take(future)
            outcomes.append(Outcome(task, error=error, wasted_s=seconds) if error else Outcome(task, future.result()))
        return outcomes

    def stop(self) -> float:
        """See Pool."""
        self._worker.stop.set()
        return self._hand.seconds()

    def close(self) -> None:
        """See Pool. Threads cannot be killed: they leave at the next batch."""
        self.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
