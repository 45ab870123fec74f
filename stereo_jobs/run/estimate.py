"""A price before the run: a rehearsal on a few rows, and the arithmetic from there to hours and dollars.

The rehearsal is the worker itself, with rows from all over the job, into a temporary folder. The output is only read.
"""

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ClusterError, InterruptedRunError, SpecError, StereoJobsError
from stereo_jobs.output.plan import Plan, publish
from stereo_jobs.output.progress import Status
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.prometheus import Stage
from stereo_jobs.workers.ray.cluster import actor_needs, deaths, start_ray
from stereo_jobs.workers.task import IN_FLIGHT, ShardTask
from stereo_jobs.workers.worker import ENCODERS, GeneratorFactory, ShardWorker, device_name, load_generator

BATCHES = 3
"""That are measured, after one that warms up."""


@dataclass(frozen=True)
class Measurement:
    """What a few rows took on one worker.

    Attributes:
        device: name of the GPU, or `cpu`.
        batch_size: of the network calls at the end: halved where memory did not suffice.
        pairs: made.
        failures: rows that failed, by type.
        load_s: seconds to load the models from this machine's disk.
        stages: seconds by stage, all pairs together; the stages run side by side.
        slowest_batch_s, fastest_batch_s: of the models.
        bytes: of the shard object.
        gpu_bytes, gpu_total_bytes: peak of reserved GPU memory, and what the GPU has; None without one.
        rss_bytes: peak of the process's memory.
    """

    device: str
    batch_size: int
    pairs: int
    failures: dict[str, int]
    load_s: float
    stages: dict[str, float]
    slowest_batch_s: float
    fastest_batch_s: float
    bytes: int
    gpu_bytes: int | None
    gpu_total_bytes: int | None
    rss_bytes: int

    @property
    def pair_s(self) -> float:
        """Seconds a pair, once the stages overlap as in a long run: those of whatever is slowest."""
        return max(self.bounds.values()) / self.pairs

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that the sample takes if only one thing were slow: the models, encoding, or a shard's own thread."""
        return {
            "generate": self.stages["generate"],
            "encode": self.stages["encode"] / ENCODERS,
            "read and write": sum(self.stages[stage] for stage in ("read", "generate", "write")) / IN_FLIGHT,
        }


@dataclass(frozen=True)
class Estimate:
    """What the rest of a job will take.

    Attributes:
        rehearsal: on which it rests.
        gpus: of the kind that was measured, all the time.
        pairs, shards: that are still to be made.
        pairs_per_s: of all GPUs.
        slowest: the stage that limits a worker.
        wall_s: from the first machine being ready; models are loaded, and the last shards leave some GPUs idle.
        gpu_hours: GPUs times wall time.
        bytes: that the shards will have.
        price_per_hour, dollars, dollars_per_1000_pairs: of one GPU, of all, and of a thousand pairs.
    """

    rehearsal: Measurement
    gpus: int
    pairs: int
    shards: int
    pairs_per_s: float
    slowest: str
    wall_s: float
    gpu_hours: float
    bytes: int
    price_per_hour: float | None
    dollars: float | None
    dollars_per_1000_pairs: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def estimate(
    rehearsal: Measurement, status: Status, *, gpus: int, gpus_per_actor: float, price_per_hour: float | None = None
) -> Estimate:
    """Hours, bytes and dollars for what is left of a job.

    Args:
        rehearsal: measured on one worker that had its GPU for itself.
        status: of the job; says what is left.
        gpus: how many there will be.
        gpus_per_actor: of the runtime; workers that share a GPU are counted as fast as one that does not.
        price_per_hour: of one GPU with its share of the machine, in dollars.

    Raises:
        SpecError: not one worker fits on `gpus`.
    """
    workers = math.floor(gpus / max(1.0, gpus_per_actor))
    if not workers:
        raise SpecError(f"--gpus: a worker takes runtime.gpus_per_actor = {gpus_per_actor:g} of them, got {gpus}")
    pairs = status.planned - status.succeeded - status.failed - status.rejected
    shards = status.shards_planned - status.shards_done
    rounds = math.ceil(shards / workers)
    wall_s = rehearsal.load_s + rounds * rehearsal.pair_s * pairs / shards
    gpu_hours = gpus * wall_s / 3600
    dollars = None if price_per_hour is None else gpu_hours * price_per_hour
    return Estimate(
        rehearsal=rehearsal,
        gpus=gpus,
        pairs=pairs,
        shards=shards,
        pairs_per_s=min(workers, shards) / rehearsal.pair_s,
        slowest=max(rehearsal.bounds, key=lambda name: rehearsal.bounds[name]),
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        bytes=round(rehearsal.bytes / rehearsal.pairs * pairs),
        price_per_hour=price_per_hour,
        dollars=dollars,
        dollars_per_1000_pairs=None if dollars is None else 1000 * dollars / pairs,
    )


# --- Measuring ---


def measure_rows(spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory = load_generator) -> Measurement:
    """Make a few pairs of a plan: on one worker of the Ray cluster that the spec or RAY_ADDRESS names, else here.

    Raises:
        StereoJobsError: the models cannot be loaded, or none of the rows can be made.
        InterruptedRunError: the cluster has no room.
        ClusterError: the worker died there, or is not done in time.
    """
    if not (spec.runtime.ray_address or os.environ.get("RAY_ADDRESS")):
        return measure(spec, recipe, plan, load)
    ray, owned = start_ray(spec)
    try:
        return _elsewhere(ray, spec, recipe, plan, load)
    finally:
        if owned:
            ray.shutdown()


class _Elsewhere:
    """`measure` as a Ray actor: unlike a task it tells whether it waits for room, or is at work."""

    def measure(self, spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory) -> Measurement:
        return measure(spec, recipe, plan, load)


def _elsewhere(ray: ModuleType, spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory) -> Measurement:
    runtime, at_work = spec.runtime, False
    work_s = runtime.start_timeout_s + (1 + BATCHES) * runtime.batch_timeout_s
    worker = ray.remote(_Elsewhere).options(**actor_needs(runtime), max_restarts=0, max_task_retries=0).remote()
    try:
        at_work = ray.get(worker.__ray_ready__.remote(), timeout=runtime.start_timeout_s)
        return ray.get(worker.measure.remote(spec, recipe, plan, load), timeout=work_s)  # type: ignore[no-any-return]
    except ray.exceptions.GetTimeoutError:
        if at_work:
            raise ClusterError(
                f"the worker has not measured {1 + BATCHES} batches within {work_s:g} s, the sum of "
                "runtime.start_timeout_s and of runtime.batch_timeout_s for each; raise them if it is just slow"
            ) from None
        raise InterruptedRunError(
            f"runtime.start_timeout_s: no room for a worker within {runtime.start_timeout_s:g} s; the cluster has "
            f"{ray.cluster_resources()}; try again when it has room, or ask for less"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, StereoJobsError) else error from None
    except deaths() as error:
        raise ClusterError(f"the worker died while it measured; is the host's memory enough? ({error})") from None
    finally:
        ray.kill(worker)


def measure(spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory) -> Measurement:
    """The same, in this process."""
    spans: list[tuple[Stage, float]] = []
    with tempfile.TemporaryDirectory(prefix="stereo-jobs-") as folder:
        storage = open_storage(folder)
        batch_size = spec.runtime.batch_size
        tasks = [
            ShardTask(_excerpt(plan, generation, recipe, units * batch_size), 0)
            for generation, units in enumerate((1, BATCHES))
        ]
        publish(storage, tasks[0].plan)
        started = time.monotonic()
        worker = ShardWorker(
            spec.model_copy(update={"output": folder}), recipe, load, observe=lambda *span: spans.append(span)
        )
        load_s = time.monotonic() - started
        worker.run(tasks[0])
        spans.clear()
        record = worker.run(tasks[1])
    if not record.succeeded + record.rejected:
        raise StereoJobsError(
            f"none of {record.planned} rows could be made ({', '.join(record.failures)}), so there is nothing to "
            "measure; run a few rows of the job to see their errors in _job/errors/"
        )
    batches = [seconds for stage, seconds in spans if stage == "generate"]
    gpu_bytes, gpu_total_bytes = _gpu_memory()
    return Measurement(
        device=device_name(),
        batch_size=worker.generator.batch_size,
        pairs=record.succeeded + record.rejected,
        failures=record.failures,
        load_s=load_s,
        stages=_sums(spans),
        slowest_batch_s=max(batches),
        fastest_batch_s=min(batches),
        bytes=record.bytes,
        gpu_bytes=gpu_bytes,
        gpu_total_bytes=gpu_total_bytes,
        rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _excerpt(plan: Plan, generation: int, recipe: Recipe, lefts: int) -> Plan:
    """A plan of one shard over pairs from all over another one. Scales of one left image stay together."""
    scales = max(1, len(recipe.variants.scale_percent))
    available = plan.pairs // scales
    count = min(lefts, available)
    chosen = [(2 * i + 1) * available // (2 * count) for i in range(count)]
    pairs = tuple(left * scales + scale for left in chosen for scale in range(scales))
    return plan.model_copy(update={"generation": generation, "kind": "retry", "retry": pairs, "shard_rows": len(pairs)})


def _sums(spans: Iterable[tuple[Stage, float]]) -> dict[str, float]:
    sums = dict.fromkeys(("read", "generate", "encode", "write"), 0.0)
    for stage, seconds in spans:
        sums[stage] += seconds
    return sums


def _gpu_memory() -> tuple[int | None, int | None]:
    torch = sys.modules.get("torch")
    if not (torch and torch.cuda.is_available()):
        return None, None
    return int(torch.cuda.max_memory_reserved()), int(torch.cuda.get_device_properties(0).total_memory)
