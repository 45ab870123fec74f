"""Metrics of a job for Prometheus, exported through the endpoint that Ray has on every node.

The driver counts committed shards, so the counters agree with the dataset. Workers count their seconds. Ray puts `ray_`
before each name and `_total` after the name of a counter, and adds labels of its own (WorkerId, NodeAddress).
"""

import logging
from functools import cached_property
from typing import Any, Literal, NamedTuple

from stereo_jobs.output import layout
from stereo_jobs.records import ShardRecord

log = logging.getLogger(__name__)

Stage = Literal["read", "generate", "encode", "write"]
"""Stages of a shard.

`read`: rows and images are read. `generate`: the models compute. `encode`: images are encoded and pairs are scored.
`write`: the shard object is written and committed.
"""


class Metric(NamedTuple):
    """One metric. Each also has the label `output`, the job's URI; `job` is a label that Prometheus sets itself.

    Attributes:
        kind: counter or gauge.
        description: what Prometheus shows as help.
        labels: further labels.
    """

    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()


METRICS = {
    "stereo_jobs_pairs": Metric("counter", "Pairs committed."),
    "stereo_jobs_failed_rows": Metric("counter", "Rows committed as failed, by type.", ("error_type",)),
    "stereo_jobs_rejected_pairs": Metric("counter", "Pairs left out of the dataset by recipe.quality.drop_rejected."),
    "stereo_jobs_shards": Metric("counter", "Shards committed."),
    "stereo_jobs_written_bytes": Metric("counter", "Bytes of the shards committed."),
    "stereo_jobs_stage_seconds": Metric(
        "counter",
        "Seconds of a worker's threads by stage. The rate of generate is the share of time its GPU is busy.",
        ("stage",),
    ),
    "stereo_jobs_queued_shards": Metric("gauge", "Shards that wait for a worker."),
    "stereo_jobs_running_shards": Metric("gauge", "Shards in flight."),
    "stereo_jobs_workers": Metric("gauge", "Workers whose models are loaded."),
    "stereo_jobs_planned_pairs": Metric("gauge", "Pairs that the job plans."),
    "stereo_jobs_left_pairs": Metric("gauge", "Pairs that this run has still to make."),
}


def exported(name: str) -> str:
    """Return the name of a metric in Prometheus."""
    return f"ray_{name}" + ("_total" if METRICS[name].kind == "counter" else "")


class JobMetrics:
    """The metrics of one job in this process. Without Ray, committed shards are only logged.

    Args:
        output: URI of the job's output.
        on_ray: Ray is connected in this process, or will be before the first value is set.
    """

    def __init__(self, output: str, *, on_ray: bool) -> None:
        self._output = output
        self._on_ray = on_ray

    def shard(self, record: ShardRecord) -> None:
        """Log and count a committed shard."""
        log.info(
            "shard done: %d pairs, %d failed, %d bytes, %.1f s generating",
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
        """Count the seconds that a thread of a worker spent in a stage."""
        self._add("stereo_jobs_stage_seconds", seconds, stage=stage)

    def run(self, planned: int, left: int, queued: int, running: int, workers: int) -> None:
        """Set the gauges of the run: pairs planned and left, shards queued and in flight, workers."""
        self._set("stereo_jobs_planned_pairs", planned)
        self._set("stereo_jobs_left_pairs", left)
        self._set("stereo_jobs_queued_shards", queued)
        self._set("stereo_jobs_running_shards", running)
        self._set("stereo_jobs_workers", workers)

    def _add(self, name: str, value: float, **labels: str) -> None:
        if self._on_ray and value > 0:
            self._instruments[name].inc(value, labels)

    def _set(self, name: str, value: float) -> None:
        if self._on_ray:
            self._instruments[name].set(value)

    @cached_property
    def _instruments(self) -> dict[str, Any]:
        """Ray's counters and gauges by name, made when first needed: that is when Ray is connected."""
        from ray.util import metrics

        kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        return {
            name: kinds[kind](name, description, ("output", *labels)).set_default_tags({"output": self._output})
            for name, (kind, description, labels) in METRICS.items()
        }
