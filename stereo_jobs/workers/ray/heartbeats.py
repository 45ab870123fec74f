"""Heartbeats: which batch each worker is generating. They are kept outside of the workers, to outlive them.

`Heartbeats` runs in a Ray process of its own. `HeartbeatsClient` is the pool's side of it.
"""

import time
from types import ModuleType
from typing import Any, NamedTuple

from stereo_jobs.output.layout import ShardKey
from stereo_jobs.workers.ray.cluster import actor_lost_errors

ANSWER_TIMEOUT_S = 10.0
"""Seconds in which the heartbeats actor must answer. It does nothing but remember, so it is quick."""


class HeartbeatSummary(NamedTuple):
    """Actors, by number, that the pool has to do something about.

    Attributes:
        late: actors whose batch takes longer than `runtime.batch_timeout_s`.
        preempted: actors whose machine is about to be taken away.
    """

    late: list[int]
    preempted: list[int]


class Heartbeats:
    """The Ray actor that knows the current batch of every worker."""

    def __init__(self) -> None:
        self._batches: dict[int, tuple[ShardKey, list[int], float]] = {}
        self._preempted: set[int] = set()

    def report(self, number: int, key: ShardKey, rows: list[int]) -> None:
        """Record the batch that a worker begins. Without rows: the worker has ended the last batch of the shard."""
        if rows:
            self._batches[number] = key, rows, time.monotonic()
        else:
            self._batches.pop(number, None)

    def report_preemption(self, number: int) -> None:
        """Record that the machine of a worker is about to be taken away."""
        self._preempted.add(number)

    def take_batch(self, number: int) -> tuple[ShardKey, list[int]] | None:
        """Return the batch that a lost worker was generating, and forget it. None if it was not generating."""
        key, rows, _ = self._batches.pop(number, (None, [], 0.0))
        return (key, rows) if key else None

    def summary(self, batch_timeout_s: float) -> HeartbeatSummary:
        """Return the workers whose batch takes too long, and those about to be preempted."""
        oldest = time.monotonic() - batch_timeout_s
        late = [number for number, (_, _, since) in self._batches.items() if since < oldest]
        return HeartbeatSummary(late, sorted(self._preempted))


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

    def take_batch(self, number: int) -> tuple[ShardKey | None, list[int]]:
        """Ask which batch a lost actor was generating: its shard and positions of rows; (None, []) if not known."""
        answer: tuple[ShardKey, list[int]] | None = self._ask(self.actor.take_batch.remote(number))
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
