"""What the driver and its workers exchange: tasks one way, outcomes the other way.

Images pass neither through the driver nor through Ray's object store. Only shard numbers and records do.
"""

import dataclasses
import time
from typing import Any, Literal, NamedTuple, Protocol

from stereo_jobs.output import layout
from stereo_jobs.output.plan import Plan
from stereo_jobs.records import ShardRecord

IN_FLIGHT = 2
"""Shards that one worker has at a time: one generates while the other reads or uploads."""

GENERATE = "generate"
"""Name of the work that a worker reports for a batch in its model."""

FaultScope = Literal["none", "batch", "shard"]
"""What a lost worker says about its shard.

`none`: nothing, because its machine went away or another shard of the same worker is the cause. `batch`: a row of the
batch that was being generated may have killed it. `shard`: the shard as a whole took too long.
"""


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One dispatch of one shard.

    Attributes:
        plan: the generation that the shard belongs to.
        shard: number of the shard in its generation.
        one_by_one: generate one row per batch. Set after a worker died during a batch, to find the row at fault.
        quarantined: positions of rows that killed two workers. They are recorded as errors and not generated.
        avoid: places where workers died on this shard. Another place makes it if there is one.
    """

    plan: Plan
    shard: int
    one_by_one: bool = False
    quarantined: frozenset[int] = frozenset()
    avoid: frozenset[str] = frozenset()

    @property
    def key(self) -> layout.ShardKey:
        """Generation and shard number."""
        return self.plan.generation, self.shard


class WorkerLost(NamedTuple):
    """A worker was lost while a shard was in flight on it.

    Attributes:
        reason: what happened, for the log.
        scope: what it says about the shard.
        batch: positions of the rows that were being generated; empty while the worker was reading or writing.
        place: node and GPU of the worker.
        only_place: no other place could have taken the shard.
    """

    reason: str
    scope: FaultScope
    batch: tuple[int, ...] = ()
    place: str = ""
    only_place: bool = False


class Outcome(NamedTuple):
    """How one dispatch ended. Exactly one of `record`, `error` and `lost` is set.

    Attributes:
        task: what was dispatched.
        record: the record of the committed shard, if it was committed.
        error: what the worker raised.
        lost: how the worker was lost.
        wasted_s: seconds of worker time without a result.
    """

    task: ShardTask
    record: ShardRecord | None = None
    error: BaseException | None = None
    lost: WorkerLost | None = None
    wasted_s: float = 0.0


class Pool(Protocol):
    """Workers that make shards."""

    def free(self) -> int:
        """Return how many tasks can be submitted now."""

    def busy(self) -> int:
        """Return how many tasks are in flight."""

    def workers(self) -> int:
        """Return how many workers take tasks: their models are loaded."""

    def takes(self, task: ShardTask) -> bool:
        """Return whether a free worker is at a place that the task does not avoid, or no other place takes tasks."""

    def submit(self, task: ShardTask) -> None:
        """Give one task to a worker. Call it only while `free()` is positive."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes since the last call. Waits at most `timeout_s` seconds for the first."""

    def stop(self) -> float:
        """Abandon the tasks in flight and return the seconds of worker time that they have cost.

        A worker in this process stops before its next batch.
        """

    def close(self) -> None:
        """End the workers, whatever they are doing."""


class InFlight:
    """The tasks that one worker has, oldest first, and the time that they cost.

    The tasks of a worker share its models. Its time therefore counts once: for the oldest task.
    """

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self._since = 0.0

    def add(self, task: Any) -> None:
        """Add a task that the worker was given."""
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(task)

    def remove(self, task: Any) -> float:
        """Remove a task that has ended and return the seconds that it has cost."""
        seconds = self.seconds() if task == self.tasks[0] else 0.0
        self.tasks.remove(task)
        self._since = time.monotonic()
        return seconds

    def seconds(self) -> float:
        """Return for how long the worker has been at its oldest task."""
        return time.monotonic() - self._since if self.tasks else 0.0
