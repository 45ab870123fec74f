"""What runs in Ray's processes: a worker in each actor, and the board that remembers what they are at."""

import contextlib
import logging
import os
import time
from functools import partial
from typing import Any, NamedTuple

from stereo_jobs import logs
from stereo_jobs.errors import DeviceLostError
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Plan, load_plan
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.prometheus import Metrics
from stereo_jobs.workers.ray import preemption as notice
from stereo_jobs.workers.ray.cluster import deaths
from stereo_jobs.workers.task import ShardTask
from stereo_jobs.workers.worker import GeneratorFactory, ShardWorker, patient

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where an actor is; `gpus` tells those of one node apart."""

    node: str
    gpus: str

    @property
    def label(self) -> str:
        """Node and GPU, for comparing and for people."""
        return f"{self.node[:12]}/{self.gpus or 'cpu'}"


class News(NamedTuple):
    """Actors, by number, that something is to be done about."""

    late: list[int]
    leaving: list[int]


class Heartbeats:
    """An actor beside the driver that remembers what every worker is generating, beyond that worker's death."""

    def __init__(self) -> None:
        self._batches: dict[int, tuple[ShardKey, list[int], float]] = {}
        self._leaving: set[int] = set()

    def report(self, number: int, key: ShardKey, rows: list[int]) -> None:
        """Called by a worker before each batch, and without rows after the last one of a shard."""
        if rows:
            self._batches[number] = key, rows, time.monotonic()
        else:
            self._batches.pop(number, None)

    def leave(self, number: int) -> None:
        """Called by a worker whose machine is about to be taken away."""
        self._leaving.add(number)

    def take(self, number: int) -> tuple[ShardKey, list[int]] | None:
        """The batch that a lost worker was at; forgotten then."""
        key, rows, _ = self._batches.pop(number, (None, [], 0.0))
        return (key, rows) if key else None

    def news(self, batch_timeout_s: float) -> News:
        """Workers that are at one batch for too long, and workers about to go."""
        oldest = time.monotonic() - batch_timeout_s
        return News([n for n, (_, _, since) in self._batches.items() if since < oldest], sorted(self._leaving))


class ActorWorker:
    """A ShardWorker as a Ray actor. It has a place at once; it loads when told to, which may fail, hang or kill it."""

    def __init__(self, spec: JobSpec, recipe: Recipe, load: GeneratorFactory, board: Any, number: int) -> None:
        import ray

        logs.configure(spec.runtime.log_format)

        def report(key: ShardKey, rows: list[int]) -> None:
            # Waited for: the report must be out before the batch can kill this process.
            with contextlib.suppress(*deaths()):
                ray.get(self._heartbeats.report.remote(number, key, rows))

        self._heartbeats = board
        self._plans: dict[int, Plan] = {}
        self._worker: ShardWorker
        self._make = partial(ShardWorker, spec, recipe, load, report, Metrics(spec.output, on_ray=True).stage)
        notice.watch(spec.runtime.spot_notice, lambda: self._heartbeats.leave.remote(number))

    def place(self) -> Place:
        """Answers once this process is there."""
        import ray

        context = ray.get_runtime_context()
        return Place(context.get_node_id(), ",".join(context.get_accelerator_ids().get("GPU", [])))

    def report_to(self, board: Any) -> None:
        """The board was lost; this one takes its place."""
        self._heartbeats = board

    def load(self) -> None:
        """Answers once the models are loaded. See ShardWorker for what it raises."""
        self._worker = self._make()

    def run(self, key: ShardKey, one_by_one: bool, quarantined: frozenset[int]) -> ShardRecord:
        """See ShardWorker.run. The plan is read here: it may be long, and is the same for all its shards."""
        generation, shard = key
        if generation not in self._plans:
            self._plans[generation] = patient()(load_plan, self._worker.storage, generation)
        try:
            return self._worker.run(ShardTask(self._plans[generation], shard, one_by_one, quarantined))
        except DeviceLostError:
            log.exception("leaving this process, for another to take its place")
            os._exit(DeviceLostError.exit_code)
