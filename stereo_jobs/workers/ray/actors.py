"""A worker as a Ray actor."""

import contextlib
import logging
import os
from functools import partial
from typing import Any

from stereo_jobs import logs
from stereo_jobs.errors import DeviceLostError
from stereo_jobs.output.guard import planned
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Plan
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.patience import patient
from stereo_jobs.workers.prometheus import JobMetrics
from stereo_jobs.workers.ray import preemption
from stereo_jobs.workers.ray.actor_state import Place
from stereo_jobs.workers.ray.cluster import actor_lost_errors, cores_of_actor
from stereo_jobs.workers.task import ShardTask
from stereo_jobs.workers.worker import GeneratorFactory, ShardWorker

log = logging.getLogger(__name__)


class ActorWorker:
    """A ShardWorker as a Ray actor.

    Creating it is quick, so that it has a place at once. Its models are loaded by `load`, which may fail, hang or kill
    the process.

    Args:
        spec: the job.
        recipe: the resolved recipe.
        load: loads the generator.
        heartbeats: Ray's handle of the `Heartbeats` actor.
        number: the number of this actor.
    """

    def __init__(self, spec: JobSpec, recipe: Recipe, load: GeneratorFactory, heartbeats: Any, number: int) -> None:
        import ray

        logs.configure(spec.runtime.log_format)

        def report(key: ShardKey, rows: list[int], work: str) -> None:
            # The call is waited for: the report must have arrived before the batch can kill this process.
            with contextlib.suppress(*actor_lost_errors()):
                ray.get(self._heartbeats.report.remote(number, key, rows, work))

        self._heartbeats = heartbeats
        self._plans: dict[int, Plan] = {}
        self._worker: ShardWorker
        observe = JobMetrics(spec.output, on_ray=True).stage
        self._runtime = spec.runtime
        self._make = partial(ShardWorker, spec, recipe, load, report, observe=observe)
        preemption.watch(spec.runtime.spot_notice, lambda: self._heartbeats.report_preemption.remote(number))

    def place(self) -> Place:
        """Return where this process runs. The answer also says that it runs."""
        import ray

        context = ray.get_runtime_context()
        return Place(context.get_node_id(), ",".join(context.get_accelerator_ids().get("GPU", [])))

    def use_heartbeats(self, heartbeats: Any) -> None:
        """Report to another `Heartbeats` actor from now on: the former one was lost."""
        self._heartbeats = heartbeats

    def load(self) -> None:
        """Load the models; returns when they are loaded. Raises what ShardWorker raises."""
        self._worker = self._make(cores=cores_of_actor(self._runtime))

    def run(self, key: ShardKey, fingerprint: str, one_by_one: bool, quarantined: frozenset[int]) -> ShardRecord:
        """Make and commit one shard, as ShardWorker.run does.

        The plan is read here and not sent: it may be long, and is the same for all shards of a generation. Its
        fingerprint tells whether it is still the driver's.
        """
        generation, shard = key
        if generation not in self._plans:
            self._plans[generation] = patient()(planned, self._worker.storage, generation, fingerprint)
        try:
            return self._worker.run(ShardTask(self._plans[generation], shard, one_by_one, quarantined))
        except DeviceLostError:
            log.exception("the GPU is lost to this process; it ends, and another one replaces it")
            os._exit(DeviceLostError.exit_code)
