"""What the driver and its workers say to each other: tasks out, outcomes back.

Images pass neither through the driver nor through Ray's object store, only task numbers and records do.
"""

import dataclasses
import time
from typing import Any, Literal, NamedTuple, Protocol

from stereo_jobs.output import layout
from stereo_jobs.output.plan import Plan
from stereo_jobs.records import ShardRecord

IN_FLIGHT = 2
"""Shards per worker: one generates while the other reads or uploads."""
FaultScope = Literal["nobody", "rows", "shard"]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One deal of one shard.

    Attributes:
        plan: its generation.
        shard: its number.
        one_by_one: after a worker died on this shard: one row a batch, so that the row at fault shows.
        quarantined: positions of rows that killed two workers; they become errors ungenerated.
        avoid: places where workers died on it; another one is taken if there is one.
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
    blame: FaultScope
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
    loss: WorkerLost | None = None
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


class InFlight:
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
