"""The order in which a run dispatches its shards."""

from collections import deque
from collections.abc import Callable

from stereo_jobs.output.plan import Job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.workers.task import ShardTask


class ShardQueue:
    """Shards to dispatch: first the requeued ones, then the rest of the plans, then those to retry later.

    The shards of the plans are iterated over and never held as a list: a million shards take no memory.

    Args:
        job: the plans of the output.
        done: shards that are committed.

    Attributes:
        generations: the generations that have shards to make.
        shards: how many shards there are to make.
        pairs: how many pairs these shards have.
    """

    def __init__(self, job: Job, done: ShardSet) -> None:
        self._requeued: deque[ShardTask] = deque()
        self._later: deque[ShardTask] = deque()
        self.generations: set[int] = set()
        self.shards = self.pairs = 0
        for plan in job.plans:
            for gap in done.gaps(plan.generation, plan.shards):
                self.generations.add(plan.generation)
                self.shards += len(gap)
                self.pairs += (len(gap) - 1) * plan.shard_rows + plan.pairs_in(gap[-1])
        self._rest = (
            ShardTask(plan, shard)
            for plan in job.plans
            for gap in done.gaps(plan.generation, plan.shards)
            for shard in gap
        )
        self._next = next(self._rest, None)

    def __bool__(self) -> bool:
        return bool(self._requeued or self._next or self._later)

    def pop(self, takes: Callable[[ShardTask], bool]) -> ShardTask | None:
        """Remove and return the next task to dispatch; None where none of them can be dispatched now.

        A requeued task waits for a place other than those where it died; meanwhile, these get other tasks. So a faulty
        place is told from a faulty row soon, and the task is not lost to it again and again.

        Args:
            takes: tells whether a task can be dispatched now, see `Pool.takes`.
        """
        task = _first(self._requeued, takes)
        if task is None and self._next is not None:
            task, self._next = self._next, next(self._rest, None)
        return task or _first(self._later, takes)

    def requeue(self, task: ShardTask) -> None:
        """Dispatch a task next."""
        self._requeued.appendleft(task)

    def retry_later(self, task: ShardTask) -> None:
        """Dispatch a task after all others."""
        self._later.append(task)


def _first(tasks: deque[ShardTask], takes: Callable[[ShardTask], bool]) -> ShardTask | None:
    """Remove and return the first task that can be dispatched now."""
    task = next((task for task in tasks if takes(task)), None)
    if task is not None:
        tasks.remove(task)
    return task
