"""Numbers of a job for Prometheus, over the metrics endpoint that Ray has on every node.

The driver counts committed shards, so that the counters agree with the dataset; workers count their seconds. Ray
puts `ray_` before each name and `_total` after a counter's, and adds labels of its own (WorkerId, NodeAddress).
"""

import logging
from functools import cached_property
from typing import Any, Literal, NamedTuple

from stereo_jobs.output import layout
from stereo_jobs.records import ShardRecord

log = logging.getLogger(__name__)

Stage = Literal["read", "generate", "encode", "write"]
"""Of a shard: rows and images in; models; pictures and quality; the shard object out."""


class Metric(NamedTuple):
    """One metric. Every one also has the label `output`, a URI: `job` is Prometheus's own word for what it scrapes."""

    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()


METRICS = {
    "stereo_jobs_pairs": Metric("counter", "Pairs committed."),
    "stereo_jobs_failed_rows": Metric("counter", "Rows committed as failed, by type.", ("error_type",)),
    "stereo_jobs_rejected_pairs": Metric("counter", "Pairs that drop_rejected left out."),
    "stereo_jobs_shards": Metric("counter", "Shards committed."),
    "stereo_jobs_written_bytes": Metric("counter", "Size of the shards committed."),
    "stereo_jobs_stage_seconds": Metric(
        "counter",
        "Seconds of a worker's threads by stage; the rate of generate is the share of time its GPU is busy.",
        ("stage",),
    ),
    "stereo_jobs_queued_shards": Metric("gauge", "Shards that wait for a worker."),
    "stereo_jobs_running_shards": Metric("gauge", "Shards that workers are at."),
    "stereo_jobs_workers": Metric("gauge", "Workers whose models are loaded."),
    "stereo_jobs_planned_pairs": Metric("gauge", "Pairs that the job plans."),
    "stereo_jobs_left_pairs": Metric("gauge", "Pairs of this run still to be made."),
}


def exported(name: str) -> str:
    """What Prometheus calls a metric."""
    return f"ray_{name}" + ("_total" if METRICS[name].kind == "counter" else "")


class Metrics:
    """Where a process puts the numbers of one job; without Ray they go no further than the log.

    Args:
        output: the job's, a URI.
        on_ray: Ray is connected in this process, or will be when the first number comes.
    """

    def __init__(self, output: str, *, on_ray: bool) -> None:
        self._output = output
        self._on_ray = on_ray

    def shard(self, record: ShardRecord) -> None:
        """A shard was committed."""
        log.info(
            "shard done: %d pairs, %d failed, %d bytes, %.1f s of the models",
            *(record.succeeded, record.failed, record.bytes, record.seconds),
            extra={
                "shard": layout.shard_name((record.generation, record.shard)),
                "pairs": record.succeeded,
                "failed": record.failed,
                "bytes": record.bytes,
                "seconds": record.seconds,
            },
        )
        self._add("stereo_jobs_shards", 1)
        self._add("stereo_jobs_pairs", record.succeeded)
        self._add("stereo_jobs_rejected_pairs", record.rejected)
        self._add("stereo_jobs_written_bytes", record.bytes)
        for error_type, count in record.failures.items():
            self._add("stereo_jobs_failed_rows", count, error_type=error_type)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A worker's thread was at a stage."""
        self._add("stereo_jobs_stage_seconds", seconds, stage=stage)

    def run(self, planned: int, left: int, queued: int, running: int, workers: int) -> None:
        """How the run stands: pairs planned and left, shards that wait and that are under way, workers."""
        self._set("stereo_jobs_planned_pairs", planned)
        self._set("stereo_jobs_left_pairs", left)
        self._set("stereo_jobs_queued_shards", queued)
        self._set("stereo_jobs_running_shards", running)
        self._set("stereo_jobs_workers", workers)

    def _add(self, name: str, value: float, **labels: str) -> None:
        if self._on_ray and value > 0:
            self._made[name].inc(value, labels)

    def _set(self, name: str, value: float) -> None:
        if self._on_ray:
            self._made[name].set(value)

    @cached_property
    def _made(self) -> dict[str, Any]:
        from ray.util import metrics

        kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        return {
            name: kinds[kind](name, description, ("output", *labels)).set_default_tags({"output": self._output})
            for name, (kind, description, labels) in METRICS.items()
        }
