"""Heartbeats: which rows each worker is generating or encoding. They are kept outside of the workers, to outlive them.

`Heartbeats` runs in a Ray process of its own. `HeartbeatsClient` is the pool's side of it.
"""

import math
import time
from types import ModuleType
from typing import Any, NamedTuple

from stereo_jobs.output.layout import ShardKey
from stereo_jobs.workers.ray.cluster import actor_lost_errors
from stereo_jobs.workers.task import GENERATE

ANSWER_TIMEOUT_S = 10.0
"""Seconds in which the heartbeats actor must answer. It does nothing but remember, so it is quick."""


class HeartbeatSummary(NamedTuple):
    """Actors, by number, that the pool has to do something about.

    Attributes:
        late: actors whose batch takes longer than `runtime.batch_timeout_s`, or whose scoring and encoding of a row
            takes twice as long: the actor itself should have given up the row by then.
        preempted: actors whose machine is about to be taken away.
    """

    late: list[int]
    preempted: list[int]


class _Work(NamedTuple):
    """Rows that a worker works on, and since when."""

    key: ShardKey
    rows: list[int]
    since: float


class Heartbeats:
    """The Ray actor that knows what every worker is working on: the current batch, and pairs that are encoded."""

    def __init__(self) -> None:
        self._works: dict[int, dict[str, _Work]] = {}
        self._preempted: set[int] = set()

    def report(self, number: int, key: ShardKey, rows: list[int], work: str = GENERATE) -> None:
        """Record the rows that a worker begins a work with. Without rows: the work of this name is done."""
        works = self._works.setdefault(number, {})
        if rows:
            works[work] = _Work(key, rows, time.monotonic())
        else:
            works.pop(work, None)

    def report_preemption(self, number: int) -> None:
        """Record that the machine of a worker is about to be taken away."""
        self._preempted.add(number)

    def take_batch(self, number: int, batch_timeout_s: float = math.inf) -> tuple[ShardKey, list[int]] | None:
        """Return the rows that a lost worker was working on, and forget them. None if it was working on none.

        Where it did several things at a time, what was late comes first, then the batch in its model.
        """
        works = self._works.pop(number, {})
        if not works:
            return None
        chosen = min(works, key=lambda work: (not _late(work, works[work], batch_timeout_s), work != GENERATE))
        if chosen == GENERATE or _late(chosen, works[chosen], batch_timeout_s):
            return works[chosen].key, works[chosen].rows
        key = works[chosen].key  # any pair of this shard that was being encoded
        return key, sorted(row for work in works.values() if work.key == key for row in work.rows)

    def summary(self, batch_timeout_s: float) -> HeartbeatSummary:
        """Return the workers whose batch or encoding takes too long, and those about to be preempted."""
        late = [
            number
            for number, works in self._works.items()
            if any(_late(name, work, batch_timeout_s) for name, work in works.items())
        ]
        return HeartbeatSummary(late, sorted(self._preempted))


def _late(name: str, work: _Work, batch_timeout_s: float) -> bool:
    limit_s = batch_timeout_s if name == GENERATE else 2 * batch_timeout_s
    return time.monotonic() - work.since > limit_s


class HeartbeatsClient:
    """Starts the heartbeats actor on this node, asks it, and notices when it is lost.

    Args:
        ray: Ray's module, connected.

    Attributes:
        actor: Ray's handle of the heartbeats actor.
        lost: the actor is lost. `start` begins another one, which knows of no batch yet.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._lost_errors = actor_lost_errors()
        self.start()

    def start(self) -> None:
        """Start a heartbeats actor.

        It is not restartable: Ray's memory monitor ends restartable actors first, however little memory they use.
        """
        own_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        actor = self._ray.remote(Heartbeats).options(num_cpus=0, max_restarts=0, scheduling_strategy=own_node)
        self.actor = actor.remote()
        self.lost = False

    def kill(self) -> None:
        """End the heartbeats actor."""
        self._ray.kill(self.actor)

    def summary(self, batch_timeout_s: float) -> HeartbeatSummary:
        """Ask which actors are late or preempted; none if there is no answer."""
        answer: HeartbeatSummary | None = self._ask(self.actor.summary.remote(batch_timeout_s))
        return answer or HeartbeatSummary([], [])

    def take_batch(self, number: int, batch_timeout_s: float) -> tuple[ShardKey | None, list[int]]:
        """Ask which rows a lost actor was working on: their shard and positions; (None, []) if not known."""
        answer: tuple[ShardKey, list[int]] | None = self._ask(self.actor.take_batch.remote(number, batch_timeout_s))
        return answer or (None, [])

    def _ask(self, answer: Any) -> Any:
        """Wait for an answer; None if it does not come in time, or the actor is lost."""
        try:
            return self._ray.get(answer, timeout=ANSWER_TIMEOUT_S)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except self._lost_errors:
            self.lost = True
            return None
