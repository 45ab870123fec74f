"""The order in which a run deals its shards."""

from collections import deque
from collections.abc import Iterator

from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.workers.task import ShardTask


class ShardQueue:
    """Shards to deal: those that came back, then the rest of the plans, then those that failed.

    The rest is never listed, only walked through: a million shards take no memory.
    """

    def __init__(self, job: Job, done: ShardSet) -> None:
        self._again: deque[ShardTask] = deque()
        self._later: deque[ShardTask] = deque()
        self.generations: set[int] = set()
        self.shards = self.pairs = 0
        for generation, shard in _open(job, done):
            self.generations.add(generation)
            self.shards += 1
            self.pairs += job.plans[generation].pairs_in(shard)
        self._rest = (ShardTask(job.plans[generation], shard) for generation, shard in _open(job, done))
        self._next = next(self._rest, None)

    def __bool__(self) -> bool:
        return bool(self._again or self._next or self._later)

    def pop(self) -> ShardTask:
        """The one to deal now."""
        if self._again:
            return self._again.popleft()
        if self._next is None:
            return self._later.popleft()
        task, self._next = self._next, next(self._rest, None)
        return task

    def again(self, task: ShardTask) -> None:
        """Deal it next: its worker died, which was not its fault, or it must be seen soon whether it was."""
        self._again.appendleft(task)

    def later(self, task: ShardTask) -> None:
        """Deal it after all others: whatever failed may pass meanwhile."""
        self._later.append(task)


def _open(job: Job, done: ShardSet) -> Iterator[ShardKey]:
    return (key for key in job.shard_keys() if key not in done)
