"""The one worker of a run in this process (`--local`)."""

import time
import weakref
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures

from typing_extensions import override

from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.task import IN_FLIGHT, InFlight, Outcome, Pool, ShardTask
from stereo_jobs.workers.worker import GeneratorFactory, ShardWorker

_closed: "weakref.WeakSet[LocalPool]" = weakref.WeakSet()
"""Pools that were closed."""

IDLE_S = 0.1
"""Seconds that `wait` sleeps while no task is in flight."""


class LocalPool(Pool):
    """One worker in this process, with a thread for each shard in flight.

    Args:
        spec: the job; `runtime` says on which device.
        recipe: the resolved recipe.
        load: loads the generator.
        tell: called with what is being loaded, in words.
    """

    def __init__(
        self, spec: JobSpec, recipe: Recipe, load: GeneratorFactory, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        tell(f"loading models: {recipe.models.names}")
        self._worker = ShardWorker(spec, recipe, load)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard")
        self._tasks: dict[Future[ShardRecord], ShardTask] = {}
        self._in_flight = InFlight()

    @override
    def free(self) -> int:
        return IN_FLIGHT - len(self._tasks)

    @override
    def busy(self) -> int:
        return len(self._tasks)

    @override
    def workers(self) -> int:
        return 1

    @override
    def takes(self, task: ShardTask) -> bool:
        return True

    @override
    def submit(self, task: ShardTask) -> None:
        future = self._threads.submit(self._worker.run, task)
        self._tasks[future] = task
        self._in_flight.add(future)

    @override
    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._tasks:
            time.sleep(min(timeout_s, IDLE_S))
        done, _ = wait_futures(self._tasks, timeout_s, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            task, error, seconds = self._tasks.pop(future), future.exception(), self._in_flight.remove(future)
            outcomes.append(Outcome(task, error=error, wasted_s=seconds) if error else Outcome(task, future.result()))
        return outcomes

    @override
    def stop(self) -> float:
        self._worker.stop.set()
        return self._in_flight.seconds()

    @override
    def close(self) -> None:
        # Threads cannot be killed: they end before their next batch.
        self.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        _closed.add(self)


def is_busy(patience_s: float) -> bool:
    """Return whether a closed pool is still in the middle of a batch after some seconds; its threads go on with it."""
    running = [future for pool in _closed for future in pool._tasks]
    return bool(wait_futures(running, patience_s).not_done)
