"""Estimate a job before it runs: measure a few rows, and compute hours, bytes and dollars from them.

The measurement uses the worker of a real run, on rows from all over the job, with a temporary folder as its output. The
job's own output is only read.
"""

import dataclasses
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import ClusterError, InterruptedRunError, SpecError, StereoJobsError
from stereo_jobs.output.commits import read_footer_at
from stereo_jobs.output.plan import Plan, publish
from stereo_jobs.output.progress import Status
from stereo_jobs.pipeline.batching import Generator
from stereo_jobs.records import RowError, ShardRecord
from stereo_jobs.run.cost_model import Arithmetic, Prediction, predict
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.encoding import device_name
from stereo_jobs.workers.prometheus import Stage
from stereo_jobs.workers.ray.cluster import (
    actor_lost_errors,
    actor_needs,
    cores_of_actor,
    named_cluster,
    refuse_missing_gpus,
    start_ray,
)
from stereo_jobs.workers.task import IN_FLIGHT, ShardTask
from stereo_jobs.workers.timed_threads import usable_cores
from stereo_jobs.workers.worker import GeneratorFactory, ShardWorker, load_generator

BATCHES = 3
"""Batches that are measured, after one that warms up."""


@dataclass(frozen=True)
class Measurement:
    """Time and memory that a few rows took on one worker.

    Attributes:
        device: name of the GPU, or `cpu`.
        batch_size: rows per batch at the end. It was halved each time that GPU memory ran out.
        pairs: how many pairs were made.
        failures: how many rows failed, by error type.
        threads: how many pairs the worker encodes at a time.
        load_s: seconds to load the models from this machine's disk.
        warm_up_s: seconds that the first batch, scored and encoded, took longer than the others.
        stages: seconds by stage, summed over all pairs. The stages overlap in time.
        slowest_batch_s: seconds of the slowest batch in the models.
        fastest_batch_s: seconds of the fastest batch in the models.
        cores: CPU cores that the worker may use.
        cpu_s: CPU seconds of all threads for the measured pairs.
        arithmetic: what the networks computed; None where they computed nothing.
        bytes: size of the shard object.
        gpu_bytes: peak of reserved GPU memory; None without a GPU.
        gpu_total_bytes: memory of the GPU; None without a GPU.
        rss_bytes: peak of the process's resident memory.
    """

    device: str
    batch_size: int
    pairs: int
    failures: dict[str, int]
    threads: int
    load_s: float
    warm_up_s: float
    stages: dict[str, float]
    slowest_batch_s: float
    fastest_batch_s: float
    cores: int
    cpu_s: float
    arithmetic: Arithmetic | None
    bytes: int
    gpu_bytes: int | None
    gpu_total_bytes: int | None
    rss_bytes: int

    @property
    def pair_s(self) -> float:
        """Seconds per pair in a long run. The stages overlap, so the slowest one decides."""
        return max(self.bounds.values()) / self.pairs

    @property
    def end_s(self) -> float:
        """Seconds in which the last batch is scored, encoded and written, after the models are done."""
        last = min(self.batch_size, self.pairs)
        return self.stages["encode"] / self.pairs * last / self.threads + self.stages["write"]

    @property
    def slowest(self) -> str:
        """The bottleneck; see `bounds`."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each possible bottleneck alone needs for the measured pairs.

        `generate`: the models. `encode`: the encoder threads. `read and write`: the thread of a shard, which also
        waits while the models generate. `processor`: all threads together on the worker's cores.
        """
        return {
            "generate": self.stages["generate"],
            "encode": self.stages["encode"] / self.threads,
            "read and write": sum(self.stages[stage] for stage in ("read", "generate", "write")) / IN_FLIGHT,
            "processor": self.cpu_s / self.cores,
        }

    def with_models_of(self, prediction: Prediction) -> "Measurement":
        """Return what would be measured if the models ran on another GPU, and all else as it is here."""
        spared_s = self.stages["generate"] if self.device == "cpu" else 0.0
        stages = self.stages | {"generate": prediction.pair_s * self.pairs}
        return dataclasses.replace(self, stages=stages, cpu_s=max(0.0, self.cpu_s - spared_s))


@dataclass(frozen=True)
class Estimate:
    """What the rest of a job will take.

    Attributes:
        measurement: what the estimate is computed from.
        prediction: the GPU that was named in place of the measured one; None where none was.
        gpus: how many GPUs of the kind work on the job, all the time.
        pairs: pairs still to make.
        shards: shards still to make.
        pairs_per_s: pairs per second of all GPUs together.
        slowest: the bottleneck of a worker; see `Measurement.bounds`.
        wall_s: seconds from the first ready machine to the end. It includes the time to load the models and to warm
            up, the scoring and encoding after the last batch, and that some GPUs are idle during the last shards.
        gpu_hours: GPUs times wall time.
        bytes: size of all shards still to make.
        price_per_hour: dollars per GPU-hour, if given.
        dollars: price of all GPU-hours.
        dollars_per_1000_pairs: price of a thousand pairs.
    """

    measurement: Measurement
    prediction: Prediction | None
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
        """Return plain values. The measurement keeps the key it has always had, `rehearsal`."""
        values = asdict(self)
        return {"rehearsal": values.pop("measurement")} | values


def estimate(
    measurement: Measurement,
    status: Status,
    *,
    gpus: int,
    gpus_per_actor: float,
    gpu: str | None = None,
    price_per_hour: float | None = None,
) -> Estimate:
    """Compute hours, bytes and dollars for the rest of a job.

    Args:
        measurement: measured on one worker that had its GPU for itself.
        status: status of the job; it says what is left.
        gpus: how many GPUs the job will have.
        gpus_per_actor: `runtime.gpus_per_actor`. Workers that share a GPU count together as one worker.
        gpu: name of another GPU, whose speed is predicted from what the networks compute.
        price_per_hour: dollars per hour for one GPU with its share of the machine.

    Raises:
        SpecError: `gpus` are too few for one worker, or nothing can be predicted for the other GPU.
    """
    workers = math.floor(gpus / max(1.0, gpus_per_actor))
    if not workers:
        raise SpecError(
            f"--gpus: a worker takes runtime.gpus_per_actor = {gpus_per_actor:g} of them, got {gpus}; raise --gpus"
        )
    prediction = None if gpu is None else _predict(measurement, gpu)
    worker = measurement if prediction is None else measurement.with_models_of(prediction)
    pairs = status.planned - status.succeeded - status.failed - status.rejected
    shards = status.shards_planned - status.shards_done
    rounds = math.ceil(shards / workers)
    wall_s = worker.load_s + worker.warm_up_s + rounds * worker.pair_s * pairs / shards + worker.end_s
    gpu_hours = gpus * wall_s / 3600
    dollars = None if price_per_hour is None else gpu_hours * price_per_hour
    return Estimate(
        measurement=measurement,
        prediction=prediction,
        gpus=gpus,
        pairs=pairs,
        shards=shards,
        pairs_per_s=min(workers, shards) / worker.pair_s,
        slowest=worker.slowest,
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        bytes=round(measurement.bytes / measurement.pairs * pairs),
        price_per_hour=price_per_hour,
        dollars=dollars,
        dollars_per_1000_pairs=None if dollars is None else 1000 * dollars / pairs,
    )


def _predict(measurement: Measurement, gpu: str) -> Prediction:
    if measurement.arithmetic is None:
        raise SpecError(
            "--gpu: the measured pairs ran neither U-Net nor VAE, so there is nothing to predict from; leave it out"
        )
    return predict(gpu, measurement.arithmetic, measurement.device)


# --- Measuring ---


def measure_rows(spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory = load_generator) -> Measurement:
    """Measure a few rows of a plan on one worker, and discard the pairs.

    The worker is an actor of the Ray cluster that `runtime.ray_address` or the environment's RAY_ADDRESS names. Without
    either, it runs in this process.

    Args:
        spec: the job.
        recipe: the resolved recipe.
        plan: the plan to take rows from.
        load: loads the generator.

    Raises:
        StereoJobsError: the models cannot be loaded, or none of the rows can be made.
        InterruptedRunError: the cluster has no room.
        ClusterError: the worker died, or did not end in time.
    """
    if not named_cluster(spec.runtime):
        return measure(spec, recipe, plan, load)
    ray, owned = start_ray(spec)
    try:
        refuse_missing_gpus(spec.runtime)
        return _measure_on_cluster(ray, spec, recipe, plan, load)
    finally:
        if owned:
            ray.shutdown()


class _MeasuringActor:
    """Runs `measure` as a Ray actor. Unlike a Ray task it tells whether it waits for room or has begun.

    It uses as many cores as it would have on a full node.
    """

    def measure(self, spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory) -> Measurement:
        return measure(spec, recipe, plan, load, cores_of_actor(spec.runtime))


def _measure_on_cluster(
    ray: ModuleType, spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory
) -> Measurement:
    """Run `measure` in an actor of the connected cluster, and say what went wrong if it cannot."""
    runtime, begun = spec.runtime, False
    work_s = runtime.start_timeout_s + (1 + BATCHES) * runtime.batch_timeout_s
    worker = ray.remote(_MeasuringActor).options(**actor_needs(runtime), max_restarts=0, max_task_retries=0).remote()
    try:
        begun = ray.get(worker.__ray_ready__.remote(), timeout=runtime.start_timeout_s)
        return ray.get(worker.measure.remote(spec, recipe, plan, load), timeout=work_s)  # type: ignore[no-any-return]
    except ray.exceptions.GetTimeoutError:
        if begun:
            raise ClusterError(
                f"the worker has not measured {1 + BATCHES} batches within {work_s:g} s: runtime.start_timeout_s and "
                f"{1 + BATCHES} times runtime.batch_timeout_s; raise them if the worker is only slow"
            ) from None
        raise InterruptedRunError(
            f"runtime.start_timeout_s: no room for a worker within {runtime.start_timeout_s:g} s; the cluster has "
            f"{ray.cluster_resources()}; try again when it has room, or lower what the spec asks for one actor"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, StereoJobsError) else error from None
    except actor_lost_errors() as error:
        raise ClusterError(f"the worker died while it measured; is the host's memory enough? ({error})") from None
    finally:
        ray.kill(worker)


def measure(spec: JobSpec, recipe: Recipe, plan: Plan, load: GeneratorFactory, cores: int | None = None) -> Measurement:
    """Measure a few rows of a plan in this process, see `measure_rows`; with threads for all its cores, or fewer."""
    spans: list[tuple[Stage, float]] = []
    with tempfile.TemporaryDirectory(prefix="stereo-jobs-") as folder:
        storage = open_storage(folder)
        first, others = _publish_samples(storage, plan, recipe, spec.runtime.largest_batch)
        started = time.monotonic()
        copied = spec.model_copy(update={"output": folder})
        worker = ShardWorker(copied, recipe, load, cores=cores, observe=lambda *span: spans.append(span))
        loaded = time.monotonic()
        worker.run(first)
        first_s, first_batches = time.monotonic() - loaded, sum(stage == "generate" for stage, _ in spans)
        spans.clear()
        with _counted(worker.generator) as passes:
            cpu_before_s = time.process_time()
            record = worker.run(others)
            cpu_s = time.process_time() - cpu_before_s
        _refuse_none_made(record, read_footer_at(storage, others.key).errors)
    batch_seconds = [seconds for stage, seconds in spans if stage == "generate"]
    stages = _sums(spans)
    gpu_bytes, gpu_total_bytes = _gpu_memory()
    found = Measurement(
        device=device_name(),
        batch_size=worker.generator.batch_size,
        pairs=record.succeeded + record.rejected,
        failures=record.failures,
        threads=worker.threads,
        load_s=loaded - started,
        warm_up_s=0.0,
        stages=stages,
        slowest_batch_s=max(batch_seconds),
        fastest_batch_s=min(batch_seconds),
        cores=cores or usable_cores(),
        cpu_s=cpu_s,
        arithmetic=_arithmetic(worker, passes, record, stages["generate"]),
        bytes=record.bytes,
        gpu_bytes=gpu_bytes,
        gpu_total_bytes=gpu_total_bytes,
        rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    usual_s = first_batches * stages["generate"] / len(batch_seconds) + found.end_s
    return dataclasses.replace(found, warm_up_s=max(0.0, first_s - usual_s))


def _publish_samples(storage: Storage, plan: Plan, recipe: Recipe, batch_size: int) -> tuple[ShardTask, ShardTask]:
    """Publish the plans of two shards, one batch to warm up and those to measure, and return their tasks."""
    plans = [_sample_plan(plan, number, recipe, batches * batch_size) for number, batches in enumerate((1, BATCHES))]
    for each in plans:
        publish(storage, each)
    return ShardTask(plans[0], 0), ShardTask(plans[1], 0)


def _refuse_none_made(record: ShardRecord, errors: Sequence[RowError]) -> None:
    """Refuse to estimate from a shard of which no pair was made. Raises StereoJobsError."""
    if not record.succeeded + record.rejected:
        raise StereoJobsError(
            f"none of {record.planned} rows could be made ({', '.join(record.failures)}), so nothing was measured; "
            f"mend what their errors name, for example {errors[0].id}: {errors[0].error_message}"
        )


def _sample_plan(plan: Plan, generation: int, recipe: Recipe, left_views: int) -> Plan:
    """A plan of one shard with pairs spread evenly over another plan. The scales of one left view stay together."""
    scales = max(1, len(recipe.variants.scale_percent))
    available = plan.pairs // scales
    count = min(left_views, available)
    chosen = [(2 * i + 1) * available // (2 * count) for i in range(count)]
    pairs = tuple(left * scales + scale for left in chosen for scale in range(scales))
    return plan.model_copy(update={"generation": generation, "kind": "retry", "retry": pairs, "shard_rows": len(pairs)})


@contextmanager
def _counted(generator: Generator) -> Iterator[Counter[str]]:
    """Count the images that a generator's VAE takes, under `encode` and `decode`; a stand-in has none."""
    if not hasattr(generator, "sd"):
        yield Counter()
        return
    from stereo_jobs.models.flops import counted_passes

    with counted_passes(generator.sd.vae) as passes:
        yield passes


def _arithmetic(worker: ShardWorker, passes: Counter[str], record: ShardRecord, models_s: float) -> Arithmetic | None:
    """What U-Net and VAE computed for the measured pairs, and what this machine can.

    Args:
        worker: the worker that made them.
        passes: images that its VAE encoded and decoded.
        record: record of the measured shard.
        models_s: seconds that it took in the models.
    """
    if not (record.unet_evaluations and hasattr(worker.generator, "sd") and worker.recipe.size):
        return None
    from stereo_jobs.models.flops import matmul_peak, network_flops
    from stereo_jobs.pipeline.threads import computing_on

    sd, size, dtype = worker.generator.sd, worker.recipe.size, worker.recipe.models.stable_diffusion.dtype
    each = network_flops(sd.unet.config, sd.vae.config, size.width, size.height)
    flops = record.unet_evaluations * each.unet + passes["encode"] * each.encode + passes["decode"] * each.decode
    with computing_on(1):  # as the models do on a CPU
        peak = matmul_peak(sd.device, dtype)
    return Arithmetic(
        flops=flops / (record.succeeded + record.rejected),
        unet_flops=each.unet,
        dtype=dtype,
        peak=peak,
        share=flops / models_s / peak,
    )


def _sums(spans: Iterable[tuple[Stage, float]]) -> dict[str, float]:
    """Seconds by stage."""
    sums = dict.fromkeys(("read", "generate", "encode", "write"), 0.0)
    for stage, seconds in spans:
        sums[stage] += seconds
    return sums


def _gpu_memory() -> tuple[int | None, int | None]:
    """Peak of reserved memory and total memory of the GPU, in bytes; None twice without a GPU."""
    torch = sys.modules.get("torch")
    if not (torch and torch.cuda.is_available()):
        return None, None
    return int(torch.cuda.max_memory_reserved()), int(torch.cuda.get_device_properties(0).total_memory)
