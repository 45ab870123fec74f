"""The one worker of a run in this process (`--local`)."""

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures

from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.task import IN_FLIGHT, InFlight, Outcome, ShardTask
from stereo_jobs.workers.worker import GeneratorFactory, ShardWorker

IDLE_S = 0.1
"""How long to sleep where there is nothing to wait for."""


class LocalPool:
    """One worker in this process."""

    def __init__(self, spec: JobSpec, recipe: Recipe, load: GeneratorFactory) -> None:
        self._worker = ShardWorker(spec, recipe, load)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard")
        self._tasks: dict[Future[ShardRecord], ShardTask] = {}
        self._in_flight = InFlight()

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
        self._in_flight.put(future)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See Pool."""
        if not self._tasks:
            time.sleep(min(timeout_s, IDLE_S))
        done, _ = wait_futures(self._tasks, timeout_s, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            task, error, seconds = self._tasks.pop(future), future.exception(), self._in_flight.take(future)
            outcomes.append(Outcome(task, error=error, wasted_s=seconds) if error else Outcome(task, future.result()))
        return outcomes

    def stop(self) -> float:
        """See Pool."""
        self._worker.stop.set()
        return self._in_flight.seconds()

    def close(self) -> None:
        """See Pool. Threads cannot be killed: they leave at the next batch."""
        self.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
